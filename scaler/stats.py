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


def log_estimate(log_value: float, log_error: float | None, dof: int, samples: int, method: str) -> Estimate:
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
    samples: ArrayLike, statistic: Callable[[Floats], float], seed: int = 0, block: int | None = None
) -> tuple[float, float] | None:
    """Bootstrap a 90% interval of `statistic` over rows that follow one another in time.

    Circular blocks of about n^(1/3) rows (Politis & Romano 1992). None under eight rows.
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
    low, high = np.quantile(draws, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
