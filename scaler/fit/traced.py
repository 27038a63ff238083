"""Peak memory as predicted by tracing, corrected by what probes measured."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from scaler.cluster import Cluster
from scaler.fit.largest import largest_that_fits
from scaler.records import MemoryRecord, PredictedCurve
from scaler.schema import Strict
from scaler.stats import CONFIDENCE, Estimate

_METHOD = "traced on fake tensors x measured over predicted, t interval of its logarithm"
_MISFIT = 0.005  # least half-width of the interval, as a share: the curve is interpolated


class Curve(Strict):
    """Predicted bytes that the allocator holds, at rising micro-batches; lines in between and beyond."""

    micro_batches: tuple[int, ...]
    held_bytes: tuple[int, ...]

    def at(self, micro_batch: int) -> float:
        """Give the predicted bytes at a micro-batch."""
        sizes, held = self.micro_batches, self.held_bytes
        if micro_batch <= sizes[-1] or len(sizes) == 1:
            return float(np.interp(micro_batch, sizes, held))
        slope = (held[-1] - held[-2]) / (sizes[-1] - sizes[-2])
        return held[-1] + slope * (micro_batch - sizes[-1])


class TracedFit(Strict):
    """peak = outside the allocator + predicted x (measured / predicted), the ratio taken from near probes."""

    single: Curve
    accumulating: Curve
    outside_bytes: int
    """Context and communicator: measured where a device could, else estimated."""
    ratios: tuple[tuple[int, float], ...]
    """(micro-batch, measured over predicted), smallest micro-batch first; none before the first probe."""
    largest_measured: int
    smallest_failed: int | None
    """Smallest micro-batch that was too large in one pass."""
    smallest_failed_accumulating: int | None
    """Smallest micro-batch that was too large at all."""
    in_use_bytes: int | None
    """Most bytes that a device had in use before it ran out: so many do fit."""
    unequal_share: float
    """On unequal devices, the share of what should fit that did, after more failed; else 1."""
    capacity_bytes: int

    @property
    def samples(self) -> int:
        """How many probes corrected the prediction."""
        return len(self.ratios)

    def peak_bytes(self, micro_batch: int, accumulation: int = 1) -> Estimate:
        """Predict the peak of a plan. With one probe or none there is no interval."""
        curve = self.accumulating if accumulation > 1 else self.single
        held = curve.at(micro_batch) * self._ratio(micro_batch)
        value = held + self.outside_bytes
        half = self._half_width(micro_batch)
        return Estimate(
            value=value,
            low=None if half is None else self.outside_bytes + held * math.exp(-half),
            high=None if half is None else self.outside_bytes + held * math.exp(half),
            samples=self.samples,
            method=_METHOD if self.samples else "traced on fake tensors, not measured",
        )

    def max_micro_batch(
        self, cluster: Cluster, accumulation: int = 1, capacity_bytes: int | None = None
    ) -> int:
        """Find the largest micro-batch that fits `capacity_bytes` (by default the fit's), 0 if none.

        Between two probes the device is taken to be as bad as at the worse one. After a failure, only
        sizes are promised that fit wherever below it the device began to take more.
        """
        failed = self.smallest_failed_accumulating if accumulation > 1 else self.smallest_failed
        capacity = capacity_bytes or self.capacity_bytes
        curve = self.accumulating if accumulation > 1 else self.single

        def peak(micro_batch: int) -> float:
            return curve.at(micro_batch) * self._worst_ratio(micro_batch) + self.outside_bytes

        bound, safe_bytes = max(self.single.micro_batches[-1], self.largest_measured), math.inf
        if failed is not None and capacity <= self.capacity_bytes:
            bound = min(bound, failed - 1)
            safe_bytes = self._safe_bytes(peak(self.largest_measured))

        def promised(micro_batch: int) -> float:
            value = peak(micro_batch)
            return value if micro_batch <= self.largest_measured or value <= safe_bytes else math.inf

        found = largest_that_fits(promised, cluster, capacity, bound)
        return int(found * self.unequal_share) if cluster.devices else found

    def _safe_bytes(self, fitting_bytes: float) -> float:
        """Give a peak that fits, by what was in use when a larger size failed and a peak that did fit.

        Either the device took no more than before until then: as much as was in use fits. Or it had begun
        to, by at most in_use / fitting: then what leaves room for that fits.
        """
        if self.in_use_bytes is None or not self.ratios:
            return fitting_bytes
        return min(self.in_use_bytes, self.capacity_bytes * fitting_bytes / self.in_use_bytes)

    def _ratio(self, micro_batch: int) -> float:
        if not self.ratios:
            return 1.0
        sizes, ratios = zip(*self.ratios, strict=True)
        return float(np.interp(micro_batch, sizes, ratios))

    def _worst_ratio(self, micro_batch: int) -> float:
        below = [ratio for size, ratio in self.ratios if size <= micro_batch]
        above = [ratio for size, ratio in self.ratios if size >= micro_batch]
        return max([*below[-1:], *above[:1]], default=1.0)

    def _half_width(self, micro_batch: int) -> float | None:
        """Half-width of the 90% interval of a new probe's log ratio, interpolated between two known ones."""
        n = len(self.ratios)
        if n < 2:
            return None
        sizes = [size for size, _ in self.ratios]
        place = float(np.interp(micro_batch, sizes, range(n)))
        share = place - math.floor(place)
        spread = float(np.std([math.log(ratio) for _, ratio in self.ratios], ddof=1))
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
        return max(_MISFIT, quantile * spread * math.sqrt(1 + share**2 + (1 - share) ** 2))


def fit_traced(
    curves: Sequence[PredictedCurve], records: Sequence[MemoryRecord], capacity_bytes: int
) -> TracedFit:
    """Correct the predicted curves of one way of spreading (one, or one of them accumulating)."""
    by_passes = {curve.accumulating: curve for curve in curves}
    single = by_passes.get(False, curves[0])
    held = {accumulating: _held(by_passes.get(accumulating, single)) for accumulating in (False, True)}
    measured = [r for r in records if r.peak_bytes is not None and not r.too_large]
    outside = [r.outside_bytes for r in records if r.outside_bytes is not None]
    outside_bytes = max(outside) if outside else single.fixed_bytes
    ratios: dict[int, float] = {}
    for record in measured:
        ratio = _ratio(held[record.plan.accumulation > 1], record)
        ratios[record.plan.micro_batch] = max(ratio, ratios.get(record.plan.micro_batch, 0.0))
    failed = [r for r in records if r.too_large and r.plan.is_equal]
    return TracedFit(
        single=held[False],
        accumulating=held[True],
        outside_bytes=outside_bytes,
        ratios=tuple(sorted(ratios.items())),
        largest_measured=max((r.plan.micro_batch for r in measured), default=1),
        smallest_failed=min((r.plan.micro_batch for r in failed if r.plan.accumulation == 1), default=None),
        smallest_failed_accumulating=min((r.plan.micro_batch for r in failed), default=None),
        in_use_bytes=max((r.in_use_bytes for r in failed if r.in_use_bytes is not None), default=None),
        unequal_share=_unequal_share(records),
        capacity_bytes=capacity_bytes,
    )


def _unequal_share(records: Sequence[MemoryRecord]) -> float:
    """Give the share, of the least that failed on unequal devices, that did fit; 1 if none failed."""
    plans = [(r.too_large, r.plan.micro_batches) for r in records if not r.plan.is_equal]
    failed = [entries for too_large, entries in plans if too_large]
    if not failed:
        return 1.0
    least = min(failed, key=sum)
    fitting = [entries for too_large, entries in plans if not too_large and sum(entries) < sum(least)]
    shares = [min(a / b for a, b in zip(entries, least, strict=True)) for entries in fitting]
    return max(shares, default=0.5)


def _held(curve: PredictedCurve) -> Curve:
    held = tuple(peak - curve.fixed_bytes for peak in curve.peak_bytes)
    return Curve(micro_batches=curve.micro_batches, held_bytes=held)


def _ratio(curve: Curve, record: MemoryRecord) -> float:
    """Give measured over predicted, of the rank where it is largest."""
    peaks = record.rank_peak_bytes or (record.peak_bytes or 0,)
    sizes = record.plan.micro_batches if record.rank_peak_bytes else (record.plan.micro_batch,)
    outside = record.outside_bytes or 0
    return max((peak - outside) / curve.at(size) for peak, size in zip(peaks, sizes, strict=True))
