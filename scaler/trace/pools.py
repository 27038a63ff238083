"""The pools of PyTorch's caching allocator: segments, their blocks, and which block a request gets.

Names in brackets are what a method stands for in PyTorch's c10/cuda/CUDACachingAllocator.cpp.
"""

from bisect import bisect_left, insort
from operator import attrgetter

_MIB = 2**20
ROUND_BYTES = 512  # kMinBlockSize
SMALL_BYTES = _MIB  # kSmallSize: the largest request that the small pool serves
_SMALL_SEGMENT = 2 * _MIB  # kSmallBuffer
_LARGE_SEGMENT = 20 * _MIB  # kLargeBuffer
_OWN_SEGMENT_BYTES = 10 * _MIB  # kMinLargeAlloc: requests from here on get a segment of their own size,
_OWN_SEGMENT_ROUND = 2 * _MIB  # kRoundLarge: rounded up to this
_ADDRESS_BITS = 52
_ADDRESS_RANGE = 2**23 * _LARGE_SEGMENT  # of an expandable segment: 160 TiB, which no device fills


class Device:
    """The bytes that segments hold of the device, and the addresses of new ones."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._next_address = _ADDRESS_RANGE  # above every address that CUDA gives
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0

    def reserve(self, size: int) -> bool:
        """Take so many bytes of the device; whether there was room."""
        if self.reserved_bytes + size > self._capacity_bytes:
            return False
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True

    def new_address(self, size: int) -> int:
        """Give an address range that no segment has."""
        self._next_address += size
        return self._next_address - size


class Block:
    """A stretch of a segment, linked to the stretches before and after it."""

    __slots__ = ("address", "after", "before", "free", "mapped", "pool", "size")

    def __init__(
        self, pool: "Pool", address: int, size: int, before: "Block | None", after: "Block | None"
    ) -> None:
        self.pool, self.address, self.size = pool, address, size
        self.free = self.mapped = True
        self.before, self.after = before, after
        if before is not None:
            before.after = self
        if after is not None:
            after.before = self


class Pool:
    """The free blocks of one size class; its segments come whole from cudaMalloc."""

    def __init__(self, device: Device, small: bool) -> None:
        self._device = device
        self._small = small
        self.smallest_rest = ROUND_BYTES if small else SMALL_BYTES + 1  # [should_split]
        self._keys: list[int] = []  # size and address in one integer: bisect compares these fast
        self._free: dict[int, Block] = {}

    def take(self, size: int) -> Block | None:
        """Remove the smallest free block that fits, the lowest of several [get_free_block]."""
        index = bisect_left(self._keys, size << _ADDRESS_BITS)
        return self._free.pop(self._keys.pop(index)) if index < len(self._keys) else None

    def grow(self, size: int) -> Block | None:
        """Get a new segment, or None without room for it [alloc_block, get_allocation_size]."""
        if self._small:
            segment = _SMALL_SEGMENT
        elif size < _OWN_SEGMENT_BYTES:
            segment = _LARGE_SEGMENT
        else:
            segment = -(-size // _OWN_SEGMENT_ROUND) * _OWN_SEGMENT_ROUND
        if not self._device.reserve(segment):
            return None
        return Block(self, self._device.new_address(segment), segment, None, None)

    def insert(self, block: Block) -> None:
        """Make a free block available."""
        key = block.size << _ADDRESS_BITS | block.address
        insort(self._keys, key)
        self._free[key] = block

    def remove(self, block: Block) -> None:
        """Take a free block out of what is available."""
        key = block.size << _ADDRESS_BITS | block.address
        del self._keys[bisect_left(self._keys, key)]
        del self._free[key]

    def merge(self, block: Block) -> None:
        """Let a block that is in no list swallow its free neighbours [try_merge_blocks]."""
        before, after = block.before, block.after
        if before is not None and before.free and before.mapped is block.mapped:
            self.remove(before)
            block.address = before.address
            block.size += before.size
            block.before = before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.free and after.mapped is block.mapped:
            self.remove(after)
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block

    def release(self) -> None:
        """Free every segment that is one free block [release_blocks]."""
        for block in list(self._free.values()):
            if block.before is None and block.after is None:
                self.remove(block)
                self._device.reserved_bytes -= block.size


class ExpandablePool(Pool):
    """The blocks of one segment that grows and shrinks in place by whole granules [ExpandableSegment]."""

    def __init__(self, device: Device, small: bool) -> None:
        super().__init__(device, small)
        self.smallest_rest = ROUND_BYTES
        self._granule = _SMALL_SEGMENT if small else _LARGE_SEGMENT
        self._unmapped: list[Block] = []  # by address
        start = device.new_address(_ADDRESS_RANGE)
        self._insert_unmapped(Block(self, start, _ADDRESS_RANGE, None, None))

    def take(self, size: int) -> Block | None:
        """Best fit, where a block counts as large as it can grow [get_free_block]."""
        index = bisect_left(self._keys, size << _ADDRESS_BITS)
        if index == len(self._keys):
            return None
        best = self._free[self._keys[index]]
        for place in range(index + 1, len(self._keys)):
            block = self._free[self._keys[place]]
            if _reach(block) >= _reach(best):
                break
            best = block
        self.remove(best)
        return best

    def grow(self, size: int) -> Block | None:
        """Map the lowest granules that make room [try_allocate_expandable_block]."""
        block = self._lowest(size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            unmapped = block.after
            assert unmapped is not None, "the range ends in an unmapped block that always fits"
            if not self._map(unmapped, min(unmapped.size, size - block.size)):
                return None
            block = unmapped  # which swallowed the mapped block before it
        self.remove(block)
        return block

    def remove(self, block: Block) -> None:
        """Take a free block out of what is available."""
        if block.mapped:
            super().remove(block)
        else:
            self._unmapped.remove(block)

    def release(self) -> None:
        """Unmap every granule that is free as a whole [release_blocks, unmap_block]."""
        for block in list(self._free.values()):
            start = -(-block.address // self._granule) * self._granule
            end = (block.address + block.size) // self._granule * self._granule
            if start < end:
                self._unmap(block, start, end)

    def _lowest(self, size: int) -> Block:
        """Find the lowest free stretch that fits and has something to map [find_expandable_block]."""
        for unmapped in self._unmapped:
            before = unmapped.before
            first = block = before if before is not None and before.free else unmapped
            room = block.size
            while room < size and block.after is not None and block.after.free:
                block = block.after
                room += block.size
            if room >= size:
                break
        return first

    def _map(self, block: Block, size: int) -> bool:
        """Back the start of an unmapped block with memory [map_block]."""
        size = -(-size // self._granule) * self._granule
        if not self._device.reserve(size):
            return False
        self._unmapped.remove(block)
        if size < block.size:
            rest = Block(self, block.address + size, block.size - size, block, block.after)
            self._insert_unmapped(rest)
            block.size = size
        block.mapped = True
        self.merge(block)
        self.insert(block)
        return True

    def _unmap(self, block: Block, start: int, end: int) -> None:
        self.remove(block)
        if block.address < start:
            self.insert(Block(self, block.address, start - block.address, block.before, block))
        if end < block.address + block.size:
            self.insert(Block(self, end, block.address + block.size - end, block, block.after))
        block.address, block.size = start, end - start
        self._device.reserved_bytes -= block.size
        block.mapped = False
        self.merge(block)
        self._insert_unmapped(block)

    def _insert_unmapped(self, block: Block) -> None:
        block.mapped = False
        insort(self._unmapped, block, key=attrgetter("address"))


def _reach(block: Block) -> int:
    """Count the bytes that the block could grow to."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)
