"""Medians and 90% intervals, by the method that the sample count allows.

Under eight samples: t intervals on the log scale with the variance pooled over configurations.
From eight on: bootstrap, in blocks where samples follow one another in time.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from scaler.schema import Strict

CONFIDENCE = 0.90
_RESAMPLES = 1000
_BATCH = 5  # samples whose mean is taken, in the search for the warm-up
_FEWEST_BATCHES = 3  # that must be left: the variance of fewer says nothing
_FINEST = 0.01  # spread of steps below which nothing is called an outlier

Floats = NDArray[np.float64]


class Estimate(Strict):
    """A value with its 90% interval. `low` and `high` are absent where the data cannot give a spread."""

    value: float
    low: float | None = None
    high: float | None = None
    samples: int
    method: str

    @property
    def is_identified(self) -> bool:
        """Whether the data gave an interval."""
        return self.low is not None and self.high is not None

    def scaled(self, factor: float) -> "Estimate":
        """Multiply the value and its interval by an exact positive factor."""
        return self.model_copy(
            update={
                "value": self.value * factor,
                "low": None if self.low is None else self.low * factor,
                "high": None if self.high is None else self.high * factor,
            }
        )


def log_estimate(
    log_value: float, log_error: float | None, dof: float, samples: int, method: str
) -> Estimate:
    """Turn a log-scale value and its standard error into an estimate, with a t interval of `dof` degrees."""
    value = float(np.exp(log_value))
    if log_error is None or dof < 1 or not np.isfinite(log_error):
        return Estimate(value=value, samples=samples, method=method)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, dof)) * log_error
    # exp() of an unidentified parameter overflows: an interval that wide is no interval.
    if half > 50:
        return Estimate(value=value, samples=samples, method=method)
    low, high = value * float(np.exp(-half)), value * float(np.exp(half))
    return Estimate(value=value, low=low, high=high, samples=samples, method=method)


def product(left: Estimate, right: Estimate, method: str) -> Estimate:
    """Multiply two independent positive estimates; their log half-widths add in squares, side by side."""
    value = left.value * right.value
    samples = min(left.samples, right.samples)
    if left.low is None or left.high is None or right.low is None or right.high is None:
        return Estimate(value=value, samples=samples, method=method)
    down = np.hypot(np.log(left.value / left.low), np.log(right.value / right.low))
    up = np.hypot(np.log(left.high / left.value), np.log(right.high / right.value))
    return Estimate(
        value=value,
        low=value * float(np.exp(-down)),
        high=value * float(np.exp(up)),
        samples=samples,
        method=method,
    )


def draw_around(estimate: Estimate, draws: int, generator: np.random.Generator) -> Floats:
    """Draw from an identified estimate: normal on the log scale, on each side as wide as its interval."""
    assert estimate.low is not None and estimate.high is not None
    normal = generator.standard_normal(draws) / stats.norm.ppf(0.5 + CONFIDENCE / 2)
    down, up = np.log(estimate.value / estimate.low), np.log(estimate.high / estimate.value)
    return np.asarray(estimate.value * np.exp(normal * np.where(normal < 0, down, up)))


def root_of(covariance: Floats) -> Floats:
    """Give R with R R' the covariance [n, n], which may be singular: normal numbers @ R' are draws."""
    spread, directions = np.linalg.eigh(covariance)
    return np.asarray(directions * np.sqrt(np.maximum(spread, 0.0)))


def pooled_log_variance(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Pool the variance of log values within groups: (variance, degrees of freedom), (0, 0) if none."""
    total, dof = 0.0, 0
    for group in groups:
        if len(group) > 1:
            logs = np.log(np.asarray(group, dtype=float))
            total += float(((logs - logs.mean()) ** 2).sum())
            dof += len(group) - 1
    return (total / dof, dof) if dof else (0.0, 0)


def block_bootstrap(
    samples: ArrayLike,
    statistic: Callable[[Floats], float],
    seed: int = 0,
    block: int | None = None,
    expanded: bool = False,
) -> tuple[float, float] | None:
    """Bootstrap a 90% interval of `statistic` over rows that follow one another in time.

    Circular blocks of about n^(1/3) rows (Politis & Romano 1992). `expanded` takes the quantiles of Student's
    t with as many samples as blocks, and undoes that resampling divides by them all (Hesterberg 2015, arXiv
    1411.5279): for ratios of means, of which plain quantiles hold 85% to 88% over 40 to 100 steps.
    None under eight rows.
    """
    rows = np.asarray(samples, dtype=float)
    n = len(rows)
    if n < 8:
        return None
    length = block or max(1, round(n ** (1 / 3)))
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, n, size=(_RESAMPLES, -(-n // length)))
    index = (starts[:, :, None] + np.arange(length)) % n
    draws = np.array([statistic(rows[i]) for i in index.reshape(_RESAMPLES, -1)[:, :n]])
    reach = stats.norm.ppf(0.5 + CONFIDENCE / 2)
    if expanded:
        blocks = n / length
        reach = stats.t.ppf(0.5 + CONFIDENCE / 2, blocks - 1) * np.sqrt(blocks / (blocks - 1))
    low, high = np.quantile(draws, stats.norm.cdf([-reach, reach]))
    return float(low), float(high)


def settled_from(samples: ArrayLike) -> int:
    """Find how many of the first samples are warm-up: at most half of them.

    The rule of least marginal standard error (White 1997, MSER-5): of the means of five samples at a time,
    drop so many of the first that the squared error of the mean of the rest is least. Taken on logarithms,
    and no value counts for more than three scaled median deviations above the median: one slow step is no
    warm-up.
    """
    values = np.log(np.asarray(samples, dtype=float))
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    batches = np.minimum(values, middle + 3 * spread)[: len(values) // _BATCH * _BATCH]
    means = batches.reshape(-1, _BATCH).mean(axis=1)
    kept = range(min(len(means) // 2, len(means) - _FEWEST_BATCHES) + 1)
    errors = [means[first:].var() / len(means[first:]) for first in kept]
    return int(np.argmin(errors)) * _BATCH if errors else 0


def outliers(samples: ArrayLike) -> list[int]:
    """Find samples far above the others: five scaled median deviations above the median of logarithms."""
    values = np.log(np.asarray(samples, dtype=float))
    middle = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), _FINEST)
    return [int(i) for i in np.flatnonzero(values > middle + 5 * spread)]


def median_width(samples: ArrayLike) -> float:
    """Give the width of the median's 90% interval over the median; infinite under eight samples.

    By order statistics: quick, and without a say on how samples depend on each other.
    """
    values = np.sort(np.asarray(samples, dtype=float))
    n = len(values)
    if n < 8:
        return float("inf")
    low = max(0, int(stats.binom.ppf(0.5 - CONFIDENCE / 2, n, 0.5)) - 1)
    return float((values[n - 1 - low] - values[low]) / np.median(values))
