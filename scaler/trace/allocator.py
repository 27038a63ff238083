"""PyTorch's CUDA caching allocator, simulated: what a training process reserves is more than it allocates.

Follows the native backend at its default settings, with one stream and one thread. Names in brackets are what
a method here stands for in PyTorch's c10/cuda/CUDACachingAllocator.cpp.
"""

import sys
from collections.abc import Sequence

from scaler.trace.pools import ROUND_BYTES, SMALL_BYTES, Block, Device, ExpandablePool, Pool


class OutOfMemory(Exception):
    """The device has no room for a request, even after cached memory was released."""

    def __init__(self, requested_bytes: int, reserved_bytes: int) -> None:
        super().__init__(f"no room for {requested_bytes} bytes, with {reserved_bytes} bytes reserved")
        self.requested_bytes = requested_bytes
        self.reserved_bytes = reserved_bytes


class CachingAllocator:
    """Replays allocations and counts what `torch.cuda.memory_stats` counts.

    `allocated_bytes` is the size of the blocks in use, including a rest too small to split off; `retries` is
    how often cached memory had to be released for a request (`num_alloc_retries`).
    """

    def __init__(self, capacity_bytes: int | None = None, expandable_segments: bool = False) -> None:
        self._device = Device(sys.maxsize if capacity_bytes is None else capacity_bytes)
        pool = ExpandablePool if expandable_segments else Pool
        self._small = pool(self._device, small=True)
        self._large = pool(self._device, small=False)
        self._live: dict[int, Block] = {}
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.retries = 0

    @property
    def reserved_bytes(self) -> int:
        """What the segments hold of the device now (`torch.cuda.memory_reserved`)."""
        return self._device.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that the segments have held of the device."""
        return self._device.peak_reserved_bytes

    def malloc(self, block: int, size_bytes: int) -> None:
        """Allocate one byte or more under the caller's key [malloc, alloc_found_block].

        Raises:
            OutOfMemory: over capacity, even after releasing cached memory.
        """
        if block in self._live:
            raise ValueError(f"block {block} is allocated already")
        size = (size_bytes + ROUND_BYTES - 1) // ROUND_BYTES * ROUND_BYTES
        pool = self._small if size <= SMALL_BYTES else self._large
        found = pool.take(size) or pool.grow(size) or self._retry(pool, size)
        if found is None:
            raise OutOfMemory(size_bytes, self.reserved_bytes)
        if found.size - size >= pool.smallest_rest:
            pool.insert(Block(pool, found.address + size, found.size - size, found, found.after))
            found.size = size
        self._use(block, found)

    def free(self, block: int) -> None:
        """Cache the block, joined with its free neighbours [free_block]."""
        freed = self._live.pop(block)
        self.allocated_bytes -= freed.size
        freed.free = True
        freed.pool.merge(freed)
        freed.pool.insert(freed)

    def empty_cache(self) -> None:
        """Give the device back what no block in use needs [release_cached_blocks]."""
        self._large.release()
        self._small.release()

    def address(self, block: int) -> int:
        """Give the address of a block in use."""
        return self._live[block].address

    def adopt_segment(self, address: int, blocks: Sequence[tuple[int | None, int]], small: bool) -> None:
        """Start from a segment that exists; not for expandable segments.

        `blocks`, in order of address: the key (None if free) and the bytes of each.
        """
        pool = self._small if small else self._large
        last: Block | None = None
        for key, size in blocks:
            self._device.reserve(size)
            last = Block(pool, address, size, last, None)
            address += size
            if key is None:
                pool.insert(last)
            else:
                self._use(key, last)

    def _use(self, key: int, block: "Block") -> None:
        block.free = False
        self._live[key] = block
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes

    def _retry(self, pool: "Pool", size: int) -> "Block | None":
        self.retries += 1
        self.empty_cache()
        return pool.grow(size)
