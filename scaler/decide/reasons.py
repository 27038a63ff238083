"""Why each number of an answer is what it is, in a sentence."""

from collections.abc import Sequence

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Bound
from scaler.decide.fits import Fits
from scaler.fit.learning_rate import batch_results
from scaler.fit.memory import MemoryFit, memory_for
from scaler.fit.step_time import StepTimeFit, shape_of
from scaler.fit.warmup import WarmupFit, WarmupLength
from scaler.units import format_bytes, format_count
from scaler.workload import Reference

_BOUNDS: dict[Bound, str] = {
    "memory": "device memory: in one pass a larger micro-batch would be faster",
    "dataset size": "the data set: one step takes all of it",
    "critical batch": "the critical batch: beyond it a step costs more examples than it saves time",
    "largest batch measured": "the largest batch measured: larger ones may be faster still",
    "pinned plan": "the pinned plan: nothing else was considered",
    "no evidence": "missing evidence: no batch that fits reached the target, so the reference batch is kept",
}


def reasons(
    plan: BatchPlan,
    bound: Bound,
    ranked_times: Sequence[tuple[int, float]],
    fits: Fits,
    cluster: Cluster,
    reference: Reference,
) -> dict[str, str]:
    """Give one sentence per number of the answer."""
    return {
        "global_batch": _global_batch(bound, ranked_times),
        "micro_batch": _micro_batch(plan, memory_for(fits.memory, plan.workers, plan.zero_stage), cluster),
        "accumulation": _accumulation(plan),
        "zero_stage": "as asked" if plan.zero_stage else "0: nothing is sharded",
        "learning_rate": _learning_rate(plan.global_batch, fits, reference),
        "step_time": _step_time(plan, fits.step_time, cluster),
        "bound_by": _BOUNDS[bound],
    }


def _global_batch(bound: Bound, ranked_times: Sequence[tuple[int, float]]) -> str:
    if not ranked_times or bound == "pinned plan":
        return _BOUNDS[bound]
    text = f"least predicted time to target of {len(ranked_times)} global batches"
    if len(ranked_times) > 1:
        (_, best_s), (runner_up, second_s) = ranked_times[:2]
        text += f"; the runner-up, {runner_up}, takes {second_s / best_s - 1:.1%} longer"
    return text


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


def _step_time(plan: BatchPlan, fit: StepTimeFit | None, cluster: Cluster) -> str:
    if fit is None:
        return "not measured"
    text = f"fitted to {fit.runs} launches on up to {fit.largest_workers} workers"
    if fit.is_extrapolated(shape_of(plan, cluster.nodes_of(plan.workers))):
        text += "; extrapolated beyond 4 x of what was measured"
    return text


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
