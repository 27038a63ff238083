"""Peak reserved bytes: the simulated caching allocator against recorded CUDA training steps.

`python benchmarks/allocator.py [--data FOLDER]`; FOLDER holds memory/alloc_*.csv.gz (default: SCALER_DATA,
then ../shared/data seen from the repository).

The truth comes from a record's segment_alloc and segment_free events alone. But a record begins in the middle
of a process's life: some blocks lie in segments from before. Those segments are rebuilt from the addresses in
the record and handed to the simulator before the replay. They count on both sides of the comparison, so their
share of the peak is printed with it. How they are rebuilt:

- Old memory is what recorded blocks cover outside recorded segments. A byte first named by an `alloc` was
  free at the beginning; one first named by a `free_completed` was in use.
- Small segments are pages: 2 MiB, at multiples of 2 MiB. Large ones begin at a page too: where a known page
  follows unknown ones, and wherever a block is allocated while the bytes before it are known to be free,
  since the allocator takes a free block from its front.
- Bytes in these segments that no recorded block covers were in use throughout, and the simulator may not have
  them; but up to 1 MiB after a large block is a rest that was never split off.

So the simulator starts with the least memory that the recorded steps needed: if it packs worse than the real
allocator, it must reserve more, and if better, less than was recorded.
"""

import argparse
import csv
import gzip
import os
import sys
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from figure import Figure, table

from scaler.trace.allocator import CachingAllocator

MIB = 2**20
PAGE = 2 * MIB  # cudaMalloc's granularity, and a small segment
SMALL = MIB  # largest block of the small pool; also the largest rest that is not split off
GOAL = 0.01


class Event(NamedTuple):
    action: str
    address: int
    bytes: int

    @property
    def end(self) -> int:
        return self.address + up(self.bytes, 512)


class Stretch(NamedTuple):
    start: int
    end: int


class Segment(NamedTuple):
    start: int
    end: int
    known: list[Stretch]


@dataclass(frozen=True)
class Result:
    name: str
    events: int
    old: int
    recorded: int
    simulated: int
    seconds: float

    @property
    def error(self) -> float:
        return self.simulated / self.recorded - 1


def measure(data: Path | None = None) -> list[Figure]:
    folder = (data or default_data()) / "memory"
    results = [compare(path) for path in sorted(folder.glob("alloc_*.csv.gz"))]
    if not results:
        print(f"skipping allocator: no alloc_*.csv.gz in {folder}; set SCALER_DATA", file=sys.stderr)
        return []
    for r in results:
        print(
            f"{r.name}: simulated {r.simulated / MIB:,.0f} MiB, recorded {r.recorded / MIB:,.0f} MiB, error "
            f"{r.error:+.2%}; of it existed before {r.old / MIB:,.0f} MiB ({r.old / r.recorded:.0%}), grew "
            f"{(r.simulated - r.old) / MIB:,.0f} against {(r.recorded - r.old) / MIB:,.0f} MiB; "
            f"{r.events} events in {r.seconds * 1e3:.0f} ms",
            file=sys.stderr,
        )
    errors = [abs(r.error) for r in results]
    speeds = [r.seconds / r.events * 1e6 for r in results]
    old = ", ".join(f"{r.old / r.recorded:.0%}" for r in results)
    return [
        Figure(
            "peak reserved memory, simulated against recorded",
            f"within {GOAL:.0%} on each record",
            f"worst {max(errors):.2%} of {len(errors)}",
            f"allocator events of recorded CUDA steps, {min(speeds):.1f} to {max(speeds):.1f} us an event; "
            f"{old} of the peaks existed before the record",
        )
    ]


def default_data() -> Path:
    return Path(os.environ.get("SCALER_DATA") or Path(__file__).parents[2] / "shared" / "data")


def compare(path: Path) -> Result:
    events = read(path)
    allocator = CachingAllocator()
    rebuild(allocator, events)
    old = allocator.reserved_bytes
    owner = {event.address: event.address for event in first_freed(events)}
    steps = []
    for number, event in enumerate(events):
        if event.action == "alloc":
            owner[event.address] = number
            steps.append((number, event.bytes))
        elif event.action == "free_completed":
            steps.append((owner.pop(event.address), 0))
    start = time.perf_counter()
    for key, size in steps:
        if size:
            allocator.malloc(key, size)
        else:
            allocator.free(key)
    seconds = time.perf_counter() - start
    name = path.name.removesuffix(".csv.gz")
    recorded = old + recorded_growth(events)
    return Result(name, len(steps), old, recorded, allocator.peak_reserved_bytes, seconds)


def read(path: Path) -> list[Event]:
    with gzip.open(path, "rt") as file:
        rows = csv.DictReader(file)
        return [Event(row["action"], int(row["address"]), int(row["bytes"])) for row in rows]


