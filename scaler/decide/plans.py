"""Which plan a global batch takes on a worker count, given what memory allows."""

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.memory import MemoryFit, MemoryFits, memory_for


def split_batch(
    global_batch: int, workers: int, fits: MemoryFits, cluster: Cluster, zero_stage: int
) -> BatchPlan:
    """Spread a global batch with the least accumulation that memory allows.

    Raises:
        BadInput: there are fewer examples than workers.
        NothingFeasible: nothing fits, or no accumulation divides the batch.
    """
    fit = memory_for(fits, workers, zero_stage)
    if fit is None:
        raise NothingFeasible(
            f"no memory was measured at ZeRO stage {zero_stage} on {workers} workers or fewer",
            hint="`scaler tune` with a cluster that has this worker count measures it",
        )
    at_once = _limits(fit, workers, cluster, accumulation=1)
    speeds = [cluster.group_of(rank).speed for rank in range(workers)] if cluster.devices else []
    if sum(at_once) >= global_batch and min(at_once) >= 1:
        return BatchPlan.split(global_batch, workers, at_once, zero_stage, speeds)
    accumulating = _limits(fit, workers, cluster, accumulation=2)
    if min(accumulating) < 1:
        raise NothingFeasible(
            f"accumulating does not fit at micro-batch 1 on {workers} workers",
            hint="use a device with more memory or a higher zero_stage",
        )
    return BatchPlan.split(global_batch, workers, accumulating, zero_stage, speeds)


def _limits(fit: MemoryFit, workers: int, cluster: Cluster, accumulation: int) -> list[int]:
    """Give the largest micro-batch of each rank: unequal devices have their own."""
    if not cluster.devices:
        return [fit.max_micro_batch(cluster, accumulation)] * workers
    return [
        fit.max_micro_batch(cluster, accumulation, cluster.capacity_bytes(rank)) for rank in range(workers)
    ]


def largest_passes(workers: int, fits: MemoryFits, cluster: Cluster, zero_stage: int) -> list[int]:
    """Give the largest micro-batch of each rank in one pass; zeros where memory was not measured."""
    fit = memory_for(fits, workers, zero_stage)
    return _limits(fit, workers, cluster, accumulation=1) if fit is not None else [0] * workers


def feasible_plan(
    global_batch: int, workers: int, fits: MemoryFits, cluster: Cluster, zero_stage: int
) -> BatchPlan | None:
    """Spread a global batch as `split_batch` does; None where that is not possible."""
    try:
        return split_batch(global_batch, workers, fits, cluster, zero_stage)
    except (BadInput, NothingFeasible):
        return None
