"""Examples to target against the global batch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

from scaler.fit.learning_rate import BatchResult
from scaler.schema import Strict
from scaler.stats import CONFIDENCE, Estimate, log_estimate

_METHOD = "E_min (1 + B / B_crit), least squares on the log scale; t"
_IDENTIFIED = np.log(10.0)  # half-width of log B_crit's interval beyond which the curve has not bent

Floats = NDArray[np.float64]


class StepsFit(Strict):
    """E(B) = E_min (1 + B / B_crit) (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11)."""

    log_min_examples: float
    log_critical_batch: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    bent: bool
    """Whether the data reject both a constant and a proportional number of examples."""
    log_variance: float
    degrees_of_freedom: int
    samples: int
    smallest_batch: int
    largest_batch: int

    @property
    def identifiable(self) -> bool:
        """Whether the curve has bent enough to tell the critical batch within a factor of ten."""
        if self.degrees_of_freedom < 1 or not self.bent:
            return False
        quantile = float(student.ppf(0.5 + CONFIDENCE / 2, self.degrees_of_freedom))
        return bool(quantile * np.sqrt(self.covariance[1][1]) < _IDENTIFIED)

    def critical_batch(self) -> Estimate | None:
        """Give B_crit in examples, or None where the data cannot identify it."""
        if not self.identifiable:
            return None
        error = float(np.sqrt(self.covariance[1][1]))
        return log_estimate(self.log_critical_batch, error, self.degrees_of_freedom, self.samples, _METHOD)

    def examples(self, global_batch: int, n_seeds: int = 1) -> Estimate:
        """Predict the mean examples to target over `n_seeds` fresh runs."""
        value, slope = _model(np.array([self.log_min_examples, self.log_critical_batch]), float(global_batch))
        variance = float(slope @ np.array(self.covariance) @ slope) + self.log_variance / n_seeds
        return log_estimate(value, float(np.sqrt(variance)), self.degrees_of_freedom, self.samples, _METHOD)

    def is_extrapolated(self, global_batch: int) -> bool:
        """Whether a batch lies beyond 4 x of what was measured."""
        return global_batch > 4 * self.largest_batch or 4 * global_batch < self.smallest_batch


def fit_steps(results: Iterable[BatchResult]) -> StepsFit | None:
    """Fit the hyperbola to every seed's examples at each batch's best rate; None under two batches."""
    reached = [r for r in results if r.best_rate is not None]
    if len(reached) < 2:
        return None
    batches = np.array([r.global_batch for r in reached for _ in r.examples], dtype=float)
    logs = np.log(np.array([e for r in reached for e in r.examples], dtype=float))
    start = np.array([logs.min(), np.log(np.median(batches))])
    found = least_squares(
        lambda p: np.array([_model(p, b)[0] for b in batches]) - logs,
        start,
        jac=lambda p: np.array([_model(p, b)[1] for b in batches]),
        bounds=([0, np.log(batches.min()) - 7], [np.inf, np.log(batches.max()) + 7]),
    )
    dof = len(logs) - 2
    variance = float((found.fun**2).sum() / dof) if dof > 0 else 0.0
    covariance = variance * np.linalg.pinv(found.jac.T @ found.jac)
    straight = min(((y - y.mean()) ** 2).sum() for y in (logs, logs - np.log(batches)))
    quantile = float(student.ppf(0.5 + CONFIDENCE / 2, dof)) if dof > 0 else 0.0
    return StepsFit(
        log_min_examples=float(found.x[0]),
        log_critical_batch=float(found.x[1]),
        covariance=(tuple(map(float, covariance[0])), tuple(map(float, covariance[1]))),
        bent=bool(straight - (found.fun**2).sum() > quantile**2 * variance),
        log_variance=variance,
        degrees_of_freedom=max(dof, 0),
        samples=len(logs),
        smallest_batch=int(batches.min()),
        largest_batch=int(batches.max()),
    )


def _model(parameters: Floats, batch: float) -> tuple[float, Floats]:
    """Give log E and its gradient with respect to (log E_min, log B_crit)."""
    ratio = batch / np.exp(parameters[1])
    return float(parameters[0] + np.log1p(ratio)), np.array([1.0, -ratio / (1 + ratio)])
