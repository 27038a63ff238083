"""Branches of one state: their table, what they say in a sentence, and their curves."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from scaler.decide.config import BatchConfig
from scaler.fit.branching import BranchingFit
from scaler.records import BranchRecord
from scaler.report.figure import Axis, Figure, Point, Series
from scaler.report.wording import NOT_IDENTIFIABLE, counted, interval
from scaler.stats import Estimate
from scaler.units import format_count

BRANCH_HEADERS = (
    "global batch",
    "learning rate",
    "loss above the reference's",
    "examples for the same loss",
    "held-out loss above",
    "verdict",
)


def branch_lines(config: BatchConfig) -> list[tuple[str, ...]]:
    """Give a line of cells, as BRANCH_HEADERS names them, for each batch that was branched."""
    found = config.branching
    return [
        (
            format_count(result.global_batch),
            f"{result.learning_rate:g}",
            "diverged" if result.loss is None else _with_interval(result.difference, "{:+.2g}"),
            "1" if result.verdict == "reference" else _with_interval(result.slowdown, "{:.2f}", " x"),
            _with_interval(result.held_out_difference, "{:+.2g}"),
            result.verdict,
        )
        for result in (found.results if found is not None else ())
    ]


def branch_sentence(found: BranchingFit) -> str:
    """Say where the branches began, how long they were, and how they were judged."""
    start = (
        "the checkpoint"
        if found.start_examples is None
        else (f"one state, {format_count(found.start_examples)} examples into training")
    )
    critical = found.critical_batch
    if critical is not None:
        size = f"{format_count(critical.value)} (90% interval {interval(critical, format_count)})"
    elif found.critical_at_least is not None:
        size = f"at least {format_count(found.critical_at_least)}"
    else:
        size = NOT_IDENTIFIABLE
    return (
        f"From {start}, every batch trained {format_count(found.examples)} more examples in the same "
        f"{counted(found.results[0].seeds, 'order')}. Losses are means over the last half; one up to "
        f"{found.tolerance:.2g} above the reference's is not called losing. "
        f"The critical batch, where examples double, is {size}."
    )


def branches_figure(records: Iterable[BranchRecord], found: BranchingFit) -> Figure:
    """Show the mean training loss along the branches, one line a batch."""
    shown = {(result.global_batch, result.learning_rate) for result in found.results}
    runs: dict[int, list[BranchRecord]] = defaultdict(list)
    for run in records:
        if run.examples == found.examples and (run.plan.global_batch, run.learning_rate) in shown:
            runs[run.plan.global_batch].append(run)
    series = [
        Series(f"{format_count(batch)} (rate {own[0].learning_rate:g})", _points(own), "trace", number)
        for number, (batch, own) in enumerate(sorted(runs.items()))
    ]
    best = found.best
    return Figure(
        name="branches",
        title="Branches of one state",
        x=Axis("examples after the state", "examples"),
        y=Axis("training loss", log=True),
        series=tuple(one for one in series if one.points),
        ordered=True,
        caption=(
            f"Global batch {format_count(best.global_batch)} is the largest that does not lose. Mean "
            f"training loss of {counted(found.results[0].seeds, 'data order')} at each of "
            f"{counted(len(series), 'global batch', 'global batches')}, the same examples in each."
        ),
    )


def _points(runs: list[BranchRecord]) -> tuple[Point, ...]:
    """Average the losses of the parts that every run came through; a log axis has no place for others."""
    parts = min(sum(loss is not None for loss in run.losses) for run in runs)
    means = np.mean([[loss or 0.0 for loss in run.losses[:parts]] for run in runs], axis=0)
    part = runs[0].examples / runs[0].points
    return tuple(Point(part * (i + 0.5), float(loss)) for i, loss in enumerate(means) if loss > 0)


def _with_interval(estimate: Estimate | None, form: str, unit: str = "") -> str:
    if estimate is None:
        return ""
    value = f"{form.format(estimate.value)}{unit}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({form.format(estimate.low)} to {form.format(estimate.high)})"
