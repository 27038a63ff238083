"""Finds the largest micro-batch that fits with few probes: from the prediction, corrected by each probe."""

from collections.abc import Callable

from scaler.cluster import Cluster
from scaler.fit.traced import TracedFit
from scaler.records import MemoryRecord

AskPeak = Callable[[int], list[MemoryRecord]]
"""micro-batch -> its record, or none where the budget is spent."""

FitPeaks = Callable[[list[MemoryRecord]], TracedFit | None]
"""What is known of the curve after these probes."""

MOST_PROBES = 3
"""Of one way of spreading."""
_UNSEEN = 0.10  # what a device may take beyond a prediction: the first probe leaves that much free
_RETREAT = 0.9  # of a micro-batch that a fit said fits


def find_largest(ask: AskPeak, fit: FitPeaks, cluster: Cluster, largest: int) -> list[MemoryRecord]:
    """Probe until the largest micro-batch up to `largest` that fits is known, in at most three probes.

    The first is where memory would not run out even if the device took 10% more than predicted. What it
    took corrects the prediction, and the next probe is the largest that then fits. A device that takes
    still more is halved down to, however many probes that takes.
    """
    cautious = cluster.model_copy(update={"margin": max(cluster.margin, _UNSEEN)})
    measured: list[MemoryRecord] = []
    tried: list[int] = []
    known = fit(measured)
    assert known is not None
    micro_batch = max(1, min(largest, known.max_micro_batch(cautious)))
    while micro_batch >= 1 and micro_batch not in tried and (len(tried) < MOST_PROBES or not known.ratios):
        if not (more := ask(micro_batch)):
            break
        tried.append(micro_batch)
        measured += more
        known = fit(measured)
        assert known is not None
        micro_batch = min(largest, known.max_micro_batch(cluster))
        if not known.ratios:
            micro_batch = tried[-1] // 2
    return measured


def climb(ask: AskPeak, smallest: int, largest: int) -> list[MemoryRecord]:
    """Without a prediction: double the micro-batch up to `largest` or out of memory.

    From a first failure, halve it down to 1.
    """
    micro_batch = min(smallest, largest)
    measured = ask(micro_batch)
    down = bool(measured) and measured[0].too_large
    while measured and measured[-1].too_large == down and micro_batch != (1 if down else largest):
        micro_batch = micro_batch // 2 if down else min(2 * micro_batch, largest)
        if not (more := ask(micro_batch)):
            break
        measured += more
    return measured


def shrink(ask: AskPeak, micro_batch: int, factor: float = _RETREAT) -> list[MemoryRecord]:
    """Ask for a peak; while it is too large, at `factor` of the micro-batch."""
    measured: list[MemoryRecord] = []
    while micro_batch >= 1 and (not measured or measured[-1].too_large):
        if not (more := ask(micro_batch)):
            break
        measured += more
        micro_batch = int(micro_batch * factor)
    return measured
