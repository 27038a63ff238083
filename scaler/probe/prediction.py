"""Memory predicted where the workload lives, so that driver and workers need the same things."""

from dataclasses import dataclass, field

from scaler.cluster import Cluster
from scaler.probe.observation import observation
from scaler.records import PredictionRecord
from scaler.runtime.protocol import Rank
from scaler.trace.ask import ask_prediction
from scaler.trace.shape import Shape
from scaler.workload import Workload


@dataclass(frozen=True)
class PredictionRequest:
    """Asks for the curves of ways of spreading, up to a micro-batch."""

    shapes: tuple[tuple[int, int], ...]
    """(workers, ZeRO stage)"""
    largest: int
    cluster: Cluster = field(compare=False)
    """A run has one cluster: it is no part of the question's name."""
    seed: int = 0


def probe_prediction(rank: Rank, workload: Workload, request: PredictionRequest) -> PredictionRecord:
    """Trace the workload's step in a process beside this rank; nothing of the device is used."""
    shapes = [
        Shape(workers, stage, accumulating)
        for accumulating in (False, True)
        for workers, stage in request.shapes
    ]
    cluster, device = request.cluster, rank.device
    if cluster.capacity_bytes() is None:
        cluster = cluster.model_copy(update={"device_memory_bytes": device.capacity_bytes})
    if device.compute_capability is not None:
        cluster = cluster.model_copy(update={"compute_capability": device.compute_capability})
    return PredictionRecord(
        **observation(probe_prediction, rank, request),
        prediction=ask_prediction(workload, cluster, shapes, largest=request.largest),
        capacity_bytes=cluster.capacity_bytes(),
    )
