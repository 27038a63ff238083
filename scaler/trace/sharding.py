"""What data parallelism adds to a device and takes from it: DDP's buckets, DeepSpeed's ZeRO stages."""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from scaler.trace.program import CATEGORIES, PHASES, Program
from scaler.trace.tracer import Category, Phase

# DeepSpeed's defaults (runtime/zero/config.py), in elements.
_BUCKET_ELEMENTS = 500_000_000
_LIVE_ELEMENTS = 1_000_000_000

_OPTIMIZER = PHASES.index("optimizer")
_GRADIENTS = CATEGORIES.index("gradients")


@dataclass(frozen=True)
class Sharding:
    """How a model is spread: over `workers` ranks, at a ZeRO stage."""

    workers: int
    zero_stage: int = 0
    gradient_as_bucket_view: bool = False
    offload_optimizer: bool = False
    bucket_elements: int = _BUCKET_ELEMENTS
    """DeepSpeed's reduce_bucket_size."""


def shard(program: Program, sharding: Sharding) -> Program:
    """Give one rank's allocations under data parallelism, from those of the unsharded step."""
    if sharding.zero_stage:
        return _zero(program, sharding)
    if sharding.workers == 1:
        return program
    # DDP's reducer holds a copy of all gradients (reducer.cpp, initialize_buckets), or the gradients.
    writer = _Writer(program)
    writer.allocate(program.held_bytes("gradients"), "buffers")
    passing: set[Category] = {"gradients"} if sharding.gradient_as_bucket_view else set()
    for step in range(-1, writer.steps):
        writer.copy(step, "forward", passing=passing)
        writer.copy(step, "optimizer")
        writer.end_step()
    return writer.program({})


