"""What an epoch costs at each global batch: why a smaller batch is slower per epoch."""

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import EpochCost
from scaler.decide.fits import Fits
from scaler.decide.plans import feasible_plan
from scaler.fit.step_time import shape_of
from scaler.stats import Estimate


def epoch_costs(fits: Fits, cluster: Cluster, chosen: BatchPlan) -> tuple[EpochCost, ...]:
    """Predict an epoch at every global batch that was tried, on the chosen plan's workers, smallest first.

    Without step times there are none.
    """
    fit = fits.step_time
    if fit is None or fit.per_example_s is None:
        return ()
    costs = []
    for batch in fits.tried:
        spread = feasible_plan(batch, chosen.workers, fits.memory, cluster, chosen.zero_stage)
        plan = chosen if batch == chosen.global_batch else spread
        if plan is None:
            continue
        step_s = fit.predict(shape_of(plan, cluster.nodes_of(plan.workers)))
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
