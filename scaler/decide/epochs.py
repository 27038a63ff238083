"""What an epoch costs at each global batch: why a smaller batch is slower per epoch."""

from scaler.cluster import Cluster
from scaler.decide.config import EpochCost
from scaler.decide.fits import Fits
from scaler.decide.plans import feasible_plan
from scaler.fit.step_time import shape_of
from scaler.stats import Estimate


def epoch_costs(fits: Fits, cluster: Cluster, workers: int, zero_stage: int) -> tuple[EpochCost, ...]:
    """Predict an epoch at every global batch that was tried, smallest first; () without step times."""
    fit = fits.step_time
    if fit is None or fit.per_example_s is None:
        return ()
    costs = []
    for batch in sorted(fits.batches):
        plan = feasible_plan(batch, workers, fits.memory, cluster, zero_stage)
        if plan is None:
            continue
        step_s = fit.predict(shape_of(plan, cluster.nodes_of(workers)))
        examples_s = fit.per_example_s * plan.micro_batch * plan.accumulation
        costs.append(
            EpochCost(
                plan=plan,
                steps_per_s=turned(step_s, 1.0),
                samples_per_s=turned(step_s, batch),
                epoch_time_s=step_s.scaled(fits.train_examples / batch),
                overhead_s=max(0.0, step_s.value - examples_s),
            )
        )
    return tuple(costs)


def turned(duration_s: Estimate, amount: float) -> Estimate:
    """Give amount per second, of what takes so long; the interval turns over."""
    low, high = duration_s.low, duration_s.high
    return duration_s.model_copy(
        update={
            "value": amount / duration_s.value,
            "low": None if high is None else amount / high,
            "high": None if low is None else amount / low,
        }
    )
