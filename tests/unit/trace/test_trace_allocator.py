"""The simulated caching allocator: hand-computed cases, and any sequence of requests against a slow model."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.trace.allocator import CachingAllocator, OutOfMemory

MIB = 2**20

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.one_of(
    st.integers(1, 2 * MIB),
    st.integers(1, 50 * MIB),
    st.sampled_from([512, MIB, MIB + 1, 2 * MIB, 10 * MIB - 512, 10 * MIB, 11 * MIB, 19 * MIB, 20 * MIB]),
)
scripts = st.lists(st.one_of(sizes, sizes, st.integers(-50, -1)), max_size=60)
"""Above 0: allocate so much. Below 0: free one of the live blocks."""
both_kinds = pytest.mark.parametrize("expandable", [False, True])


class Process:
    """Follows a script; `live` has the blocks in use, with what was asked for."""

    def __init__(self, allocator, rename=lambda key: key):
        self.allocator, self.rename = allocator, rename
        self.live = {}
        self.ran_out = 0
        self.number = 0

    def follow(self, step):
        if step > 0:
            self.number += 1
            try:
                self.allocator.malloc(self.rename(self.number), step)
            except OutOfMemory as error:
                assert error.requested_bytes == step
                assert error.reserved_bytes == self.allocator.reserved_bytes
                self.ran_out += 1
            else:
                self.live[self.number] = step
        elif self.live:
            self.free(list(self.live)[step % len(self.live)])

    def free(self, key):
        del self.live[key]
        self.allocator.free(self.rename(key))

    def free_all(self):
        for key in list(self.live):
            self.free(key)


def followed(script, *arguments, rename=lambda key: key):
    process = Process(CachingAllocator(*arguments), rename)
    for step in script:
        process.follow(step)
    return process


def counters(allocator):
    return (
        allocator.allocated_bytes,
        allocator.reserved_bytes,
        allocator.peak_allocated_bytes,
        allocator.peak_reserved_bytes,
        allocator.retries,
    )


def mib(*sizes, **options):
    """Allocate blocks 0, 1, ... of so many MiB each."""
    allocator = CachingAllocator(**options)
    for key, size in enumerate(sizes):
        allocator.malloc(key, round(size * MIB))
    return allocator


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of 1 MiB is not split off
        (11 * MIB + 1, 12 * MIB, 12 * MIB),
        (12 * MIB + 1, 12 * MIB + 512, 14 * MIB),
    ],
)
def test_one_request(size, allocated, reserved):
    allocator = CachingAllocator()
    allocator.malloc(7, size)
    assert counters(allocator) == (allocated, reserved, allocated, reserved, 0)


def test_requests_share_a_segment_until_it_is_full():
    assert mib(9, 9).reserved_bytes == 20 * MIB
    assert mib(9, 9, 2).reserved_bytes == 20 * MIB
    assert mib(9, 9, 2, 2).reserved_bytes == 40 * MIB
    assert mib(1, 1).reserved_bytes == 2 * MIB
    assert mib(1, 1, 0.5).reserved_bytes == 4 * MIB


def test_the_smallest_free_block_that_fits_is_taken_and_the_lowest_of_equals():
    allocator = mib(30, 16, 16)
    middle, last = allocator.address(1), allocator.address(2)
    for key in (2, 0, 1):
        allocator.free(key)
    allocator.malloc(3, 15 * MIB)
    allocator.malloc(4, 15 * MIB)
    assert (allocator.address(3), allocator.address(4)) == (middle, last)
    assert allocator.reserved_bytes == 62 * MIB


def test_free_neighbours_are_joined_but_not_across_segments():
    allocator = mib(5, 5, 5, 5)
    for key in (0, 2, 1):
        allocator.free(key)
    allocator.malloc(4, 15 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.free(3)
    allocator.free(4)
    allocator.malloc(5, 20 * MIB)
    assert allocator.reserved_bytes == 20 * MIB

    allocator = mib(10, 10)
    allocator.free(0)
    allocator.free(1)
    allocator.malloc(2, 20 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_small_requests_never_use_large_segments():
    allocator = mib(20)
    allocator.free(0)
    allocator.malloc(1, 1)
    assert allocator.reserved_bytes == 22 * MIB


def test_cached_segments_are_released_when_the_device_is_full():
    allocator = mib(20, 1, capacity_bytes=42 * MIB)
    allocator.free(0)
    allocator.malloc(2, 30 * MIB)
    assert allocator.retries == 1
    assert allocator.reserved_bytes == 32 * MIB
    assert allocator.peak_reserved_bytes == 32 * MIB


@both_kinds
def test_running_out_leaves_the_allocator_usable(expandable):
    allocator = mib(40, 9, 5, capacity_bytes=60 * MIB, expandable_segments=expandable)
    allocator.free(1)
    with pytest.raises(OutOfMemory, match="16777215 bytes, with 62914560 bytes reserved") as caught:
        allocator.malloc(3, 16 * MIB - 1)  # every segment is partly in use: nothing to release
    assert (caught.value.requested_bytes, caught.value.reserved_bytes) == (16 * MIB - 1, 60 * MIB)
    assert allocator.retries == 1
    allocator.malloc(3, 9 * MIB)
    assert counters(allocator)[:2] == (54 * MIB, 60 * MIB)


def test_a_key_in_use_and_an_unknown_one_are_refused():
    allocator = mib(1)
    with pytest.raises(ValueError, match="allocated already"):
        allocator.malloc(0, 1)
    with pytest.raises(KeyError):
        allocator.free(1)


def test_an_adopted_segment_is_used_like_any_other():
    allocator = CachingAllocator()
    allocator.adopt_segment(64 * MIB, [(7, 4 * MIB), (None, 6 * MIB), (8, 2 * MIB)], small=False)
    allocator.adopt_segment(32 * MIB, [(None, 2 * MIB)], small=True)
    assert counters(allocator) == (6 * MIB, 14 * MIB, 6 * MIB, 14 * MIB, 0)
    allocator.malloc(1, 6 * MIB)
    allocator.malloc(2, 1)
    assert (allocator.address(1), allocator.address(2)) == (68 * MIB, 32 * MIB)
    for key in (7, 8, 1):
        allocator.free(key)
    allocator.malloc(3, 12 * MIB)
    assert allocator.address(3) == 64 * MIB
    assert allocator.reserved_bytes == 14 * MIB


def test_an_expandable_segment_grows_by_granules():
    assert mib(1, expandable_segments=True).reserved_bytes == 2 * MIB
    assert mib(1.5, expandable_segments=True).reserved_bytes == 20 * MIB
    allocator = mib(30, expandable_segments=True)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (30 * MIB, 40 * MIB)
    allocator.malloc(1, 25 * MIB)  # 10 MiB of it in the tail
    assert allocator.address(1) == allocator.address(0) + 30 * MIB
    assert allocator.reserved_bytes == 60 * MIB


def test_an_expandable_segment_splits_off_any_rest():
    allocator = mib(20, expandable_segments=True)
    allocator.free(0)
    allocator.malloc(1, 20 * MIB - 512)
    assert allocator.allocated_bytes == 20 * MIB - 512


def test_a_tail_that_can_grow_is_kept_for_larger_requests():
    allocator = mib(10, 2, expandable_segments=True)  # and a tail of 8 MiB
    start = allocator.address(0)
    allocator.free(0)
    allocator.malloc(2, 4 * MIB)
    assert allocator.address(2) == start


def test_free_granules_are_unmapped_and_the_hole_is_filled_first():
    allocator = mib(20, 20, 20, 1, expandable_segments=True, capacity_bytes=102 * MIB)
    hole = allocator.address(0)
    allocator.free(0)
    allocator.free(3)
    allocator.malloc(4, 50 * MIB)  # the tail needs 60 MiB: both pools are unmapped first
    assert allocator.retries == 1
    assert allocator.reserved_bytes == 100 * MIB
    allocator.free(4)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 40 * MIB
    allocator.free(1)
    allocator.malloc(5, 35 * MIB)  # the hole of 20 MiB and the free block after it
    assert allocator.address(5) == hole
    assert allocator.reserved_bytes == 60 * MIB
    assert allocator.retries == 1


def test_only_whole_granules_are_unmapped():
    allocator = mib(15, 35, 15, expandable_segments=True)  # granules end at 20, 40, 60 and 80 MiB
    allocator.free(1)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 60 * MIB
    allocator.malloc(3, 5 * MIB)  # fits in what is left on both sides
    allocator.malloc(4, 10 * MIB)
    assert allocator.reserved_bytes == 60 * MIB


@both_kinds
@quiet
@given(script=scripts, capacity=st.none() | st.integers(0, 200 * MIB))
def test_blocks_never_overlap_and_counters_agree(expandable, script, capacity):
    process = Process(CachingAllocator(capacity, expandable))
    allocator, peaks = process.allocator, (0, 0)
    for step in script:
        process.follow(step)
        places = sorted((allocator.address(key), size) for key, size in process.live.items())
        assert all(a + size <= b for (a, size), (b, _) in pairwise(places))
        assert sum(process.live.values()) <= allocator.allocated_bytes <= allocator.reserved_bytes
        assert capacity is None or allocator.reserved_bytes <= capacity
        before, peaks = peaks, (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes)
        assert before <= peaks
        assert peaks[0] >= allocator.allocated_bytes
        assert peaks[1] >= allocator.reserved_bytes
    assert allocator.retries >= process.ran_out


@both_kinds
@quiet
@given(script=scripts, capacity=st.none() | st.integers(0, 200 * MIB))
def test_freeing_everything_leaves_nothing_split(expandable, script, capacity):
    process = followed(script, capacity, expandable)
    process.free_all()
    allocator = process.allocator
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


@both_kinds
@quiet
@given(script=scripts, capacity=st.integers(0, 200 * MIB))
def test_names_do_not_matter(expandable, script, capacity):
    plain = followed(script, capacity, expandable)
    renamed = followed(script, capacity, expandable, rename=lambda key: -7 * key)
    assert counters(plain.allocator) == counters(renamed.allocator)


@both_kinds
@quiet
@given(script=scripts)
def test_a_request_that_was_met_before_is_met_from_the_cache(expandable, script):
    process = followed(script, None, expandable)
    process.free_all()
    reserved = process.allocator.reserved_bytes
    for step in script:
        process.follow(step)
        process.free_all()
    assert process.allocator.reserved_bytes == reserved


@quiet
@given(script=scripts, capacity=st.none() | st.integers(0, 200 * MIB))
def test_a_slow_model_agrees(script, capacity):
    fast, slow = Process(CachingAllocator(capacity)), Process(SlowAllocator(capacity))
    for step in script:
        fast.follow(step)
        slow.follow(step)
        assert fast.live == slow.live
        for name in ("allocated_bytes", "reserved_bytes", "retries"):
            assert getattr(fast.allocator, name) == getattr(slow.allocator, name)


class SlowAllocator:
    """Segments as lists of [bytes, key or None], searched from end to end."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.segments = []  # (small, blocks), oldest first
        self.retries = 0

    @property
    def reserved_bytes(self):
        return sum(size for _, blocks in self.segments for size, _ in blocks)

    @property
    def allocated_bytes(self):
        return sum(size for _, blocks in self.segments for size, key in blocks if key is not None)

    def malloc(self, key, size):
        rounded = -(-size // 512) * 512
        small = rounded <= MIB
        segment = 2 * MIB if small else 20 * MIB if rounded < 10 * MIB else -(-rounded // (2 * MIB)) * 2 * MIB
        if not self.fitting(small, rounded):
            if not self.has_room(segment):
                self.retries += 1
                self.segments = [s for s in self.segments if len(s[1]) > 1 or s[1][0][1] is not None]
                if not self.has_room(segment):
                    raise OutOfMemory(size, self.reserved_bytes)
            self.segments.append((small, [[segment, None]]))
        _, place, index = min(self.fitting(small, rounded))
        blocks = self.segments[place][1]
        rest = blocks[index][0] - rounded
        if rest >= 512 if small else rest > MIB:
            blocks[index : index + 1] = [[rounded, key], [rest, None]]
        else:
            blocks[index][1] = key

    def free(self, key):
        for _, blocks in self.segments:
            for block in blocks:
                block[1] = None if block[1] == key else block[1]
            for index in range(len(blocks) - 1, 0, -1):
                if blocks[index][1] is None and blocks[index - 1][1] is None:
                    blocks[index - 1][0] += blocks.pop(index)[0]

    def fitting(self, small, size):
        return [
            (block[0], place, index)
            for place, (kind, blocks) in enumerate(self.segments)
            for index, block in enumerate(blocks)
            if kind is small and block[1] is None and block[0] >= size
        ]

    def has_room(self, size):
        return self.capacity is None or self.reserved_bytes + size <= self.capacity
