"""The joint space: every feasible (workers, global batch, micro-batch, accumulation) of a ZeRO stage."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaler.cluster import Cluster
from scaler.decide.fits import Fits
from scaler.decide.outcomes import Outcomes
from scaler.decide.plans import feasible_plan
from scaler.fit.memory import MemoryFit, memory_for

Integers = NDArray[np.int64]

_UNLIMITED = 2**40


@dataclass(frozen=True)
class Space:
    """Feasible plans of one ZeRO stage, an entry each. Workers share a pass as evenly as it divides."""

    fits: Fits
    cluster: Cluster
    workers: Integers
    global_batch: Integers
    micro_batch: Integers
    """Of the largest pass."""
    accumulation: Integers

    def __len__(self) -> int:
        return len(self.workers)

    @classmethod
    def of(
        cls,
        fits: Fits,
        cluster: Cluster,
        counts: Sequence[int],
        batches: Iterable[int],
        one_pass: bool = False,
    ) -> "Space":
        """List every global batch on every worker count, with the least accumulation that memory allows.

        `one_pass` takes every batch at once, as if memory had no limit.
        """
        counts = [count for count in counts if count == 1 or fits.synchronised]
        if cluster.devices and not one_pass:
            return cls._unequal(fits, cluster, counts, batches)
        workers = np.array(counts, dtype=np.int64)
        once, more = np.zeros_like(workers), np.zeros_like(workers)
        found: dict[int, tuple[MemoryFit, list[int]]] = {}
        for i, count in enumerate(counts):
            memory = memory_for(fits.memory, count, fits.zero_stage)
            if memory is not None:
                found.setdefault(id(memory), (memory, []))[1].append(i)
        for memory, places in found.values():
            once[places] = _UNLIMITED if one_pass else memory.max_micro_batch(cluster, 1)
            more[places] = _UNLIMITED if one_pass else memory.max_micro_batch(cluster, 2)
        rows = [_spread(batch, workers, once, more) for batch in batches]
        return cls(fits, cluster, *np.concatenate([np.zeros((4, 0), dtype=np.int64), *rows], axis=1))

    @classmethod
    def _unequal(cls, fits: Fits, cluster: Cluster, counts: Sequence[int], batches: Iterable[int]) -> "Space":
        plans = [
            plan
            for batch in batches
            for count in counts
            if (plan := feasible_plan(batch, count, fits.memory, cluster, fits.zero_stage)) is not None
        ]
        rows = [(p.workers, p.global_batch, p.micro_batch, p.accumulation) for p in plans]
        return cls(fits, cluster, *np.array(rows, dtype=np.int64).reshape(-1, 4).T)

    @functools.cached_property
    def outcomes(self) -> Outcomes:
        """Predict every plan at the middle of its interval; examples are nan where none were measured."""
        assert self.fits.step_time is not None and self.fits.mean_over_median is not None
        nodes = -(-self.workers // self.cluster.workers_per_node)
        shapes = (nodes, self.workers, self.micro_batch, self.accumulation)
        step_time_s = self.fits.step_time.typical_s(*(part.astype(float) for part in shapes))
        batches, which = np.unique(self.global_batch, return_inverse=True)
        examples = self.fits.typical_examples(batches.tolist())
        return Outcomes(
            workers=self.workers.astype(float),
            global_batch=self.global_batch.astype(float),
            step_time_s=step_time_s,
            examples=examples[which],
            mean_over_median=self.fits.mean_over_median.value,
            price_per_device_hour=self.cluster.price_per_device_hour,
            least_examples=np.array(self.fits.least_examples),
        )

    def entry(self, place: int) -> dict[str, int]:
        """Give the numbers of an entry."""
        return {
            "workers": int(self.workers[place]),
            "global_batch": int(self.global_batch[place]),
            "micro_batch": int(self.micro_batch[place]),
            "accumulation": int(self.accumulation[place]),
            "zero_stage": self.fits.zero_stage,
        }


def _spread(batch: int, workers: Integers, once: Integers, more: Integers) -> Integers:
    """Spread one batch over every worker count that takes it: [workers, batch, micro-batch, accumulation]."""
    small = np.arange(1, math.isqrt(batch) + 1)
    small = small[batch % small == 0]
    divisors = np.union1d(small, batch // small)
    single = batch <= workers * once
    room = np.maximum(workers * more, 1)
    place = np.maximum(np.searchsorted(divisors, -(-batch // room)), 1)  # from 2 on: more than one pass
    several = (more > 0) & (place < len(divisors))
    accumulation = np.where(single, 1, divisors[np.minimum(place, len(divisors) - 1)])
    feasible = (single & (once > 0) & (batch >= workers)) | (
        ~single & several & (batch // accumulation >= workers)
    )
    kept, accumulation = workers[feasible], accumulation[feasible]
    micro = -(-(batch // accumulation) // kept)
    return np.stack([kept, np.full_like(kept, batch), micro, accumulation])
