"""Why each number of an answer is what it is, in a sentence."""

import math
from collections.abc import Sequence

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Bound
from scaler.decide.fits import Fits
from scaler.fit.learning_rate import batch_results
from scaler.fit.memory import MemoryFit, memory_for
from scaler.fit.step_time import shape_of
from scaler.fit.warmup import WarmupFit, WarmupLength
from scaler.units import format_bytes, format_count
from scaler.workload import Reference

_BOUNDS: dict[Bound, str] = {
    "memory": "device memory: in one pass a larger micro-batch would be faster",
    "dataset size": "the data set: one step takes all of it",
    "critical batch": "the critical batch: beyond it a step costs more examples than it saves time",
    "largest batch measured": "the largest batch measured: larger ones may be faster still",
    "communication": "communication: workers wait for each other's gradients",
    "step overhead": "the fixed time of a pass, whatever its size",
    "worker count": "the worker count: more would be faster",
    "computation": "computation: no other limit, lifted, would save 2%",
    "pinned plan": "the pinned plan: nothing else was considered",
    "no evidence": "missing evidence: no batch that fits reached the target, so the reference batch is kept",
}


def reasons(
    plan: BatchPlan, bound: Bound, fits: Fits, cluster: Cluster, reference: Reference
) -> dict[str, str]:
    """Give one sentence per number of the answer."""
    return {
        "global_batch": _BOUNDS[bound],
        "micro_batch": _micro_batch(plan, memory_for(fits.memory, plan.workers, plan.zero_stage), cluster),
        "accumulation": _accumulation(plan),
        "zero_stage": "as asked" if plan.zero_stage else "0: nothing is sharded",
        "learning_rate": _learning_rate(plan.global_batch, fits, reference),
        "step_time": _step_time(plan, fits, cluster),
        "bound_by": _BOUNDS[bound],
    }


def stage_reason(stage: int, compared: Sequence[int]) -> str:
    """Say what the ZeRO stage was compared with."""
    others = ", ".join(str(other) for other in compared if other != stage)
    return f"{'sharded' if stage else 'nothing is sharded'}: better than the plans of stage {others}"


def batch_reason(objective: str, batches: Sequence[int], scores: Sequence[float]) -> str:
    """Say why the first of a worker count's ranked batches is taken."""
    text = f"{objective} of {len(batches)} global batches"
    if len(batches) > 1:
        text += f"; the runner-up, {batches[1]}, takes {scores[1] / scores[0] - 1:.1%} more"
    return text


def sources(fits: Fits, memory: MemoryFit | None, has_target: bool) -> dict[str, str]:
    """Say of each number from which records and which fit, or which file, it comes."""
    trials = f"{len(fits.trials)} training runs" if fits.trials else "no training run"
    launches = f"{fits.measured_step_time.runs} timed launches" if fits.measured_step_time else "no launch"
    peaks = f"{memory.samples} measured peaks" if memory is not None else "no peak"
    found = {
        "global_batch": "compared by the fits below",
        "micro_batch": f"memory fit, {peaks}",
        "accumulation": f"memory fit, {peaks}",
        "workers": "cluster file",
        "learning_rate": f"rate fit, {trials}" if has_target else "reference",
        "warmup": "reference, or runs at the answer",
        "step_time": f"step-time fit, {launches}",
        "samples_per_s": f"step-time fit, {launches}",
        "peak_memory": f"memory fit, {peaks}",
    }
    if has_target:
        found |= {
            "examples_to_target": f"steps fit, {trials}",
            "steps_to_target": f"steps fit, {trials}",
            "time_to_target": f"steps and step-time fits, {trials}, {launches}",
            "cost_to_target": "time to target; price in the cluster file",
        }
    return found


