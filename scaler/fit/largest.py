"""The largest micro-batch under a rising curve of peaks."""

from collections.abc import Callable

from scaler.cluster import Cluster


def largest_that_fits(
    peak_bytes: Callable[[int], float], cluster: Cluster, capacity_bytes: int, bound: int
) -> int:
    """Find the largest micro-batch up to `bound` whose peak leaves margin and reserve, 0 if none."""
    low, high = 0, bound + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cluster.fits(peak_bytes(middle), capacity_bytes) else (low, middle)
    return low
