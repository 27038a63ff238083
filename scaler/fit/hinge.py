"""Peak memory as measured on a ladder of micro-batches, for models that cannot be traced."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from scaler.cluster import Cluster
from scaler.fit.largest import largest_that_fits
from scaler.records import MemoryRecord
from scaler.schema import Strict
from scaler.stats import CONFIDENCE, Estimate, Floats

_METHOD = "max(floor, fixed + per_example x micro_batch), least squares"


class HingeFit(Strict):
    """peak = max(floor, fixed + per_example x micro_batch) + gradients held while accumulating.

    Below the knee the optimizer step sets the peak, above it the activations do.
    """

    floor_bytes: float
    fixed_bytes: float
    per_example_bytes: float
    accumulating_bytes: float
    """Added when accumulating: gradients then live through the next forward pass."""
    residual_bytes: float
    degrees_of_freedom: int
    line: tuple[int, float, float]
    """Points on the line above the knee: how many, mean micro-batch, sum of squared distances from it."""
    largest_measured: int
    smallest_failed: int | None
    """Smallest micro-batch that ran out of memory in one pass."""
    smallest_failed_accumulating: int | None
    """Smallest micro-batch that ran out of memory at all: it may fit in one pass."""
    capacity_bytes: int
    samples: int

    def peak_bytes(self, micro_batch: int, accumulation: int = 1) -> Estimate:
        """Predict the peak of a plan."""
        value = self._typical_bytes(micro_batch, accumulation)
        half = self._half_width_bytes(micro_batch)
        return Estimate(
            value=value,
            low=None if half is None else max(0.0, value - half),
            high=None if half is None else value + half,
            samples=self.samples,
            method=_METHOD,
        )

    def _typical_bytes(self, micro_batch: int, accumulation: int) -> float:
        value = max(self.floor_bytes, self.fixed_bytes + self.per_example_bytes * micro_batch)
        return value + (self.accumulating_bytes if accumulation > 1 else 0.0)

    def _half_width_bytes(self, micro_batch: int) -> float | None:
        """Half-width of a new peak's 90% interval: it grows away from what was measured."""
        points, centre, squares = self.line
        if self.degrees_of_freedom < 1 or squares == 0:
            return None
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, self.degrees_of_freedom))
        return (
            quantile * self.residual_bytes * math.sqrt(1 + 1 / points + (micro_batch - centre) ** 2 / squares)
        )

    def max_micro_batch(
        self, cluster: Cluster, accumulation: int = 1, capacity_bytes: int | None = None
    ) -> int:
        """Find the largest micro-batch that fits `capacity_bytes` (by default the fit's), 0 if none.

        Not more than 4 x the largest that was measured (farther is a guess), and less than any that failed.
        """
        failed = self.smallest_failed_accumulating if accumulation > 1 else self.smallest_failed
        bound = min(4 * self.largest_measured, (failed or 2**62) - 1)
        return largest_that_fits(
            lambda size: self._typical_bytes(size, accumulation),
            cluster,
            capacity_bytes or self.capacity_bytes,
            bound,
        )


def fit_hinge(records: Sequence[MemoryRecord], capacity_bytes: int) -> HingeFit:
    """Fit the records of one way of spreading, at least one of which has a peak."""
    single, several = (
        {
            r.plan.micro_batch: float(r.peak_bytes)
            for r in records
            if r.peak_bytes is not None and (r.plan.accumulation > 1) == accumulating
        }
        for accumulating in (False, True)
    )
    failed = [r.plan for r in records if r.too_large]
    micro = np.array(sorted(single), dtype=float)
    peak = np.array([single[int(m)] for m in micro])
    knee, floor, fixed, slope, residuals = _hinge(micro, peak)
    shared = [peak_bytes - max(floor, fixed + slope * m) for m, peak_bytes in several.items()]
    above = micro[knee:]
    dof = max(0, len(micro) - 3)
    return HingeFit(
        floor_bytes=floor,
        fixed_bytes=fixed,
        per_example_bytes=slope,
        accumulating_bytes=max(0.0, max(shared, default=0.0)),
        residual_bytes=float(np.sqrt((residuals**2).sum() / dof)) if dof else 0.0,
        degrees_of_freedom=dof,
        line=(len(above), float(above.mean()), float(((above - above.mean()) ** 2).sum())),
        largest_measured=int(micro[-1]),
        smallest_failed=min((p.micro_batch for p in failed if p.accumulation == 1), default=None),
        smallest_failed_accumulating=min((p.micro_batch for p in failed), default=None),
        capacity_bytes=capacity_bytes,
        samples=len(single) + len(several),
    )


def _hinge(x: Floats, y: Floats) -> tuple[int, float, float, float, Floats]:
    """Fit max(floor, fixed + slope x): try every knee, keep the least squares.

    Gives the first point above the knee, floor, fixed, slope and the residuals.
    """
    best: tuple[int, float, float, float, Floats] | None = None
    for knee in range(max(1, len(x) - 1)):
        slope, fixed = np.polyfit(x[knee:], y[knee:], 1) if len(x) > 1 else (0.0, y[0])
        slope = max(0.0, float(slope))
        fixed = float((y[knee:] - slope * x[knee:]).mean())
        floor = float(y[:knee].mean()) if knee else 0.0
        residuals = y - np.maximum(floor, fixed + slope * x)
        if best is None or (residuals**2).sum() < (best[4] ** 2).sum() * 0.999:
            best = (knee, floor, fixed, slope, residuals)
    assert best is not None
    return best