def _micro_batch(plan: BatchPlan, memory: MemoryFit | None, cluster: Cluster) -> str:
    if memory is None:
        return "memory was not measured"
    if cluster.devices:
        return _unequal(plan, memory, cluster)
    peak = memory.peak_bytes(plan.micro_batch, plan.accumulation).value
    largest = memory.max_micro_batch(cluster, plan.accumulation)
    text = (
        f"predicted peak {format_bytes(peak)} x {1 + cluster.margin:g} "
        f"+ {format_bytes(cluster.reserve_bytes)} reserve <= {format_bytes(memory.capacity_bytes)}; "
        f"the largest that fits is {largest}"
    )
    bare = memory.max_micro_batch(cluster.model_copy(update={"margin": 0.0}), plan.accumulation)
    return f"{text}, without the margin for unusual batches {bare}" if bare > largest else text


def _unequal(plan: BatchPlan, memory: MemoryFit, cluster: Cluster) -> str:
    ranks = [group for group in cluster.devices for _ in range(group.workers)]
    parts = {
        f"{size} on {group.device} with {format_bytes(group.device_memory_bytes)}, where "
        f"{memory.max_micro_batch(cluster, plan.accumulation, group.device_memory_bytes)} fit": None
        for size, group in zip(plan.micro_batches, ranks, strict=True)
    }
    return "; ".join(parts)


def _accumulation(plan: BatchPlan) -> str:
    if plan.accumulation == 1:
        return "1: the whole batch fits in one pass"
    return f"the least that divides the batch into passes that fit: {plan.arithmetic()}"


def _step_time(plan: BatchPlan, fits: Fits, cluster: Cluster) -> str:
    fit = fits.step_time
    if fit is None:
        return "not measured"
    text = f"fitted to {fit.runs} launches on up to {fit.largest_workers} workers"
    shape = shape_of(plan, cluster.nodes_of(plan.workers))
    if fit.is_extrapolated(shape):
        text += "; extrapolated beyond 4 x of what was measured"
    if fits.measured_step_time is None or fits.measured_step_time is fit:
        return text
    widths = [
        math.log((e.high or e.value) / (e.low or e.value))
        for e in (fits.measured_step_time.predict(shape), fit.predict(shape))
    ]
    return f"{text}; {fits.transfer.words}: the interval is {widths[1] / widths[0]:.1f} x as wide as there"


def warmup_reason(fit: WarmupFit | None) -> str:
    """Say where the warm-up comes from."""
    if fit is None:
        return (
            "kept at the reference's number of examples; its length is measured at the chosen configuration "
            "only, and was not here: no budget was left, the workload brings a schedule, or it is not chosen"
        )
    tried = ", ".join(_warmup_words(found) for found in fit.lengths)
    if fit.chosen_examples == fit.reference_examples:
        kept = f"kept at the reference's {format_count(fit.reference_examples)} examples"
        return f"{kept}: no length tried clearly needs fewer examples to target ({tried})"
    usual = format_count(fit.reference_examples)
    return f"needs fewer examples to target than the reference's {usual} ({tried})"


def _warmup_words(found: WarmupLength) -> str:
    if found.ratio is None:
        return f"{format_count(found.warmup_examples)}: too many more"
    seeds = f"{found.ratio.samples} seed{'s' if found.ratio.samples > 1 else ''}"
    return f"{format_count(found.warmup_examples)}: {found.ratio.value:.2f} x, {seeds}"


def _learning_rate(global_batch: int, fits: Fits, reference: Reference) -> str:
    fit = fits.convergence
    if fit is None or global_batch not in fits.reached:
        return f"the reference's, {reference.learning_rate:g}: no trial at this batch reached the target"
    rate, best = fit.learning_rate(global_batch), fit.rates.best_rate(global_batch)
    examples, seeds = fit.examples(global_batch), fit.seeds[global_batch].get(rate, 0)
    parts = [
        f"least expected examples to target by all trials together, {format_count(examples.value)}",
        f"trained with {seeds} seed{'s' if seeds > 1 else ''}" if seeds else "not tried itself",
        f"tried: {', '.join(f'{own:g}' for own in batch_results(fits.trials)[global_batch].rates)}",
        f"the best lies at {best.value:.3g} (90% interval {best.low:.3g} to {best.high:.3g})",
    ]
    if global_batch not in fit.rates.bracketed:
        parts.append("no worse one was tried on both sides")
    return "; ".join(parts)