def _zero(program: Program, sharding: Sharding) -> Program:
    """Spread states as DeepSpeed 0.19 does (runtime/zero/stage_1_and_2.py and stage3.py).

    With P bytes of gradients and S of optimizer state, a rank of N holds the parameters P (stage 3: P/N), a
    float32 master copy of its share (P/N for float32 and autocast, twice that for 16-bit weights), and S/N.
    Gradients pass through a bucket, which is copied when it is sent. In stage 1 they take P until then,
    from stage 2 on they go to the bucket at once and P/N stays where steps accumulate (stage 3: always).
    The optimizer's step flattens P/N of gradients and works on one tensor of that size. Stage 3 gathers
    layers and keeps up to 1e9 elements of them: all of most models.
    """
    stage, total, element = sharding.zero_stage, program.held_bytes("gradients"), program.element_bytes
    partition = -(-total // sharding.workers)
    master = partition * 4 // element
    # Buckets and the share of gradients are float32 for 16-bit weights too, unless DeepSpeed is told.
    bucket = min(total, element * sharding.bucket_elements) * 4 // element
    whole = bucket == total * 4 // element  # all gradients then move to the bucket, in stage 1 too
    held = master if stage == 3 or (stage == 2 and _passes(program) > 1) else 0
    kept = master if stage < 3 and element < 4 and not held else 0  # from the bucket to the optimizer
    gathered = min(total, element * _LIVE_ELEMENTS) if stage == 3 else 0
    offload = sharding.offload_optimizer
    working = 0 if offload else round(master * (1 + _working_ratio(program)))
    writer = _Writer(program)
    writer.allocate(held, "gradients")
    writer.allocate(0 if offload else master, "optimizer_state")
    if stage == 3:
        writer.allocate(bucket, "buffers")
    for step in range(-1, writer.steps):
        layers = writer.allocate(gathered if step >= 0 else 0, "buffers")
        passing: set[Category] = set() if stage == 1 and not whole else {"gradients"}
        writer.copy(step, "forward", passing, before_gradients=0 if stage == 3 else bucket + kept)
        if step >= 0:
            writer.phase = PHASES.index("backward")
            writer.free(writer.allocate(bucket if whole or stage > 1 else master, "buffers"))
        writer.end_gradients()
        writer.free_gradients()
        writer.free(layers)
        flat = writer.allocate(working if step >= 0 else 0, "temporaries")
        writer.copy(step, "optimizer", without={"temporaries"})
        writer.free(flat)
        writer.end_step()
    # With 16-bit weights the optimizer works on the float32 copy: its state has twice the bytes.
    shares = {"optimizer_state": 0.0 if offload else 4 / element / sharding.workers}
    return writer.program(shares | ({"parameters": 1 / sharding.workers} if stage == 3 else {}))


def _passes(program: Program) -> int:
    """Count the passes of a step: how often its phase turns to backward."""
    start, end = program.step_ends[:2]
    backward = program.phases[start:end] == PHASES.index("backward")
    return int((backward[1:] & ~backward[:-1]).sum())


def _working_ratio(program: Program) -> float:
    """Give the optimizer's temporaries over the bytes it works on at a time.

    That is all parameters where it takes them together (foreach), else the largest.
    """
    temporaries = program.held_bytes("temporaries", "optimizer")
    gradients = program.categories == _GRADIENTS
    together = temporaries >= program.held_bytes("gradients")
    base = program.held_bytes("gradients") if together else int(program.fixed_bytes[gradients].max(initial=1))
    return temporaries / base


class _Writer:
    """Copies a program phase by phase, with blocks of a fixed size added in between."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._events: list[int] = []
        self._phases: list[int] = []
        self._sizes: list[int] = []
        self._categories: list[int] = []
        self._ends: list[int] = []
        self._skipped: set[int] = set()
        self.phase = 0
        self._buffer: int | None = None
        self.steps = len(program.step_ends) - 1

    def allocate(self, size_bytes: int, category: Category) -> int:
        self._sizes.append(size_bytes)
        self._categories.append(CATEGORIES.index(category))
        block = len(self._program.fixed_bytes) + len(self._sizes)
        self._add(block)
        return block

    def free(self, block: int) -> None:
        self._add(-block)

    def copy(
        self,
        step: int,
        part: Phase,
        passing: Set[Category] = frozenset(),
        without: Set[Category] = frozenset(),
        before_gradients: int = 0,
    ) -> None:
        """Copy a step's optimizer phase, or what lies before it; step -1 is the building of the model.

        Blocks of the categories `passing` are freed at once, of `without` left out. A buffer of
        `before_gradients` bytes is allocated as the first gradient is, until `end_gradients`.
        """
        program = self._program
        start, end = (0, *program.step_ends)[step + 1 : step + 3]
        optimizing = program.phases[start:end] == _OPTIMIZER
        border = start + (int(optimizing.argmax()) if optimizing.any() else end - start)
        span = range(border, end) if part == "optimizer" else range(start, border)
        brief, absent = ({CATEGORIES.index(name) for name in names} for names in (passing, without))
        for number in span:
            event = int(program.events[number])
            self.phase = int(program.phases[number])
            if event == 0:
                self._add(event)
                continue
            category = int(program.categories[abs(event) - 1])
            if event > 0 and category == _GRADIENTS and self._buffer is None:
                self._buffer = self.allocate(before_gradients, "buffers")
            if event > 0 and category in absent:
                self._skipped.add(event)
            elif event > 0 and category in brief:
                self._add(event)
                self._add(-event)
                self._skipped.add(event)
            elif event > 0 or -event not in self._skipped:
                self._add(event)

    def end_gradients(self) -> None:
        if self._buffer is not None:
            self.free(self._buffer)
        self._buffer = None

    def free_gradients(self) -> None:
        """Free the gradients that live; what freed them in the program is then left out."""
        categories = self._program.categories
        known = (event for event in self._events if 0 < event <= len(categories))
        gradients = {event for event in known if categories[event - 1] == _GRADIENTS}
        for event in sorted(gradients - {-event for event in self._events if event < 0}):
            self._add(-event)
            self._skipped.add(event)

    def end_step(self) -> None:
        self._ends.append(len(self._events))

    def program(self, shares: dict[str, float]) -> Program:
        """Give the new program; of the blocks copied, a category keeps its share of the bytes."""
        old = self._program
        factors = np.ones(len(old.fixed_bytes))
        for name, share in shares.items():
            factors[[CATEGORIES[c] == name for c in old.categories]] = share
        fixed, example = (np.ceil(b * factors).astype(np.int64) for b in (old.fixed_bytes, old.example_bytes))
        return Program(
            events=np.array(self._events, np.int64),
            phases=np.array(self._phases, np.int64),
            categories=np.append(old.categories, np.array(self._categories, np.int64)),
            fixed_bytes=np.append(fixed, np.array(self._sizes, np.int64)),
            example_bytes=np.append(example, np.zeros(len(self._sizes), np.int64)),
            step_ends=tuple(self._ends),
            element_bytes=old.element_bytes,
        )

    def _add(self, event: int) -> None:
        self._events.append(event)
        self._phases.append(self.phase)
