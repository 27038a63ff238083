"""Peak device memory against the micro-batch."""

from collections.abc import Iterable

import numpy as np
from scipy import stats

from scaler.cluster import Cluster
from scaler.records import MemoryRecord
from scaler.schema import Strict
from scaler.stats import CONFIDENCE, Estimate

_METHOD = "max(floor, fixed + per_example x micro_batch), least squares"


class MemoryFit(Strict):
    """peak = max(floor, fixed + per_example x micro_batch) + gradients held while accumulating.

    Below the knee the optimizer step sets the peak, above it the activations do.
    """

    floor_bytes: float
    fixed_bytes: float
    per_example_bytes: float
    accumulating_bytes: float
    """Added when accumulating: gradients then live through the next forward pass."""
    spread_bytes: float | None
    """Half-width of the 90% interval of a peak; absent with fewer points than it needs."""
    largest_measured: int
    smallest_failed: int | None
    """Smallest micro-batch that ran out of memory."""
    capacity_bytes: int
    samples: int

    def peak_bytes(self, micro_batch: int, accumulation: int = 1) -> Estimate:
        """Predict the peak of a plan."""
        value = max(self.floor_bytes, self.fixed_bytes + self.per_example_bytes * micro_batch)
        value += self.accumulating_bytes if accumulation > 1 else 0.0
        spread = self.spread_bytes
        return Estimate(
            value=value,
            low=None if spread is None else max(0.0, value - spread),
            high=None if spread is None else value + spread,
            samples=self.samples,
            method=_METHOD,
        )

    def max_micro_batch(self, cluster: Cluster, accumulation: int = 1) -> int:
        """Find the largest micro-batch that fits, 0 if none: bisection on the predicted peak.

        Not more than 4 x the largest that was measured (farther is a guess), and less than any that failed.
        """
        low, high = 0, min(4 * self.largest_measured + 1, self.smallest_failed or 2**62)
        while high - low > 1:
            middle = (low + high) // 2
            fits = cluster.fits(self.peak_bytes(middle, accumulation).value, self.capacity_bytes)
            low, high = (middle, high) if fits else (low, middle)
        return low


MemoryFits = dict[tuple[int, int], MemoryFit]
"""By (ZeRO stage, workers)."""


def fit_memory(records: Iterable[MemoryRecord], capacity_bytes: int | None = None) -> MemoryFits:
    """Fit one curve per ZeRO stage and measured worker count (with one worker there are no DDP buckets).

    `capacity_bytes` of one device; by default what the devices themselves said.
    """
    fits = {}
    records = list(records)
    peaks = [r for r in records if r.peak_bytes is not None]
    for stage, workers in sorted({(r.plan.zero_stage, r.plan.workers) for r in peaks}):
        own = [r for r in peaks if (r.plan.zero_stage, r.plan.workers) == (stage, workers)]
        capacity = capacity_bytes or min((r.capacity_bytes for r in own if r.capacity_bytes), default=None)
        single = {r.plan.micro_batch: float(r.peak_bytes or 0) for r in own if r.plan.accumulation == 1}
        several = {r.plan.micro_batch: float(r.peak_bytes or 0) for r in own if r.plan.accumulation > 1}
        failed = [
            r.plan.micro_batch
            for r in records
            if r.out_of_memory and (r.plan.zero_stage, r.plan.workers) == (stage, workers)
        ]
        if single and capacity:
            fits[stage, workers] = _fit(single, several, min(failed, default=None), capacity)
    return fits


def memory_for(fits: MemoryFits, workers: int, zero_stage: int = 0) -> MemoryFit | None:
    """Choose the fit for a worker count: the largest measured not above it (more never need more each)."""
    below = [count for stage, count in fits if stage == zero_stage and count <= workers]
    return fits[zero_stage, max(below)] if below else None


def _fit(
    single: dict[int, float], several: dict[int, float], smallest_failed: int | None, capacity_bytes: int
) -> MemoryFit:
    micro = np.array(sorted(single), dtype=float)
    peak = np.array([single[int(m)] for m in micro])
    floor, fixed, slope, residuals = _hinge(micro, peak)
    shared = [several[m] - single[m] for m in several if m in single]
    dof = len(micro) - 3
    spread = None
    if dof >= 1:
        spread = float(stats.t.ppf(0.5 + CONFIDENCE / 2, dof) * np.sqrt((residuals**2).sum() / dof))
    return MemoryFit(
        floor_bytes=floor,
        fixed_bytes=fixed,
        per_example_bytes=slope,
        accumulating_bytes=max(0.0, max(shared, default=0.0)),
        spread_bytes=spread,
        largest_measured=int(micro[-1]),
        smallest_failed=smallest_failed,
        capacity_bytes=capacity_bytes,
        samples=len(single) + len(several),
    )


def _hinge(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, np.ndarray]:
    """Fit max(floor, fixed + slope x): try every knee, keep the least squares."""
    best: tuple[float, float, float, np.ndarray] | None = None
    for knee in range(max(1, len(x) - 1)):
        slope, fixed = np.polyfit(x[knee:], y[knee:], 1) if len(x) > 1 else (0.0, y[0])
        slope = max(0.0, float(slope))
        fixed = float((y[knee:] - slope * x[knee:]).mean())
        floor = float(y[:knee].mean()) if knee else 0.0
        residuals = y - np.maximum(floor, fixed + slope * x)
        if best is None or (residuals**2).sum() < (best[3] ** 2).sum() * 0.999:
            best = (floor, fixed, slope, residuals)
    assert best is not None
    return best
