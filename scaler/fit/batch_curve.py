"""Curves of examples to target over the global batch, and what is believed of them before any data.

    log E(B) = log E_min + (steepness / sharpness) log(1 + (B / B_crit)^sharpness) + log(1 + B_low / B)

Sharpness and steepness 1 and B_low 0 give the hyperbola E_min (1 + B / B_crit) (McCandlish et al. 2018,
arXiv 1812.06162, eq. 2.11). A sharper bend is what perfect scaling up to a limit looks like (Shallue et al.
2018, arXiv 1811.03600); a steeper rise, steps that grow with the batch, as at a rate that no longer fits;
B_low, an optimum in the middle, where small batches are too noisy for their rate. At B_crit the slope
d log E / d log B is half of what it becomes.

A curve is one of a grid, so that the evidence for each can be weighed: no search, no local optimum.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scaler.stats import Floats

_CRITICAL_BATCHES = 81  # of the grid
_REACH = 3.2  # standard deviations that it spans
_RISES = (-1.0, 0.0, 1.0, 2.0)  # log B_low over the smallest batch
_NONE = -np.inf


@dataclass(frozen=True)
class CurvePriors:
    """What is believed of any workload before it is measured.

    The defaults predict larger batches of public workloads best; `benchmarks/steps.py` says how they were
    chosen and scores each workload with what the others choose.
    """

    critical_mean: float = 0.0
    """Of log B_crit over the largest batch known."""
    critical_deviation: float = 2.5
    sharpness: tuple[tuple[float, float], ...] = ((1.0, 0.3), (1.5, 0.35), (2.5, 0.2), (4.0, 0.15))
    """Each with its probability."""
    steepness: tuple[tuple[float, float], ...] = ((1.0, 0.6), (1.4, 0.4))
    rise: float = 0.1
    """Probability of an optimum in the middle."""
    drift: tuple[tuple[float, float], ...] = ((0.02, 0.7), (0.06, 0.2), (0.15, 0.1))
    """Standard deviation of what bends away from the curve and returns over `drift_doublings`."""
    drift_doublings: float = 1.0
    own: float = 0.02
    """Standard deviation of what one batch has of its own, of log E: its rate is never quite the best."""
    noise: float = 0.08
    """Standard deviation of log E between seeds, as strong as `noise_dof` further runs."""
    noise_dof: float = 2.0


class Curves:
    """The grid of curves for batches known to lie between two logarithms."""

    def __init__(self, priors: CurvePriors, log_smallest: float, log_largest: float) -> None:
        middle, deviation = log_largest + priors.critical_mean, priors.critical_deviation
        critical = np.linspace(middle - _REACH * deviation, middle + _REACH * deviation, _CRITICAL_BATCHES)
        weights = stats.norm.pdf(critical, middle, deviation)
        rises = [(_NONE, 1 - priors.rise)]
        rises += [(log_smallest + rise, priors.rise / len(_RISES)) for rise in _RISES]
        rows = [
            (log_critical, sharpness, steepness, log_low, weight * own * other * rise)
            for (log_critical, weight), (sharpness, own), (steepness, other), (log_low, rise) in (
                itertools.product(
                    zip(critical, weights, strict=True), priors.sharpness, priors.steepness, rises
                )
            )
            if log_low <= log_critical and weight * own * other * rise > 0
        ]
        table = np.array(rows)
        self.log_critical, self.sharpness, self.steepness, self.log_low = table[:, :4].T
        self.log_prior = np.log(table[:, 4] / table[:, 4].sum())

    def log_examples(self, log_batch: Floats) -> Floats:
        """Give log (E / E_min) of every curve at every batch [curves, batches]."""
        bend = self.sharpness[:, None] * (log_batch - self.log_critical[:, None])
        rising = self.steepness[:, None] / self.sharpness[:, None] * np.logaddexp(0, bend)
        return np.asarray(rising + np.logaddexp(0, self.log_low[:, None] - log_batch))

    def bend(self, log_batch: float) -> Floats:
        """Give how far each curve has bent at a batch: 0 flat, 0.5 at B_crit, 1 its full slope [curves]."""
        return np.asarray(1 / (1 + np.exp(-self.sharpness * (log_batch - self.log_critical))))

    def formula(self, curve: int) -> str:
        """Write a curve's form."""
        sharpness, steepness = self.sharpness[curve], self.steepness[curve]
        text = "(1 + B / B_crit)"
        if sharpness != 1:
            text = f"(1 + (B / B_crit)^{sharpness:g})"
        if steepness != sharpness:
            text += f"^{steepness / sharpness:.3g}"
        low = " x (1 + B_low / B)" if self.log_low[curve] > _NONE else ""
        return f"E_min x {text}{low}"
