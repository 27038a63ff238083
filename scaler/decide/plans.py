"""Which plan a global batch takes on a worker count, given what memory allows."""

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.memory import MemoryFits, memory_for


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
    at_once = fit.max_micro_batch(cluster)
    if at_once * workers >= global_batch:
        return BatchPlan.split(global_batch, workers, at_once, zero_stage)
    accumulating = fit.max_micro_batch(cluster, accumulation=2)
    if accumulating < 1:
        raise NothingFeasible(
            f"accumulating does not fit at micro-batch 1 on {workers} workers",
            hint="use a device with more memory or a higher zero_stage",
        )
    return BatchPlan.split(global_batch, workers, accumulating, zero_stage)


def feasible_plan(
    global_batch: int, workers: int, fits: MemoryFits, cluster: Cluster, zero_stage: int
) -> BatchPlan | None:
    """Spread a global batch as `split_batch` does; None where that is not possible."""
    try:
        return split_batch(global_batch, workers, fits, cluster, zero_stage)
    except (BadInput, NothingFeasible):
        return None
