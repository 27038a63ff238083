"""Figures of what a step costs: memory, time and throughput against the micro-batch."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from scaler.batch import BatchPlan
from scaler.fit.memory import MemoryFit, fit_memory
from scaler.fit.step_model import StepShape
from scaler.fit.step_time import StepTimeFit, fit_step_time, run_median_s
from scaler.fit.traced import TracedFit
from scaler.records import MemoryRecord, PredictionRecord, ThroughputRecord
from scaler.report.figure import Axis, Figure, Level, Point, Series
from scaler.report.wording import counted, micro_batch_words
from scaler.units import format_bytes, format_count, format_seconds

_MICRO_BATCH = Axis("micro-batch (examples per worker and pass)", "examples", log=True, doubling=True)
_CURVE_POINTS = 40

Runs = Sequence[ThroughputRecord]


def memory_figure(
    records: Iterable[MemoryRecord | PredictionRecord], capacity_bytes: int | None = None
) -> Figure | None:
    """Show peak memory against the micro-batch per worker count; None without a measured peak.

    `capacity_bytes` of one device; by default the least that the records name.
    """
    seen = list(records)
    fits = fit_memory(seen, capacity_bytes)
    probes = sorted(
        (r for r in seen if isinstance(r, MemoryRecord)),
        key=lambda r: (r.plan.workers, r.plan.accumulation > 1, r.plan.micro_batch),
    )
    measured = [r for r in probes if r.peak_bytes is not None]
    if not measured:
        return None
    capacity = capacity_bytes or min((r.capacity_bytes for r in probes if r.capacity_bytes), default=None)
    shapes: dict[str, list[MemoryRecord]] = defaultdict(list)
    for record in measured:
        shapes[_shape(record.plan, [r.plan for r in probes])].append(record)
    series: list[Series] = []
    for group, (label, own) in enumerate(shapes.items()):
        curve = _memory_curve(fits.get((own[0].plan.zero_stage, own[0].plan.workers)), own)
        points = tuple(Point(r.plan.micro_batch, float(r.peak_bytes or 0)) for r in own)
        series.append(Series(label, points, "points" if curve else "line", group))
        if curve:
            series.append(Series("", curve, "curve", group))
    failed = [r for r in probes if r.out_of_memory]
    if failed:
        height = float(capacity or max(r.peak_bytes or 0 for r in measured))
        marks = tuple(Point(r.plan.micro_batch, height) for r in failed)
        series.append(Series("out of memory", marks, "failed", len(shapes)))
    return Figure(
        name="memory",
        title="Peak memory",
        x=_MICRO_BATCH,
        y=Axis("peak memory per worker", "bytes", log=True, doubling=True),
        series=tuple(series),
        level=Level(capacity, f"device memory, {format_bytes(capacity)}") if capacity else None,
        caption=_memory_caption(measured, failed, capacity),
    )


def _memory_curve(fit: MemoryFit | None, own: Sequence[MemoryRecord]) -> tuple[Point, ...]:
    """Give the predicted peaks up to the largest measured; none without a prediction."""
    if not isinstance(fit, TracedFit):
        return ()
    largest = max(r.plan.micro_batch for r in own)
    sizes = np.unique(np.geomspace(1, largest, _CURVE_POINTS).round().astype(int))
    passes = own[0].plan.accumulation
    return tuple(Point(int(size), fit.peak_bytes(int(size), passes).value) for size in sizes)


def step_time_figure(records: Iterable[ThroughputRecord]) -> Figure | None:
    """Show every run's median step time with the fit; None without runs."""
    runs = _usable(records)
    fit = fit_step_time(runs)
    if fit is None:
        return None
    fastest, slowest = min(runs, key=run_median_s), max(runs, key=run_median_s)
    per_thousand = format_seconds(1000 * fit.per_example_s) if fit.per_example_s else "too little to tell"
    caption = (
        f"A step takes from {format_seconds(run_median_s(fastest))} ({_where(fastest.plan)}) to "
        f"{format_seconds(run_median_s(slowest))} ({_where(slowest.plan)}); the fit gives one pass "
        f"{format_seconds(fit.overhead_s)} whatever its size and {per_thousand} per 1,000 examples. "
        f"Each point is one run's median of steps after warm-up, {counted(len(runs), 'run')}; "
        "curves: the step-time fit."
    )
    return Figure(
        name="step-time",
        title="Step time",
        x=_MICRO_BATCH,
        y=Axis("step time", "seconds", log=True),
        series=_speed_series(runs, fit, lambda _, step_s: step_s),
        caption=caption,
    )


