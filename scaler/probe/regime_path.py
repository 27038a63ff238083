"""One regime's training: the cost of every step, and the weights on the way."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector

from scaler.batch import BatchPlan
from scaler.engine.data import rank_steps
from scaler.engine.open import open_engine
from scaler.errors import WorkloadError
from scaler.probe.trajectories import Floats, Weights
from scaler.records import BatchRegime, CostCurve, Snapshot
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

SINGLE_STEPS, BLOCKS = 250, 250  # of a curve: the first steps one by one, then so many blocks at most
ENDED = ("limit", "deadline")  # with weights to look at
NOWHERE = 0.1  # of the largest drop in cost; who drops by less got nowhere
_ONE_VALUE = "more than 1 value per channel"  # torch's words where BatchNorm meets a single value


@dataclass(frozen=True)
class Moment:
    """When weights were kept, and in which row."""

    iteration: int
    time_s: float
    row: int


@dataclass
class Path:
    """One regime in training."""

    plan: BatchPlan
    learning_rate: float
    rate_factor: float
    planned_iterations: int
    stop: Literal["limit", "deadline", "diverged", "undefined"] = "limit"
    reason: str = ""
    train_time_s: float = 0.0
    costs: list[float] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def regime(self, costs: Sequence[float], at: Floats, spans_plane: bool) -> BatchRegime:
        """Give the record, once cost and place [rows, 2] of all weights are known."""
        return BatchRegime(
            plan=self.plan,
            learning_rate=self.learning_rate,
            rate_factor=self.rate_factor,
            stop=self.stop,
            reason=self.reason,
            planned_iterations=self.planned_iterations,
            iterations=len(self.costs),
            train_time_s=self.train_time_s,
            curve=thinned(self.costs, self.times_s) if self.costs else None,
            path=tuple(
                Snapshot(
                    iteration=moment.iteration,
                    time_s=moment.time_s,
                    cost=costs[moment.row] if math.isfinite(costs[moment.row]) else None,
                    x=float(at[moment.row, 0]),
                    y=float(at[moment.row, 1]),
                )
                for moment in self.moments
            ),
            spans_plane=spans_plane,
        )

    def last_cost(self) -> float:
        """Average the last tenth of its steps' costs."""
        return float(np.mean(self.costs[-max(1, len(self.costs) // 10) :]))


def progressing(paths: Sequence[Path], costs: Sequence[float]) -> list[bool]:
    """Say which paths ended well below the cost they started from: others would stretch the plane."""
    drops = [
        costs[path.moments[0].row] - costs[path.moments[-1].row] if path.stop in ENDED else -math.inf
        for path in paths
    ]
    most = max((drop for drop in drops if math.isfinite(drop)), default=0.0)
    return [drop > NOWHERE * max(0.0, most) for drop in drops]


def train_path(
    path: Path,
    rank: Rank,
    workload: Workload,
    data: Any,
    seed: int,
    weights: Weights,
    snapshots: int,
    time_limit_s: float,
) -> None:
    """Train until the planned steps, the time limit (of training alone) or a cost that is not finite.

    A fault of the workload with batches of one example is its answer, not an end.

    Raises:
        WorkloadError: a function of the workload raises at a larger batch.
    """
    engine = open_engine(workload, path.plan, rank, path.learning_rate, seed)
    due = snapshot_iterations(path.planned_iterations, snapshots)

    def keep() -> None:
        vector = parameters_to_vector(engine.module.parameters()).detach().float()
        if torch.isfinite(vector).all():
            row = weights.append(vector.cpu().numpy())
            path.moments.append(Moment(len(path.costs), path.train_time_s, row))

    keep()
    batches = rank_steps(workload, data, path.plan, rank.rank, seed)
    warmup_examples = workload.reference.warmup_examples
    for iteration in range(1, path.planned_iterations + 1):
        started = time.perf_counter()
        factor = workload.learning_rate_factor(iteration * path.plan.global_batch, warmup_examples)
        try:
            cost = float(engine.step(next(batches), factor))
        except WorkloadError as error:
            if path.plan.global_batch > 1:
                raise
            path.stop, path.reason = "undefined", _reason(error)
            break
        rank.device.synchronize()
        path.train_time_s += time.perf_counter() - started
        if not math.isfinite(cost):
            path.stop = "diverged"
            break
        path.costs.append(cost)
        path.times_s.append(path.train_time_s)
        if iteration in due:
            keep()
        if path.train_time_s > time_limit_s and iteration < path.planned_iterations:
            path.stop = "deadline"
            break
    if path.moments[-1].iteration < len(path.costs):
        keep()
    engine.close()


def snapshot_iterations(planned: int, snapshots: int) -> set[int]:
    """Choose after which steps to keep the weights: close together at first, where they move fastest."""
    return {math.ceil(planned * (k / (snapshots - 1)) ** 3) for k in range(1, snapshots)}


def thinned(costs: Sequence[float], times_s: Sequence[float]) -> CostCurve:
    """Keep 250 costs, and the training time after each; put the others into at most 250 blocks."""
    values = np.asarray(costs)
    changes = np.diff(values, prepend=values[0])
    block = max(1, -(-(len(values) - SINGLE_STEPS) // BLOCKS))
    single = np.arange(min(SINGLE_STEPS, len(values)))
    starts = np.concatenate([single, np.arange(SINGLE_STEPS, len(values), block)])
    ends = np.append(starts[1:], len(values))

    def per_block(numbers: Floats) -> Floats:
        found: Floats = np.add.reduceat(numbers, starts) / (ends - starts)
        return found

    return CostCurve(
        iterations=tuple(ends.tolist()),
        time_s=tuple(np.asarray(times_s)[ends - 1].tolist()),
        mean=tuple(per_block(values).tolist()),
        low=tuple(np.minimum.reduceat(values, starts).tolist()),
        high=tuple(np.maximum.reduceat(values, starts).tolist()),
        squared_change=tuple(per_block(changes**2).tolist()),
        rises=tuple(np.add.reduceat((changes > 0).astype(int), starts).tolist()),
    )


def _reason(error: WorkloadError) -> str:
    if _ONE_VALUE in error.message:
        return "batch statistics of one example are undefined"
    return f"a batch of one example fails: {error.message.splitlines()[0]}"
