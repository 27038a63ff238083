"""plan(): what fits a cluster's devices, for every worker count and ZeRO stage, without GPU or Ray."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from scaler.batch import ZeroStage
from scaler.cluster import Cluster
from scaler.errors import BadInput, NothingFeasible
from scaler.records import Confidence, HostItem, MemoryItem, PredictedCurve, PredictedPeak, Regime
from scaler.schema import Strict
from scaler.trace.ask import ask_prediction
from scaler.trace.shape import Shape
from scaler.units import bill_lines, format_bytes
from scaler.workload import Workload

_MOST_WORKER_COUNTS = 16


class Itemised(Strict):
    """The peak of one way of spreading, for device and host."""

    workers: PositiveInt
    zero_stage: ZeroStage
    peak_bytes: NonNegativeInt
    """What nvidia-smi would show; the items add up to it."""
    items: dict[MemoryItem, NonNegativeInt]
    regime: Regime
    confidence: Confidence
    host_bytes: NonNegativeInt
    """Of one worker's process."""
    host_items: dict[HostItem, NonNegativeInt]


class Plan(Itemised):
    """The largest micro-batch that fits, and the bill there (at 1 where nothing fits)."""

    max_micro_batch: NonNegativeInt


class Bill(Itemised):
    """The peak at a micro-batch that was asked for."""

    micro_batch: PositiveInt
    allocated_bytes: NonNegativeInt
    reserved_bytes: NonNegativeInt
    fits: bool


class Plans(Strict):
    """What `scaler plan` prints: the plans, or the peaks at the micro-batches that were asked for."""

    workload: str
    cluster: Cluster
    plans: tuple[Plan, ...]
    at: tuple[Bill, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give plain data."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def plan(
    workload: Workload,
    cluster: Cluster,
    micro_batches: Sequence[int] = (),
    accumulating: bool = False,
    offload_optimizer: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Plans:
    """Predict what fits every worker count at ZeRO stages 0 to 3, or the peaks at `micro_batches` instead.

    Raises:
        BadInput: the workload is wrong or cannot be traced, or the cluster does not say its device memory.
    """
    capacity_bytes = cluster.capacity_bytes()
    if capacity_bytes is None:
        raise BadInput(
            f"{cluster.name} does not say how much memory a device has",
            hint="add device_memory to the cluster file, or --device-memory 80GiB",
        )
    counts = worker_counts(cluster)
    shapes = [Shape(count, stage, accumulating) for stage in range(4) for count in counts]
    found = ask_prediction(
        workload,
        cluster,
        shapes,
        micro_batches,
        offload_optimizer=offload_optimizer,
        progress=progress,
    )
    if not found.curves:
        raise BadInput(
            f"workload {workload.name!r} cannot be traced: {found.notes[0]}",
            hint="`scaler tune` measures its memory on the devices instead",
        )
    if progress is not None:
        progress(len(shapes), len(shapes))
    notes = list(found.notes)
    if len(counts) < len(cluster.worker_counts):
        notes.append(f"of {len(cluster.worker_counts)} worker counts, powers of two are shown")
    bills = (b for c in found.curves for b in _bills(c, cluster, capacity_bytes, found.confidence))
    return Plans(
        workload=workload.name,
        cluster=cluster,
        plans=() if micro_batches else tuple(_plan(curve, found.confidence) for curve in found.curves),
        at=tuple(bills) if micro_batches else (),
        notes=tuple(notes),
    )


def nothing_fits(plans: Plans) -> NothingFeasible | None:
    """Give the error that says so, with the bill and what would help, where no plan fits at micro-batch 1."""
    if not plans.plans or any(plan.max_micro_batch for plan in plans.plans):
        return None
    least = min(plans.plans, key=lambda plan: plan.peak_bytes)
    capacity_bytes = plans.cluster.capacity_bytes() or 0
    helps = ["a device with more memory", "shorter examples or a smaller model"]
    if least.items["activations"] > least.peak_bytes / 4:
        helps.insert(0, "activation checkpointing (torch.utils.checkpoint) in the model")
    states_bytes = least.items["optimizer_state"]
    if least.zero_stage and states_bytes > least.peak_bytes / 4:
        helps.insert(0, "--offload-optimizer")
    if plans.cluster.max_workers == 1:
        helps.insert(0, "more workers, over which ZeRO spreads the model's states")
    return NothingFeasible(
        "\n".join(
            [
                f"{plans.workload} does not fit {format_bytes(capacity_bytes)} of device memory at "
                f"micro-batch 1, with any ZeRO stage; the least is {format_bytes(least.peak_bytes)}, at "
                f"stage {least.zero_stage} on {least.workers} worker{'s' if least.workers > 1 else ''}:",
                *bill_lines(least.items),
            ]
        ),
        hint=f"what would make it fit: {'; '.join(helps)}",
    )


def worker_counts(cluster: Cluster) -> list[int]:
    """List the worker counts to plan for: all, or beyond 16 the ends and the powers of two between."""
    counts = cluster.worker_counts
    if len(counts) <= _MOST_WORKER_COUNTS:
        return list(counts)
    return [n for n in counts if n in (counts[0], counts[-1]) or n & (n - 1) == 0]


def _itemised(curve: PredictedCurve, peak: PredictedPeak, confidence: Confidence) -> dict[str, Any]:
    # DeepSpeed's buffers are derived, not traced: medium at best.
    derived = curve.zero_stage > 0 and confidence == "high"
    return {
        "workers": curve.workers,
        "zero_stage": curve.zero_stage,
        "peak_bytes": peak.peak_bytes,
        "items": peak.items,
        "regime": peak.regime,
        "confidence": "medium" if derived else confidence,
        "host_bytes": sum(peak.host_items.values()),
        "host_items": peak.host_items,
    }


def _plan(curve: PredictedCurve, confidence: Confidence) -> Plan:
    (peak,) = curve.bills
    return Plan(**_itemised(curve, peak, confidence), max_micro_batch=curve.max_micro_batch)


def _bills(
    curve: PredictedCurve, cluster: Cluster, capacity_bytes: int, confidence: Confidence
) -> list[Bill]:
    return [
        Bill(
            **_itemised(curve, peak, confidence),
            micro_batch=peak.micro_batch,
            allocated_bytes=peak.allocated_bytes,
            reserved_bytes=peak.reserved_bytes,
            fits=cluster.fits(peak.peak_bytes, capacity_bytes),
        )
        for peak in curve.bills
    ]
