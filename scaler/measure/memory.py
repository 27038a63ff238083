"""Which memory to measure: the prediction first, then a few probes for every way of spreading in use."""

from collections.abc import Callable, Sequence
from functools import partial

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.plans import largest_passes
from scaler.errors import NothingFeasible
from scaler.fit.memory import MemoryFits, fit_memory
from scaler.fit.traced import TracedFit
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence, plan_task
from scaler.measure.largest import AskPeak, climb, find_largest, shrink
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.prediction import PredictionRequest, probe_prediction
from scaler.records import MemoryRecord, PredictionRecord, WorkloadRecord
from scaler.runtime.protocol import Task
from scaler.units import bill_lines, format_bytes

_SMALLEST_MICRO_BATCH = 8
_ROOMIER = 1.1  # times the examples of a pass, to make another ZeRO stage worth measuring


def measure_memory(
    evidence: Evidence,
    launch: LaunchConfig,
    sizes: WorkloadRecord,
    counts: Sequence[int],
    batches: Sequence[int],
) -> MemoryFits:
    """Predict peaks, and probe the largest micro-batch that is of use or fits.

    Without ZeRO one worker differs from several (no buckets), and several do not differ.

    Raises:
        NothingFeasible: micro-batch 1 does not fit.
    """
    stage, cluster = launch.stage, launch.cluster
    # Convergence trials run on one worker, unsharded, where that fits.
    shapes = sorted({(0, 1), *((stage, count) for count in (counts if stage else (counts[0], *counts[1:2])))})
    useful = {workers: min(max(batches), sizes.train_examples // workers) for _, workers in shapes}
    predictions = _predictions(evidence, cluster, shapes, max(useful.values()))
    found: list[MemoryRecord | PredictionRecord] = [*predictions]
    for zero_stage, workers in shapes:
        known = partial(_fit, predictions, cluster, (zero_stage, workers))
        ask = partial(_ask_peak, evidence, cluster, known, sizes.train_examples, workers, zero_stage)
        if known([]) is None:
            measured = _ladder(ask, cluster, useful[workers])
        else:
            measured = find_largest(ask, known, cluster, useful[workers])
        found += measured
        fitting = sorted(r.plan.micro_batch for r in measured if not r.too_large)
        if measured and not fitting and zero_stage == stage:
            raise _too_big(cluster, sizes, measured[-1], predictions, (zero_stage, workers))
        if fitting:
            # Gradients live through the next forward pass when accumulating; large passes show it best.
            fit = known(measured)
            most = fit.max_micro_batch(cluster, accumulation=2) if fit is not None else fitting[-1]
            twice = max(1, min(most, fitting[-1], useful[workers] // 2))
            found += shrink(partial(ask, accumulation=2), twice, 0.5)
    return fit_memory(found, cluster.capacity_bytes())


def roomier_stages(
    evidence: Evidence,
    launch: LaunchConfig,
    sizes: WorkloadRecord,
    batches: Sequence[int],
    fits: MemoryFits,
) -> list[LaunchConfig]:
    """Give the launch at each ZeRO stage that by prediction lets a pass on all workers hold more.

    None where the largest batch fits in one pass as it is, or nothing is predicted.
    """
    cluster = launch.cluster
    workers, largest = cluster.max_workers, min(max(batches), sizes.train_examples)
    held = sum(largest_passes(workers, fits, cluster, launch.stage))
    if workers == 1 or held >= largest:
        return []
    shapes = [(stage, workers) for stage in range(launch.stage + 1, 4)]
    found = []
    predicted = _predictions(evidence, cluster, shapes, -(-largest // workers))
    known = fit_memory(predicted, cluster.capacity_bytes())
    for stage, _ in sorted(known):
        room = sum(largest_passes(workers, known, cluster, stage))
        if room > _ROOMIER * held:
            held = room
            found.append(launch.model_copy(update={"zero_stage": stage}))
    return found


def _predictions(
    evidence: Evidence, cluster: Cluster, shapes: Sequence[tuple[int, int]], largest: int
) -> list[PredictionRecord]:
    """Ask for the prediction; none where the budget is spent or the model cannot be traced."""
    spread = tuple((workers, stage) for stage, workers in shapes)
    task = Task(probe_prediction, PredictionRequest(spread, largest, cluster))
    return [record for record in evidence.ask("memory", [task]) if isinstance(record, PredictionRecord)]


def _fit(
    predictions: Sequence[PredictionRecord],
    cluster: Cluster,
    shape: tuple[int, int],
    measured: Sequence[MemoryRecord],
) -> TracedFit | None:
    fit = fit_memory([*predictions, *measured], cluster.capacity_bytes()).get(shape)
    return fit if isinstance(fit, TracedFit) else None


def _ladder(ask: AskPeak, cluster: Cluster, largest: int) -> list[MemoryRecord]:
    """Probe widely where nothing is predicted: double, then the largest that a fit says fits."""
    measured = climb(ask, _SMALLEST_MICRO_BATCH, largest)
    if any(r.peak_bytes for r in measured) and any(r.too_large for r in measured):
        (fit,) = fit_memory(measured, cluster.capacity_bytes()).values()
        measured += shrink(ask, fit.max_micro_batch(cluster))
    return measured


def _ask_peak(
    evidence: Evidence,
    cluster: Cluster,
    known: Callable[[list[MemoryRecord]], TracedFit | None],
    train_examples: int,
    workers: int,
    zero_stage: int,
    micro_batch: int,
    accumulation: int = 1,
) -> list[MemoryRecord]:
    """Ask for one peak: its record, or none where the budget is spent.

    On unequal devices `micro_batch` is the smallest device's; the others take what fits them in proportion.
    """
    plan = BatchPlan.equal(micro_batch, accumulation, workers, zero_stage)
    unequal = bool(cluster.devices) and workers == cluster.max_workers
    if unequal and (fit := known([])) is not None:
        most = [fit.max_micro_batch(cluster, 1, cluster.capacity_bytes(rank)) for rank in range(workers)]
        share = min(micro_batch / max(1, min(most)), train_examples / (accumulation * sum(most)))
        entries = tuple(max(1, int(own * share)) for own in most)
        plan = BatchPlan(micro_batches=entries, accumulation=accumulation, zero_stage=zero_stage)
    task = plan_task(probe_memory, MemoryRequest(plan))
    return [record for record in evidence.ask("memory", [task]) if isinstance(record, MemoryRecord)]


def _too_big(
    cluster: Cluster,
    sizes: WorkloadRecord,
    record: MemoryRecord,
    predictions: Sequence[PredictionRecord],
    shape: tuple[int, int],
) -> NothingFeasible:
    capacity_bytes = cluster.capacity_bytes() or record.capacity_bytes or 0
    lines = [
        f"the model ({sizes.parameters:,} parameters) runs out of memory at micro-batch 1 on a device of "
        f"{cluster.name} with {format_bytes(capacity_bytes)}"
    ]
    for curve in (c for p in predictions for c in p.prediction.curves):
        if (curve.zero_stage, curve.workers) == shape and not curve.accumulating:
            lines[0] += f"; predicted {format_bytes(curve.bills[0].peak_bytes)}:"
            lines += bill_lines(curve.bills[0].items)
    return NothingFeasible(
        "\n".join(lines),
        hint="use a device with more memory, a higher zero_stage, activation checkpointing, shorter examples "
        "or a smaller model; `scaler plan` shows what each ZeRO stage needs",
    )
