"""The best measured learning rate at each global batch, and how it grows with the batch."""

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from scipy import stats

from scaler.records import ConvergenceRecord
from scaler.schema import Strict
from scaler.stats import CONFIDENCE, Estimate


class BatchResult(Strict):
    """What the trials of one global batch came to."""

    global_batch: int
    rates: tuple[float, ...]
    """Learning rates tried, ascending."""
    best_rate: float | None
    """Fewest examples among the rates at which every seed reached the target; None if there is none."""
    examples: tuple[int, ...]
    """Examples to target at the best rate, one per seed."""

    @property
    def mean_examples(self) -> float:
        """Mean over seeds; infinite where the target was not reached."""
        return float(np.mean(self.examples)) if self.examples else math.inf

    def edge(self) -> int:
        """Tell where the best rate lies in the grid: -1 lowest, 1 highest, 0 within."""
        if self.best_rate is None or len(self.rates) < 2:
            return 0
        return -1 if self.best_rate == self.rates[0] else int(self.best_rate == self.rates[-1])


def batch_results(records: Iterable[ConvergenceRecord]) -> dict[int, BatchResult]:
    """Group trials by global batch and choose each one's best rate."""
    trials: dict[int, dict[float, list[ConvergenceRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        # A deadline says nothing of the rate.
        if record.kind == "convergence" and record.stop != "deadline":
            trials[record.plan.global_batch][record.learning_rate].append(record)
    return {batch: _result(batch, by_rate) for batch, by_rate in sorted(trials.items())}


def rate_exponent(results: Iterable[BatchResult]) -> Estimate | None:
    """Fit p in lr ~ B^p over the batches that reached the target; None under three.

    The interval treats the grid's spacing as the error of each best rate, and is wide for it.
    """
    found = [r for r in results if r.best_rate is not None]
    if len(found) < 3:
        return None
    x, y = np.log(np.array([(r.global_batch, r.best_rate) for r in found], dtype=float)).T
    slope, intercept = (float(term) for term in np.polyfit(x, y, 1))
    dof = len(found) - 2
    scatter = float(((y - intercept - slope * x) ** 2).sum()) / dof
    spacings = [math.log(r.rates[-1] / r.rates[0]) / (len(r.rates) - 1) for r in found if len(r.rates) > 1]
    # The true best lies anywhere within half a spacing: a uniform error, of variance spacing^2 / 12.
    grid = float(np.mean(np.square(spacings))) / 12 if spacings else 0.0
    error = math.sqrt(max(scatter, grid) / float(((x - x.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, dof)) * error
    return Estimate(
        value=slope,
        low=slope - half if spacings else None,
        high=slope + half if spacings else None,
        samples=len(found),
        method="least squares of log best rate on log batch, error at least the grid's; t",
    )


def _result(batch: int, by_rate: dict[float, list[ConvergenceRecord]]) -> BatchResult:
    most = max(len(trials) for trials in by_rate.values())
    complete = {
        rate: tuple(t.examples for t in sorted(trials, key=lambda t: t.seed))
        for rate, trials in by_rate.items()
        if len(trials) == most and all(t.reached for t in trials)
    }
    best = min(complete, key=lambda rate: float(np.mean(complete[rate])), default=None)
    return BatchResult(
        global_batch=batch,
        rates=tuple(sorted(by_rate)),
        best_rate=best,
        examples=complete[best] if best is not None else (),
    )
