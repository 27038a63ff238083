"""The answer for every worker count: the global batch with the least predicted time to target."""

from collections.abc import Iterable
from dataclasses import dataclass

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer, Bound
from scaler.decide.epochs import turned
from scaler.decide.fits import Fits
from scaler.decide.plans import split_batch
from scaler.decide.reasons import reasons, warmup_reason
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.memory import memory_for
from scaler.fit.step_time import StepTimeFit, shape_of
from scaler.fit.warmup import fit_warmup
from scaler.stats import Estimate, product
from scaler.workload import Reference

_MEMORY_MATTERS = 0.02  # share of time that lifting the memory limit would save, to call it the bound


@dataclass(frozen=True)
class Option:
    """A plan that could be chosen, with what is predicted of it."""

    plan: BatchPlan
    learning_rate: float
    step_time_s: Estimate
    mean_over_median: Estimate
    examples: Estimate | None

    @property
    def time_s(self) -> Estimate | None:
        """Predicted time to target."""
        if self.examples is None:
            return None
        steps = self.examples.scaled(1 / self.plan.global_batch)
        mean_step_s = product(self.step_time_s, self.mean_over_median, "")
        return product(steps, mean_step_s, "steps x mean step, log half-widths added in squares")


def options(
    fits: Fits, cluster: Cluster, workers: int, zero_stage: int, pinned: BatchPlan | None = None
) -> tuple[list[Option], str]:
    """List the feasible options of a worker count, fastest first, and why there are no others."""
    found, why = [], ""
    if (why_not := _untimed(fits.step_time, workers)) is not None:
        return [], why_not
    for batch in fits.tried:
        if pinned is not None and batch != pinned.global_batch:
            continue
        if batch not in fits.reached:
            why = why or f"no learning rate tried at a global batch of {batch} reached the target"
            continue
        try:
            plan = pinned or split_batch(batch, workers, fits.memory, cluster, zero_stage)
        except (BadInput, NothingFeasible) as error:
            why = error.message
            continue
        found.append(_converging(fits, cluster, plan))
    return sorted(found, key=lambda option: option.time_s.value if option.time_s else 0.0), why


def untried_option(fits: Fits, cluster: Cluster, batch: int, workers: int, zero_stage: int) -> Option | None:
    """Predict a batch that the search left out; None if it was tried, does not fit or nothing is fitted."""
    if len(fits.reached) < 2 or batch in fits.tried:
        return None
    try:
        plan = split_batch(batch, workers, fits.memory, cluster, zero_stage)
    except (BadInput, NothingFeasible):
        return None
    return _converging(fits, cluster, plan)


def answer(
    fits: Fits,
    cluster: Cluster,
    ranked: list[Option],
    reference: Reference,
    pinned: BatchPlan | None = None,
) -> Answer:
    """Make the answer from the fastest of the ranked options."""
    best = ranked[0]
    plan = best.plan
    memory = memory_for(fits.memory, plan.workers, plan.zero_stage)
    time_s = best.time_s
    price = cluster.price_per_device_hour
    bound = _bound(fits, cluster, ranked, pinned)
    warmup = fit_warmup(fits.trials, plan.global_batch, best.learning_rate, reference.warmup_examples)
    warmup_examples = warmup.chosen_examples if warmup is not None else reference.warmup_examples
    return Answer(
        plan=plan,
        learning_rate=best.learning_rate,
        warmup_examples=warmup_examples,
        warmup_steps=-(-warmup_examples // plan.global_batch),
        step_time_s=best.step_time_s,
        samples_per_s=turned(best.step_time_s, plan.global_batch),
        examples_to_target=best.examples,
        steps_to_target=best.examples.scaled(1 / plan.global_batch) if best.examples else None,
        time_to_target_s=time_s,
        cost_to_target=time_s.value / 3600 * price * plan.workers if time_s and price is not None else None,
        peak_memory_bytes=memory.peak_bytes(plan.micro_batch, plan.accumulation) if memory else None,
        bound_by=bound,
        reasons={
            **reasons(plan, bound, ranked_times(ranked), fits, cluster, reference),
            "warmup": warmup_reason(warmup),
        },
    )


def reference_answer(
    fits: Fits,
    cluster: Cluster,
    workers: int,
    zero_stage: int,
    reference: Reference,
    pinned: BatchPlan | None = None,
) -> tuple[Answer | None, str]:
    """Fall back to the reference batch and rate where no trial reached the target: no time to target then.

    Gives the answer, or why there is none.
    """
    if (why_not := _untimed(fits.step_time, workers)) is not None:
        return None, why_not
    try:
        plan = pinned or split_batch(reference.global_batch, workers, fits.memory, cluster, zero_stage)
    except (BadInput, NothingFeasible) as error:
        return None, error.message
    option = _option(fits, cluster, plan, reference.learning_rate, None)
    return answer(fits, cluster, [option], reference), ""


def ranked_times(ranked: Iterable[Option]) -> list[tuple[int, float]]:
    """Give (global batch, predicted time to target in s) of the options that have one, in order."""
    return [(o.plan.global_batch, o.time_s.value) for o in ranked if o.time_s is not None]


def _option(
    fits: Fits, cluster: Cluster, plan: BatchPlan, learning_rate: float, examples: Estimate | None
) -> Option:
    assert fits.step_time is not None and fits.mean_over_median is not None
    step_time_s = fits.step_time.predict(shape_of(plan, cluster.nodes_of(plan.workers)))
    return Option(plan, learning_rate, step_time_s, fits.mean_over_median, examples)


def _converging(fits: Fits, cluster: Cluster, plan: BatchPlan) -> Option:
    """Predict a plan at the learning rate that the trials advise."""
    assert fits.convergence is not None
    rate = fits.convergence.learning_rate(plan.global_batch)
    return _option(fits, cluster, plan, rate, fits.convergence.examples(plan.global_batch))


def _untimed(step_time: StepTimeFit | None, workers: int) -> str | None:
    """Say why nothing is known of the step time on a worker count: synchronisation was never seen."""
    if step_time is None:
        return "no step time was measured"
    if workers > 1 and step_time.largest_workers == 1:
        return "no step time was measured on more than one worker"
    return None


def _bound(fits: Fits, cluster: Cluster, ranked: list[Option], pinned: BatchPlan | None) -> Bound:
    """Name the limit that, if lifted, would give a faster answer."""
    best = ranked[0]
    if pinned is not None:
        return "pinned plan"
    if best.time_s is None:
        return "no evidence"
    workers, zero_stage = best.plan.workers, best.plan.zero_stage
    unlimited = [
        _converging(fits, cluster, _at_once(batch, workers, zero_stage))
        for batch in fits.reached
        if batch >= workers
    ]
    if best.time_s.value > (1 + _MEMORY_MATTERS) * min(o.time_s.value for o in unlimited if o.time_s):
        return "memory"
    if best.plan.global_batch == fits.train_examples:
        return "dataset size"
    largest = max(o.plan.global_batch for o in ranked)
    return "critical batch" if best.plan.global_batch < largest else "largest batch measured"


def _at_once(global_batch: int, workers: int, zero_stage: int) -> BatchPlan:
    """Spread a global batch as if memory had no limit: one pass."""
    return BatchPlan.split(global_batch, workers, global_batch, zero_stage)
