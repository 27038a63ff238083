"""All figures of a report, as data. A figure without evidence is absent, never empty."""

from collections.abc import Sequence
from dataclasses import dataclass

from scaler.decide.config import BatchConfig
from scaler.fit.convergence import fit_convergence
from scaler.fit.optimizer import optimizer_of
from scaler.records import (
    BranchRecord,
    ConvergenceRecord,
    MemoryRecord,
    PredictionRecord,
    Record,
    ThroughputRecord,
)
from scaler.report.branches import branches_figure
from scaler.report.costs import memory_figure, step_time_figure, throughput_figure
from scaler.report.figure import Figure
from scaler.report.training import curves_figure, examples_figure, rates_figure

_NO_RUNS = "no throughput was measured"


@dataclass(frozen=True)
class Figures:
    """The figures that the evidence allows, in reading order, and why the others are absent."""

    present: tuple[Figure, ...]
    absent: tuple[str, ...]


def build_figures(
    config: BatchConfig, records: Sequence[Record], target: tuple[float, str] | None = None
) -> Figures:
    """Turn records into figures; `target` is the metric's value and 'max' or 'min'."""
    memory = [r for r in records if isinstance(r, MemoryRecord | PredictionRecord)]
    runs = [r for r in records if isinstance(r, ThroughputRecord)]
    trials = [r for r in records if isinstance(r, ConvergenceRecord) and r.kind == "convergence"]
    branches = [r for r in records if isinstance(r, BranchRecord)]
    fit = fit_convergence(trials, optimizer_of(records))
    no_target = "no learning rate reached the target at every seed" if trials else "no trial was run"
    found = (
        ("Examples to target", examples_figure(trials, fit), no_target),
        ("Learning rate", rates_figure(trials, fit), no_target),
        *([("Branches", branches_figure(branches, config.branching), "")] if config.branching else []),
        ("Training curves", curves_figure(trials, target), no_target),
        ("Step time", step_time_figure(runs), _NO_RUNS),
        ("Throughput", throughput_figure(runs), _NO_RUNS),
        (
            "Peak memory",
            memory_figure(memory, config.cluster.device_memory_bytes),
            "no peak memory was measured",
        ),
    )
    return Figures(
        present=tuple(figure for _, figure, _ in found if figure is not None),
        absent=tuple(f"{title}: {reason}." for title, figure, reason in found if figure is None),
    )