def recorded_growth(events: list[Event]) -> int:
    sign = {"segment_alloc": 1, "segment_free": -1}
    now = most = 0
    for event in events:
        now += sign.get(event.action, 0) * event.bytes
        most = max(most, now)
    return most


def rebuild(allocator: CachingAllocator, events: list[Event]) -> None:
    """Hand the allocator the segments that existed before the first event."""
    named = old_blocks(events)
    in_use = [Stretch(block.address, block.end) for block in first_freed(named)]
    for small in (True, False):
        blocks = [block for block in named if (block.bytes <= SMALL) is small]
        known = union(Stretch(block.address, block.end) for block in blocks)
        for segment in segments(known, page_starts(known) if small else proven_starts(blocks, known)):
            taken = [(block, block.start) for block in in_use if segment.start <= block.start < segment.end]
            taken += [(gap, -gap.start) for gap in unnamed(segment, small)]
            allocator.adopt_segment(segment.start, layout(segment, sorted(taken)), small)


def old_blocks(events: list[Event]) -> list[Event]:
    """Allocations and frees outside the segments that the record has seen made."""
    seen: list[Stretch] = []
    old = []
    for event in events:
        if event.action == "segment_alloc":
            insort(seen, Stretch(event.address, event.address + event.bytes))
        elif event.action == "segment_free" and (segment := Stretch(event.address, event.end)) in seen:
            seen.remove(segment)
        elif event.action in ("alloc", "free_completed"):
            place = bisect_right(seen, event.address, key=lambda segment: segment.start)
            if not place or event.address >= seen[place - 1].end:
                old.append(event)
    return old


def first_freed(events: list[Event]) -> list[Event]:
    """The blocks in use at the beginning, as the events that free them."""
    live, freed = set(), []
    for event in events:
        if event.action == "alloc":
            live.add(event.address)
        elif event.action == "free_completed":
            if event.address not in live:
                freed.append(event)
            live.discard(event.address)
    return freed


def union(stretches: Iterable[Stretch]) -> list[Stretch]:
    joined: list[Stretch] = []
    for stretch in sorted(set(stretches)):
        if joined and stretch.start <= joined[-1].end:
            joined[-1] = Stretch(joined[-1].start, max(stretch.end, joined[-1].end))
        else:
            joined.append(stretch)
    return joined


def page_starts(known: list[Stretch]) -> set[int]:
    return {page for stretch in known for page in range(down(stretch.start, PAGE), stretch.end, PAGE)}


def proven_starts(blocks: list[Event], known: list[Stretch]) -> set[int]:
    """Where a large block was allocated although more than an unsplit rest was free before it."""
    starts = set()
    used = sorted(Stretch(block.address, block.end) for block in first_freed(blocks))
    for event in blocks:
        place = bisect_left(used, Stretch(event.address, 0))
        if event.action == "free_completed":
            del used[place]
            continue
        stretch = known[bisect_right(known, event.address, key=lambda stretch: stretch.start) - 1]
        free_from = max(stretch.start, used[place - 1].end if place else 0)
        if event.address - free_from > SMALL and event.address % PAGE == 0:
            starts.add(event.address)
        used.insert(place, Stretch(event.address, event.end))
    return starts


def segments(known: list[Stretch], starts: set[int]) -> Iterator[Segment]:
    """Cut the known memory at the given starts, and wherever a page begins with unknown bytes before it."""
    end = 0
    for stretch in known:
        if down(stretch.start, PAGE) >= end:
            starts = starts | {down(stretch.start, PAGE)}
        end = stretch.end
    for start, after in pairwise([*sorted(starts), up(end, PAGE)]):
        inside = [Stretch(max(a, start), min(b, after)) for a, b in known if a < after and b > start]
        yield Segment(start, up(inside[-1].end, PAGE), inside)


def unnamed(segment: Segment, small: bool) -> Iterator[Stretch]:
    """The bytes that no recorded block covered, less what can be the unsplit rest of a large block."""
    ends = [segment.start, *(stretch.end for stretch in segment.known)]
    begins = [*(stretch.start for stretch in segment.known), segment.end]
    for end, begin in zip(ends, begins, strict=True):
        rest = not small and end > segment.start and begin - end <= SMALL
        if begin > end and not rest:
            yield Stretch(end, begin)


def layout(segment: Segment, taken: list[tuple[Stretch, int]]) -> list[tuple[int | None, int]]:
    """The blocks in use, under their keys, and the free ones between them."""
    blocks: list[tuple[int | None, int]] = []
    place = segment.start
    for block, key in taken:
        if block.start > place:
            blocks.append((None, block.start - place))
        blocks.append((key, block.end - block.start))
        place = block.end
    return blocks if place == segment.end else [*blocks, (None, segment.end - place)]


def down(number: int, multiple: int) -> int:
    return number // multiple * multiple


def up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that holds memory/")
    if figures := measure(parser.parse_args().data):
        print(table(figures))
