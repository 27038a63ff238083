"""The best measured learning rate at each global batch, and the fit of all trials."""

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from scaler.fit.optimizer import Optimizer
from scaler.fit.rate_curve import Trial
from scaler.fit.rate_fit import RateFit, fit_examples
from scaler.records import ConvergenceRecord
from scaler.schema import Strict


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


def telling(records: Iterable[ConvergenceRecord]) -> list[ConvergenceRecord]:
    """Leave out other kinds of training runs, and those that a deadline cut: it says nothing of the rate.

    In the order of questions: the same trials then are the same fit, and it is not done twice.
    """
    told = (record for record in records if record.kind == "convergence" and record.stop != "deadline")
    return sorted(told, key=lambda record: record.task)


def batch_results(records: Iterable[ConvergenceRecord]) -> dict[int, BatchResult]:
    """Group trials by global batch and choose each one's best rate."""
    trials: dict[int, dict[float, list[ConvergenceRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in telling(records):
        trials[record.plan.global_batch][record.learning_rate].append(record)
    return {batch: _result(batch, by_rate) for batch, by_rate in sorted(trials.items())}


def fit_learning_rates(records: Iterable[ConvergenceRecord], optimizer: Optimizer) -> RateFit | None:
    """Fit examples to target against rate and batch, all trials together; None where none reached it.

    A trial that was stopped needs more than what it had seen.
    """
    return fit_examples(
        [
            Trial(
                record.plan.global_batch,
                math.log(record.learning_rate),
                math.nan if record.stop == "diverged" else math.log(record.examples),
                bounded=not record.reached,
            )
            for record in telling(records)
            if record.examples or record.stop == "diverged"
        ],
        optimizer.growth,
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