def throughput_figure(records: Iterable[ThroughputRecord]) -> Figure | None:
    """Show samples per second of every run with the fit; None without runs."""
    runs = _usable(records)
    fit = fit_step_time(runs)
    if fit is None:
        return None
    best = max(runs, key=_samples_per_s)
    caption = f"The most measured is {format_count(_samples_per_s(best))} samples/s ({_where(best.plan)})"
    least = min(run.plan.workers for run in runs)
    if least < best.plan.workers:
        base = max(_samples_per_s(run) for run in runs if run.plan.workers == least)
        caption += (
            f", {format_count(_samples_per_s(best) / base)} times the most on {counted(least, 'worker')}"
        )
    return Figure(
        name="throughput",
        title="Throughput",
        x=_MICRO_BATCH,
        y=Axis("samples/s over all workers", "plain", log=True),
        series=_speed_series(runs, fit, lambda plan, step_s: plan.global_batch / step_s),
        caption=f"{caption}. Each point is the global batch over one run's median step time, "
        f"{counted(len(runs), 'run')}; curves: the step-time fit.",
    )


def _usable(records: Iterable[ThroughputRecord]) -> Runs:
    return [r for r in records if len(r.step_times_s) > r.warmup_steps]


def _samples_per_s(run: ThroughputRecord) -> float:
    return run.plan.global_batch / run_median_s(run)


def _speed_series(
    runs: Runs, fit: StepTimeFit, height: Callable[[BatchPlan, float], float]
) -> tuple[Series, ...]:
    """Make points and a curve for each worker count and accumulation; `height` is of (plan, step time)."""
    by_shape: dict[tuple[int, int], list[ThroughputRecord]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: (r.plan.workers, r.plan.accumulation, r.plan.micro_batch)):
        by_shape[run.plan.workers, run.plan.accumulation].append(run)
    series = []
    for group, ((workers, accumulation), own) in enumerate(by_shape.items()):
        points = tuple(Point(r.plan.micro_batch, height(r.plan, run_median_s(r))) for r in own)
        passes = f", {accumulation} passes" if accumulation > 1 else ""
        series.append(Series(f"{counted(workers, 'worker')}{passes}", points, "points", group))
        sizes = np.geomspace(points[0].x, points[-1].x, _CURVE_POINTS).round().astype(int)
        shapes = [StepShape(own[0].nodes, workers, int(size), accumulation) for size in np.unique(sizes)]
        if len(shapes) > 1:
            curve = tuple(
                Point(
                    s.micro_batch, height(BatchPlan.equal(s.micro_batch, accumulation, workers), time_s.value)
                )
                for s, time_s in zip(shapes, fit.predict_all(shapes), strict=True)
            )
            series.append(Series("", curve, "curve", group))
    return tuple(series)


def _where(plan: BatchPlan) -> str:
    passes = f", {plan.accumulation} passes" if plan.accumulation > 1 else ""
    return f"micro-batch {micro_batch_words(plan)}{passes} on {counted(plan.workers, 'worker')}"


def _shape(plan: BatchPlan, plans: Iterable[BatchPlan]) -> str:
    stage = f", ZeRO {plan.zero_stage}" if len({p.zero_stage for p in plans}) > 1 else ""
    accumulating = ", accumulating" if plan.accumulation > 1 else ""
    return f"{counted(plan.workers, 'worker')}{stage}{accumulating}"


def _memory_caption(
    measured: Sequence[MemoryRecord], failed: Sequence[MemoryRecord], capacity: int | None
) -> str:
    top = max(measured, key=lambda r: (r.plan.micro_batch, r.peak_bytes or 0))
    of_capacity = f" of {format_bytes(capacity)}" if capacity else ""
    text = (
        f"The largest micro-batch measured, {format_count(top.plan.micro_batch)} examples on "
        f"{counted(top.plan.workers, 'worker')}, peaks at {format_bytes(top.peak_bytes or 0)}{of_capacity}"
    )
    if failed:
        text += f", and {format_count(min(r.plan.micro_batch for r in failed))} ran out of memory"
    else:
        text += ", and none ran out of memory"
    number = counted(len(measured) + len(failed), "measurement")
    return f"{text}. {number}, each the highest peak over two steps."
