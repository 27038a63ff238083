"""The plans that could be chosen, with what is predicted of them, and the answer made from the best."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer, Bound
from scaler.decide.epochs import turned
from scaler.decide.fits import Fits
from scaler.decide.limits import Limits
from scaler.decide.objectives import Objective
from scaler.decide.outcomes import Outcomes
from scaler.decide.plans import split_batch
from scaler.decide.reasons import reasons, sources, warmup_reason
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.memory import memory_for
from scaler.fit.step_time import shape_of
from scaler.fit.warmup import fit_warmup
from scaler.stats import CONFIDENCE, Estimate, Floats, draw_around
from scaler.units import round_rate
from scaler.workload import Reference

_DRAWS = 4000


@dataclass(frozen=True)
class Option:
    """A plan that could be chosen, with what is predicted of it."""

    fits: Fits
    """Of its ZeRO stage."""
    plan: BatchPlan
    learning_rate: float
    step_time_s: Estimate
    examples: Estimate | None

    @property
    def typical_time_s(self) -> float | None:
        """Time to target at the middle of all intervals."""
        if self.examples is None or self.fits.mean_over_median is None:
            return None
        steps = self.examples.value / self.plan.global_batch
        return steps * self.step_time_s.value * self.fits.mean_over_median.value

    @property
    def time_s(self) -> Estimate | None:
        """Time to target of one fresh run, its interval drawn; without one where a part has none."""
        value, stretch, convergence = self.typical_time_s, self.fits.mean_over_median, self.fits.convergence
        if value is None or self.examples is None or stretch is None or convergence is None:
            return None
        parts = (self.examples, self.step_time_s, stretch)
        samples = min(part.samples for part in parts)
        if not all(part.is_identified for part in parts):
            return Estimate(value=value, samples=samples, method="steps x mean step")
        generator, batch = np.random.default_rng(0), self.plan.global_batch
        drawn = convergence.draw_examples([batch], _DRAWS, n_seeds=1)[:, 0] / batch
        for part in parts[1:]:
            drawn = drawn * draw_around(part, _DRAWS, generator)
        low, high = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]).tolist()
        method = f"steps x mean step, {_DRAWS:,} draws"
        return Estimate(
            value=value, low=min(low, value), high=max(high, value), samples=samples, method=method
        )


def options(
    fits: Fits, cluster: Cluster, workers: int, pinned: BatchPlan | None = None
) -> tuple[list[Option], str]:
    """List the feasible options of a worker count, and why there are no others."""
    plans, why = [], ""
    if (why_not := _untimed(fits, workers)) is not None:
        return [], why_not
    for batch in sorted({*fits.tried, *fits.examples}):
        if pinned is not None and batch != pinned.global_batch:
            continue
        if batch not in fits.examples:
            why = why or f"no learning rate tried at a global batch of {batch} reached the target"
            continue
        try:
            plans.append(pinned or split_batch(batch, workers, fits.memory, cluster, fits.zero_stage))
        except (BadInput, NothingFeasible) as error:
            why = error.message
    return _predicted(fits, cluster, plans), why


def untried_option(fits: Fits, cluster: Cluster, batch: int, workers: int) -> Option | None:
    """Predict a batch that the search left out; None if it was tried, does not fit or nothing is fitted."""
    if len(fits.reached) < 2 or batch in fits.tried:
        return None
    try:
        plan = split_batch(batch, workers, fits.memory, cluster, fits.zero_stage)
    except (BadInput, NothingFeasible):
        return None
    return _predicted(fits, cluster, [plan])[0]


def outcomes_of(found: Sequence[Option], cluster: Cluster) -> Outcomes:
    """Gather what is predicted of options: [options]."""

    def values(numbers: Iterable[float]) -> Floats:
        return np.array(list(numbers), dtype=float)

    stretches = [o.fits.mean_over_median.value if o.fits.mean_over_median else 1.0 for o in found]
    return Outcomes(
        workers=values(o.plan.workers for o in found),
        global_batch=values(o.plan.global_batch for o in found),
        step_time_s=values(o.step_time_s.value for o in found),
        examples=values(o.examples.value if o.examples else np.nan for o in found),
        mean_over_median=values(stretches),
        price_per_device_hour=cluster.price_per_device_hour,
        least_examples=np.array(found[0].fits.least_examples if found else np.nan),
    )


def ranked(
    found: Sequence[Option], cluster: Cluster, objective: Objective, limits: Limits
) -> tuple[list[Option], Floats]:
    """Order the options that keep the limits, best first, and give their scores."""
    if not found:
        return [], np.zeros(0)
    scores = limits.scores(objective, outcomes_of(found, cluster))
    order = [int(i) for i in np.argsort(scores, kind="stable") if np.isfinite(scores[i])]
    return [found[i] for i in order], scores[order]


def answer(best: Option, cluster: Cluster, bound: Bound, reference: Reference, why: dict[str, str]) -> Answer:
    """Make the answer from an option; `why` are reasons beside the usual ones."""
    plan, fits, time_s = best.plan, best.fits, best.time_s
    memory = memory_for(fits.memory, plan.workers, plan.zero_stage)
    price = cluster.price_per_device_hour
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
            **reasons(plan, bound, fits, cluster, reference),
            "warmup": warmup_reason(warmup),
            **why,
        },
        sources=sources(fits, memory, best.examples is not None),
    )


def reference_answer(
    fits: Fits, cluster: Cluster, workers: int, reference: Reference, pinned: BatchPlan | None = None
) -> tuple[Answer | None, str]:
    """Fall back to the reference batch and rate where no trial reached the target: no time to target then.

    Gives the answer, or why there is none.
    """
    if (why_not := _untimed(fits, workers)) is not None:
        return None, why_not
    try:
        plan = pinned or split_batch(reference.global_batch, workers, fits.memory, cluster, fits.zero_stage)
    except (BadInput, NothingFeasible) as error:
        return None, error.message
    assert fits.step_time is not None
    step_time_s = fits.step_time.predict(shape_of(plan, cluster.nodes_of(plan.workers)))
    option = Option(fits, plan, reference.learning_rate, step_time_s, None)
    return answer(option, cluster, "pinned plan" if pinned else "no evidence", reference, {}), ""


def _predicted(fits: Fits, cluster: Cluster, plans: Sequence[BatchPlan]) -> list[Option]:
    """Predict plans at the learning rates that the trials advise."""
    if not plans:
        return []
    assert fits.step_time is not None and fits.convergence is not None
    step_times = fits.step_time.predict_all([shape_of(p, cluster.nodes_of(p.workers)) for p in plans])
    found = []
    for plan, step_time_s in zip(plans, step_times, strict=True):
        batch = plan.global_batch
        examples = fits.examples[batch] if batch in fits.examples else fits.convergence.examples(batch)
        rate = round_rate(fits.convergence.learning_rate(batch))
        found.append(Option(fits, plan, rate, step_time_s, examples))
    return found


def _untimed(fits: Fits, workers: int) -> str | None:
    """Say why nothing is known of the step time on a worker count: synchronisation was never seen."""
    if fits.step_time is None:
        return "no step time was measured"
    if workers > 1 and not fits.synchronised:
        return "no step time was measured on more than one worker"
    return None
