"""Gradient noise scale from pairs of squared gradient norms."""

from collections.abc import Iterable

import numpy as np

from scaler.records import NoiseRecord
from scaler.stats import Estimate, Floats, block_bootstrap

_METHOD = "ratio of means; bootstrap in blocks of steps"


def fit_noise_scale(records: Iterable[NoiseRecord]) -> Estimate | None:
    """Estimate B_simple = tr(Sigma) / |G|^2 in examples (McCandlish et al. 2018, arXiv 1812.06162, A.1).

    Numerator and denominator are each unbiased and averaged over steps before the division. None without
    records, or while |G|^2 is not positive; no interval while it is not clearly positive.
    """
    rows = [row for record in records for row in _rows(record)]
    if not rows:
        return None
    data = np.array(rows)
    squared_gradient, trace = data.mean(axis=0)
    if squared_gradient <= 0 or trace <= 0:
        return None
    value = float(trace / squared_gradient)
    clear = block_bootstrap(data[:, 0], lambda rows: float(rows.mean()))
    interval = None
    if clear is not None and clear[0] > 0:
        interval = block_bootstrap(data, _ratio)
    low, high = interval or (None, None)
    return Estimate(value=value, low=low, high=high, samples=len(rows), method=_METHOD)


def _ratio(rows: Floats) -> float:
    squared_gradient, trace = rows.mean(axis=0)
    return float(trace / squared_gradient)


def _rows(record: NoiseRecord) -> list[tuple[float, float]]:
    """Per step: unbiased |G|^2 and tr(Sigma) from the two batch sizes."""
    small, big = record.small_batch, float(record.plan.global_batch)
    return [
        ((big * g_big - small * g_small) / (big - small), (g_small - g_big) / (1 / small - 1 / big))
        for g_small, g_big in zip(record.small_squared_norms, record.big_squared_norms, strict=True)
    ]
