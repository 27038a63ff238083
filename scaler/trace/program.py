"""A training step's allocations at any micro-batch: a block's bytes are fixed + per_example x micro_batch."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from scaler.trace.allocator import CachingAllocator
from scaler.trace.tracer import Category, Phase, Trace

CATEGORIES: tuple[Category, ...] = get_args(Category)
PHASES: tuple[Phase, ...] = get_args(Phase)
_SETTLING_STEPS = 5
_ROUND_BYTES = 512  # the allocator's, and a mock device's

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Peak:
    """What a replay came to. Items are the bytes in use, by category, when most was allocated."""

    allocated_bytes: int
    reserved_bytes: int
    """What the allocator held of the device; equal to `allocated_bytes` without a caching allocator."""
    items: dict[Category, int]
    regime: Phase
    retries: int = 0
    """Releases of cached memory in the last optimizer step: a size that needs them trains slowly."""


@dataclass(frozen=True)
class Program:
    """Allocations in order, as in `Trace`; all arrays are int64.

    `events` [e]: k > 0 allocates block k - 1, k < 0 frees block -k - 1, 0 gives cached memory back to the
    device; `phases` [e] index PHASES;
    `categories`, `fixed_bytes`, `example_bytes` [blocks].
    """

    events: Ints
    phases: Ints
    categories: Ints
    fixed_bytes: Ints
    example_bytes: Ints
    step_ends: tuple[int, ...]
    element_bytes: int
    """Bytes of a trained parameter's element."""

    @classmethod
    def between(cls, small: Trace, large: Trace) -> "Program":
        """Draw the line through two traces of the same step.

        Raises:
            ValueError: the traces do not allocate the same blocks in the same order.
        """
        events = _ordered(small)
        kinds, theirs = ([(b.category, b.phase) for b in trace.blocks] for trace in (small, large))
        if not np.array_equal(events, _ordered(large)) or kinds != theirs:
            raise ValueError("the step allocates otherwise at another micro-batch")
        at_small, at_large = (np.array([b.bytes for b in t.blocks], np.int64) for t in (small, large))
        example_bytes = (at_large - at_small) // (large.micro_batch - small.micro_batch)
        return cls(
            events=events,
            phases=np.array([PHASES.index(p) for p in small.phases], np.int64)[: len(events)],
            categories=np.array([CATEGORIES.index(b.category) for b in small.blocks], np.int64),
            fixed_bytes=at_small - example_bytes * small.micro_batch,
            example_bytes=example_bytes,
            step_ends=tuple(small.step_ends),
            element_bytes=small.element_bytes,
        )

    def error(self, trace: Trace) -> float:
        """Compare with a trace at another micro-batch: bytes off as a share, infinite where unlike."""
        if not np.array_equal(self.events, _ordered(trace)):
            return np.inf
        theirs = np.array([block.bytes for block in trace.blocks], np.int64)
        ours = np.maximum(self.fixed_bytes + self.example_bytes * trace.micro_batch, 0)
        return float(np.abs(ours - theirs).sum() / theirs.sum())

    def held_bytes(self, category: Category, phase: Phase | None = None) -> int:
        """Give the most fixed bytes that a category (made in a phase) holds at a time."""
        blocks = np.abs(self.events) - 1
        counted = self.categories[blocks] == CATEGORIES.index(category)
        if phase is not None:
            made = np.zeros(len(self.fixed_bytes), bool)
            made[self.events[(self.events > 0) & (self.phases == PHASES.index(phase))] - 1] = True
            counted &= made[blocks]
        sizes = np.where(counted, self.fixed_bytes[blocks], 0)
        return int(np.cumsum(np.sign(self.events) * sizes).max(initial=0))

    def block_bytes(self, micro_batch: int) -> Ints:
        """Give every block's bytes, rounded as the allocator rounds them."""
        exact = np.maximum(self.fixed_bytes + self.example_bytes * micro_batch, 0)
        rounded: Ints = -(-exact // _ROUND_BYTES) * _ROUND_BYTES
        return rounded

    def count(self, micro_batch: int) -> Peak:
        """Add the blocks up, without a caching allocator."""
        change = self._changes(micro_batch)
        live = np.cumsum(change)
        top = int(live.argmax())
        blocks = np.abs(self.events[: top + 1]) - 1
        totals = np.bincount(self.categories[blocks], change[: top + 1], len(CATEGORIES))
        items = {name: round(total) for name, total in zip(CATEGORIES, totals, strict=True)}
        allocated = int(live[top])
        return Peak(allocated, allocated, items, PHASES[int(self.phases[top])])

    def replay(self, micro_batch: int, capacity_bytes: int | None, expandable_segments: bool) -> Peak:
        """Replay the step through CUDA's caching allocator.

        Raises:
            OutOfMemory: it needs more than `capacity_bytes`, even after releasing what is cached.
        """
        allocator = CachingAllocator(capacity_bytes, expandable_segments)
        sizes = self.block_bytes(micro_batch).tolist()
        events = self.events.tolist()
        start, end = self.step_ends[-2:]
        live: set[int] = set()
        self._run(allocator, events[:start], sizes, live)
        retries = 0
        # What is cached settles: only a step that goes on releasing is slow, and some run out late.
        for _ in range(_SETTLING_STEPS):
            before = allocator.retries
            self._run(allocator, events[start:end], sizes, live)
            retries = allocator.retries - before
        counted = self.count(micro_batch)
        return Peak(
            allocated_bytes=allocator.peak_allocated_bytes,
            reserved_bytes=allocator.peak_reserved_bytes,
            items=counted.items,
            regime=counted.regime,
            retries=retries,
        )

    @staticmethod
    def _run(allocator: CachingAllocator, events: list[int], sizes: list[int], live: set[int]) -> None:
        """Replay events; in a repeated step, a block that is still there makes way for itself."""
        for event in events:
            block = abs(event)
            if event == 0:
                allocator.empty_cache()
            if block in live:
                allocator.free(block)
                live.remove(block)
            if event > 0 and sizes[block - 1]:
                allocator.malloc(block, sizes[block - 1])
                live.add(block)

    def _changes(self, micro_batch: int) -> Ints:
        changes: Ints = np.sign(self.events) * self.block_bytes(micro_batch)[np.abs(self.events) - 1]
        return changes


def _ordered(trace: Trace) -> Ints:
    """Give the steps' events with each run of frees in order: a cleared cache frees in order of hashes."""
    events = np.array(trace.events[: trace.step_ends[-1]], np.int64)  # what follows is the end of tracing
    numbers = np.arange(len(events))
    freed = events < 0
    phases = np.array([PHASES.index(p) for p in trace.phases[: len(events)]], np.int64)
    turns = np.diff(phases, prepend=phases[:1]) != 0
    # A run ends where the other kind begins, and with its phase and its step.
    run = np.cumsum(np.diff(freed, prepend=False) | turns | np.isin(numbers, trace.step_ends))
    ordered: Ints = events[np.lexsort((np.where(freed, -events, numbers), run))]
    return ordered
