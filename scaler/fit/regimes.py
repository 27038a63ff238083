"""What training with batch size 1, mini-batches and the full batch showed: noise, time and progress."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from scaler.records import BatchRegime, CostCurve, RegimesRecord
from scaler.schema import Strict
from scaler.stats import Estimate, Floats, block_bootstrap

_METHOD = "over the second half of the run's steps"


class Arrival(Strict):
    """What it took to the lowest cost that every regime reached."""

    iterations: int
    epochs: float
    time_s: float


class RegimeFit(Strict):
    """One regime. Intervals hold the variation within its one run, not between runs."""

    batch: int
    passes: int
    """Accumulated for a step."""
    learning_rate: float
    rate_factor: float
    """On the rate that square-root scaling from the reference gives."""
    stop: Literal["limit", "deadline", "diverged", "undefined"]
    reason: str
    iterations: int
    planned_iterations: int
    epochs: float
    train_time_s: float
    epoch_time_s: Estimate | None
    noise: Estimate | None
    """Standard deviation of a step's cost from one step to the next."""
    rises: float | None
    """Share of the steps whose cost was above the one before."""
    unrest: Estimate | None
    """As `noise`, of the cost over the whole sample from one snapshot to the next: what the weights do."""
    start_cost: float | None
    end_cost: float | None
    lowest_cost: float | None
    spans_plane: bool
    """Whether the path took part in choosing the plane; one that got nowhere does not."""
    end: tuple[float, float] | None
    """Where in the plane the path ends."""
    arrival: Arrival | None


class RegimesFit(Strict):
    """All regimes of a record, smallest batch first."""

    workload: str
    train_examples: int
    data_examples: int
    sample_examples: int
    budget_s: float
    batch_statistics: tuple[str, ...]
    explained: tuple[float, float] | None
    common_cost: float | None
    """The lowest cost that every regime which trained reached."""
    regimes: tuple[RegimeFit, ...]


def fit_regimes(record: RegimesRecord) -> RegimesFit:
    """Read a record's regimes."""
    common = _common_cost(record.regimes)
    return RegimesFit(
        workload=record.name,
        train_examples=record.train_examples,
        data_examples=record.data_examples,
        sample_examples=record.sample_examples,
        budget_s=record.budget_s,
        batch_statistics=record.batch_statistics,
        explained=record.explained,
        common_cost=common,
        regimes=tuple(_fit(regime, record.data_examples, common) for regime in record.regimes),
    )


def _fit(regime: BatchRegime, data_examples: int, common: float | None) -> RegimeFit:
    batch, curve = regime.plan.global_batch, regime.curve
    costs = [snapshot.cost for snapshot in regime.path if snapshot.cost is not None]
    ended = regime.stop in ("limit", "deadline") and regime.path
    return RegimeFit(
        batch=batch,
        passes=regime.plan.accumulation,
        learning_rate=regime.learning_rate,
        rate_factor=regime.rate_factor,
        stop=regime.stop,
        reason=regime.reason,
        iterations=regime.iterations,
        planned_iterations=regime.planned_iterations,
        epochs=regime.iterations * batch / data_examples,
        train_time_s=regime.train_time_s,
        epoch_time_s=_epoch_time_s(curve, data_examples / batch) if curve else None,
        noise=_noise(curve) if curve else None,
        rises=sum(curve.rises) / (regime.iterations - 1) if curve and regime.iterations > 1 else None,
        unrest=_unrest(regime),
        start_cost=costs[0] if costs else None,
        end_cost=regime.path[-1].cost if ended else None,
        lowest_cost=min(costs, default=None),
        spans_plane=regime.spans_plane,
        end=(regime.path[-1].x, regime.path[-1].y) if ended else None,
        arrival=_arrival(regime, common, batch / data_examples) if common is not None else None,
    )


def _epoch_time_s(curve: CostCurve, steps: float) -> Estimate:
    """Take the median block's time of a step, times the steps of an epoch."""
    blocks = np.diff(curve.time_s, prepend=0.0) / np.diff(curve.iterations, prepend=0)
    low, high = block_bootstrap(blocks, lambda rows: float(np.median(rows))) or (None, None)
    step = Estimate(
        value=float(np.median(blocks)),
        low=low,
        high=high,
        samples=len(blocks),
        method="median block of steps, block bootstrap within one run",
    )
    return step.scaled(steps)


def _noise(curve: CostCurve) -> Estimate | None:
    lengths = np.diff(curve.iterations, prepend=0)
    later = np.asarray(curve.iterations) > curve.iterations[-1] / 2
    later[0] = False  # the first step has none before it
    return _deviation(np.asarray(curve.squared_change)[later], lengths[later].astype(float))


def _unrest(regime: BatchRegime) -> Estimate | None:
    """Take changes between neighbouring snapshots, whatever the steps between them."""
    half = regime.iterations / 2
    costs = [s.cost for s in regime.path if s.iteration >= half and s.cost is not None]
    return _deviation(np.diff(costs) ** 2, np.ones(max(0, len(costs) - 1)))


def _deviation(squared_changes: Floats, weights: Floats) -> Estimate | None:
    """Estimate a standard deviation from successive differences, which a trend hardly touches.

    Half the mean squared successive difference is the variance (von Neumann et al. 1941).
    """
    if not len(squared_changes):
        return None

    def deviation(rows: Floats) -> float:
        return float(np.sqrt(np.average(rows[:, 0], weights=rows[:, 1]) / 2))

    rows = np.column_stack([squared_changes, weights])
    low, high = block_bootstrap(rows, deviation) or (None, None)
    return Estimate(value=deviation(rows), low=low, high=high, samples=len(rows), method=_METHOD)


def _common_cost(regimes: Sequence[BatchRegime]) -> float | None:
    lowest = [
        min(snapshot.cost for snapshot in regime.path if snapshot.cost is not None)
        for regime in regimes
        if regime.spans_plane
    ]
    return max(lowest) if len(lowest) > 1 else None


def _arrival(regime: BatchRegime, common: float, epochs_a_step: float) -> Arrival | None:
    """Find the first snapshot at or below the common cost."""
    for snapshot in regime.path:
        if snapshot.cost is not None and snapshot.cost <= common:
            return Arrival(
                iterations=snapshot.iteration,
                epochs=snapshot.iteration * epochs_a_step,
                time_s=snapshot.time_s,
            )
    return None
