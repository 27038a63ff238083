"""Device memory outside the allocator: the CUDA context and the communicator, where they are not measured."""

from scaler.cluster import Cluster

_MIB = 2**20

# Estimates, with libraries loaded lazily: 300 to 430 MiB were read on Turing to Ampere, more on Hopper.
_CONTEXT_BYTES = {5.0: 300 * _MIB, 8.0: 430 * _MIB, 9.0: 500 * _MIB}
_COMMUNICATOR_BYTES = 300 * _MIB  # "several hundred MB a group": NCCL's channel buffers


def context_bytes(cluster: Cluster) -> int:
    """Give what a CUDA context takes of a device: the cluster's figure, or an estimate; 0 on a CPU."""
    if cluster.kind != "cuda":
        return 0
    if cluster.context_bytes is not None:
        return cluster.context_bytes
    return _CONTEXT_BYTES[max(known for known in _CONTEXT_BYTES if known <= cluster.compute_capability)]


def communicator_bytes(cluster: Cluster, workers: int) -> int:
    """Give what NCCL takes of each device for a group of `workers`; 0 for one worker, and on a CPU."""
    if cluster.kind != "cuda" or workers == 1:
        return 0
    return _COMMUNICATOR_BYTES if cluster.communicator_bytes is None else cluster.communicator_bytes
