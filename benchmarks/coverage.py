"""How 90% intervals did: coverage held against 90% by an exact binomial test, and the interval score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.90


@dataclass(frozen=True)
class Coverage:
    inside: float
    """Share of observations inside their interval."""
    low: float
    high: float
    """90% interval of that share, clustered: observations of one group are not independent."""
    score: float
    """Mean of width + 2 / 0.1 x distance outside, on the log scale; less is better.

    Gneiting & Raftery 2007, eq. 43.
    """

    @property
    def is_honest(self) -> bool:
        return self.low <= LEVEL <= self.high


def coverage(groups: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]) -> Coverage:
    """Judge (low, high, observed), all logarithms, of every group.

    The number of independent observations is n / (1 + (m - 1) x intraclass correlation), with m the mean size
    of a group: at least the number of groups.
    """
    hits, scores = [], []
    for low, high, seen in groups.values():
        low, high, seen = map(np.asarray, (low, high, seen))
        hits.append((low <= seen) & (seen <= high))
        outside = np.maximum(0, low - seen) + np.maximum(0, seen - high)
        scores.append(high - low + 2 / (1 - LEVEL) * outside)
    sizes = np.array([len(h) for h in hits])
    shares = np.array([h.mean() for h in hits])
    total = float(np.concatenate(hits).mean())
    within = float((sizes * shares * (1 - shares)).sum() / max(1, sizes.sum() - len(sizes)))
    size = sizes.mean()
    between = max(0.0, float(shares.var(ddof=1)) - within / size) if len(sizes) > 1 else 0.0
    alike = between / (between + within) if between + within else 0.0
    n = max(len(sizes), sizes.sum() / (1 + (size - 1) * alike))
    k = total * n
    low = float(stats.beta.ppf(0.05, k, n - k + 1)) if k > 0 else 0.0
    high = float(stats.beta.ppf(0.95, k + 1, n - k)) if k < n else 1.0
    return Coverage(total, low, high, float(np.concatenate(scores).mean()))
