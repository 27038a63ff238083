"""Peak device memory against the micro-batch, for every way of spreading that was predicted or measured."""

from collections.abc import Iterable

from scaler.fit.hinge import HingeFit, fit_hinge
from scaler.fit.traced import TracedFit, fit_traced
from scaler.records import MemoryRecord, PredictionRecord, Record

MemoryFit = TracedFit | HingeFit

MemoryFits = dict[tuple[int, int], MemoryFit]
"""By (ZeRO stage, workers)."""


def fit_memory(
    records: Iterable[MemoryRecord | PredictionRecord], capacity_bytes: int | None = None
) -> MemoryFits:
    """Fit one curve per ZeRO stage and worker count: the traced one where there is one, else a hinge.

    `capacity_bytes` of one device; by default what the devices themselves said.
    """
    records = list(records)
    probes = [record for record in records if isinstance(record, MemoryRecord)]
    capacity = capacity_bytes or said_bytes(records)
    curves = [c for r in records if isinstance(r, PredictionRecord) for c in r.prediction.curves]
    fits: MemoryFits = {}
    shapes = {(r.plan.zero_stage, r.plan.workers) for r in probes}
    for shape in sorted(shapes | {(curve.zero_stage, curve.workers) for curve in curves}):
        own = [r for r in probes if (r.plan.zero_stage, r.plan.workers) == shape]
        traced = [c for c in curves if (c.zero_stage, c.workers) == shape and c.micro_batches]
        # What was too large for a smaller device says nothing of this one.
        own = [r for r in own if not r.too_large or (capacity or 0) <= (r.capacity_bytes or 2**62)]
        if capacity and traced:
            fits[shape] = fit_traced(traced, own, capacity)
        elif capacity and any(r.peak_bytes is not None and r.plan.accumulation == 1 for r in own):
            fits[shape] = fit_hinge(own, capacity)
    return fits


def memory_for(fits: MemoryFits, workers: int, zero_stage: int = 0) -> MemoryFit | None:
    """Choose the fit for a worker count: the largest known not above it (more never need more each)."""
    below = [count for stage, count in fits if stage == zero_stage and count <= workers]
    return fits[zero_stage, max(below)] if below else None


def said_bytes(records: Iterable[Record]) -> int | None:
    """Find the memory of one device as the devices themselves said; None where none did."""
    kinds = (r for r in records if isinstance(r, MemoryRecord | PredictionRecord))
    return min((r.capacity_bytes for r in kinds if r.capacity_bytes), default=None)
