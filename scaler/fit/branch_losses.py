"""Losses of branches by batch and data order, and the reference's own curve that they are held against."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from scaler.records import BranchRecord
from scaler.stats import CONFIDENCE, Floats

_WINDOW = 0.5  # the last part of a stretch, over which losses are averaged


@dataclass(frozen=True)
class BranchGroup:
    """The branches with one global batch and rate, by data order."""

    runs: Sequence[BranchRecord]

    @property
    def growth(self) -> float:
        """Global batch over the reference's."""
        return self.runs[0].plan.global_batch / self.runs[0].reference_batch

    def windows(self) -> dict[int, float]:
        """Give each seed's mean loss over the window; infinite where it diverged."""
        return {run.seed: _window_mean(run) for run in self.runs}

    def held_out(self) -> dict[int, float]:
        """Give each seed's held-out loss at the end; infinite where it diverged."""
        losses = {run.seed: run.held_out_loss for run in self.runs}
        return {seed: float("inf") if loss is None else loss for seed, loss in losses.items()}

    @property
    def mean(self) -> float:
        """Mean over seeds; infinite where one diverged."""
        return float(np.mean(list(self.windows().values())))

    @property
    def is_finite(self) -> bool:
        """Whether no branch diverged."""
        return bool(np.isfinite(self.mean + sum(self.held_out().values())))

    def positions(self) -> Floats:
        """Tell how many examples the network had seen, on average, when the window's losses were taken."""
        run = self.runs[0]
        return _middles(run)[_first(run) :]


class ReferenceCurve:
    """The reference's mean training loss against examples: never rising, beyond its end on the last slope."""

    def __init__(self, reference: BranchGroup) -> None:
        losses = np.array([run.losses for run in reference.runs], dtype=np.float64)
        self._examples = _middles(reference.runs[0])
        self._loss: Floats = isotonic_regression(losses.mean(axis=0), increasing=False).x
        self._own = self._mean(reference.positions())
        trend = stats.linregress(np.tile(self._examples, len(losses)), losses.ravel())
        self.falls = bool(trend.slope < 0 and trend.pvalue < 1 - CONFIDENCE)
        """Whether it clearly falls: else no loss says how many examples it took."""

    def rise(self, group: BranchGroup, slowdown: float = 1.0) -> float:
        """Loss above the reference's if a group goes through this curve so many times slower."""
        return self._mean(group.positions() / slowdown) - self._own

    def _mean(self, examples: Floats) -> float:
        x, y = self._examples, self._loss
        slope = (y[-1] - y[len(y) // 2]) / max(x[-1] - x[len(x) // 2], 1.0)
        return float((np.interp(examples, x, y) + slope * np.maximum(0.0, examples - x[-1])).mean())


def latest_study(records: Iterable[BranchRecord]) -> list[BranchGroup]:
    """Group branches by batch and rate; of stretches of several lengths, those of the largest batch tried."""
    studies: dict[object, list[BranchRecord]] = defaultdict(list)
    for r in records:
        studies[r.start_examples, r.examples, r.reference_batch, r.rewarm_examples].append(r)
    groups: dict[tuple[int, float], list[BranchRecord]] = defaultdict(list)
    latest = max(studies.values(), key=_reach, default=[])
    for record in sorted(latest, key=lambda r: r.seed):
        groups[record.plan.global_batch, record.learning_rate].append(record)
    return [BranchGroup(groups[key]) for key in sorted(groups)]


def _reach(study: Sequence[BranchRecord]) -> tuple[int, int, int]:
    return max(run.plan.global_batch for run in study), study[0].examples, len(study)


def best_rates(groups: Sequence[BranchGroup]) -> list[BranchGroup]:
    """Keep of each batch the rate with the least loss, smallest batch first."""
    best: dict[int, BranchGroup] = {}
    for group in groups:
        batch = group.runs[0].plan.global_batch
        if batch not in best or group.mean < best[batch].mean:
            best[batch] = group
    return [best[batch] for batch in sorted(best)]


def _middles(run: BranchRecord) -> Floats:
    part = run.examples / run.points
    return np.array([part * i + (part - run.plan.global_batch) / 2 for i in range(run.points)])


def _first(run: BranchRecord) -> int:
    return int((1 - _WINDOW) * run.points)


def _window_mean(run: BranchRecord) -> float:
    finite = [loss for loss in run.losses if loss is not None]
    return float(np.mean(finite[_first(run) :])) if len(finite) == run.points else float("inf")


def differences(own: Mapping[int, float], others: Mapping[int, float]) -> Floats:
    """Take the differences of the seeds that both have, where all are finite: [seed]."""
    return np.array([own[seed] - others[seed] for seed in own if seed in others])


def spread(losses: Mapping[int, float]) -> float:
    """Standard deviation between data orders; 0 of a single one."""
    return float(np.std(list(losses.values()), ddof=1)) if len(losses) > 1 else 0.0
