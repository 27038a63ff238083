"""Traces written by hand or at random, and slow references for what programs do."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from scaler.trace.program import CATEGORIES, PHASES, Program
from scaler.trace.tracer import Block, Trace

KIB, MIB = 2**10, 2**20
ROUNDING = 512

quiet = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

_sizes = st.tuples(st.one_of(st.integers(0, 3000), st.integers(0, 30 * MIB)), st.integers(0, 40_000))
"""Fixed bytes and bytes an example."""
_moves = st.one_of(
    st.tuples(_sizes, st.sampled_from(CATEGORIES)),
    st.integers(0, 50),  # free one of the live blocks
    st.none(),  # give cached memory back
)
_parts = st.lists(_moves, max_size=8)
_steps = st.lists(st.tuples(*[_parts] * 3), min_size=2, max_size=2)
scripts = st.tuples(_parts, _steps, _parts)
"""Building; forward, backward and optimizer of two steps; the end."""


def rounded(size_bytes):
    return -(-max(size_bytes, 0) // ROUNDING) * ROUNDING


def sign(event):
    return (event > 0) - (event < 0)


class Writing:
    """A trace in the making: allocate, free, turn to a phase."""

    def __init__(self, micro_batch, element_bytes=4):
        self.trace = Trace(micro_batch, element_bytes)
        self.phase = "forward"
        self.live = []

    def allocate(self, fixed, category="temporaries", per_example=0):
        self.trace.blocks.append(Block(fixed + per_example * self.trace.micro_batch, self.phase, category))
        self._add(len(self.trace.blocks))
        self.live.append(len(self.trace.blocks))
        return self.live[-1]

    def free(self, *blocks):
        for block in blocks:
            self.live.remove(block)
            self._add(-block)

    def release(self):
        self._add(0)

    def end_step(self):
        self.trace.step_ends.append(len(self.trace.events))
        self.phase = "forward"

    def _add(self, event):
        self.trace.events.append(event)
        self.trace.phases.append(self.phase)


def followed(script, micro_batch):
    """The trace of a script at a micro-batch."""
    building, steps, ending = script
    writing = Writing(micro_batch)

    def follow(part):
        for move in part:
            if isinstance(move, tuple):
                (fixed, per_example), category = move
                writing.allocate(fixed, category, per_example)
            elif move is None:
                writing.release()
            elif writing.live:
                writing.free(writing.live[move % len(writing.live)])

    follow(building)
    writing.end_step()
    for step in steps:
        for phase, part in zip(PHASES, step, strict=True):
            writing.phase = phase
            follow(part)
        writing.end_step()
    follow(ending)
    return writing.trace


def drawn(script, sizes=(2, 3)) -> Program:
    return Program.between(*(followed(script, size) for size in sizes))


def balance(program):
    """Whether every free follows the one allocation of its block."""
    live, seen = set(), set()
    for event in program.events.tolist():
        if event > 0:
            assert event not in seen, f"block {event} is allocated twice"
            seen.add(event)
            live.add(event)
        elif event < 0:
            assert -event in live, f"block {-event} is freed, and does not live"
            live.discard(-event)
    assert max(seen, default=0) <= len(program.categories) == len(program.fixed_bytes)
    return live


def live_bytes(program, micro_batch=0, end=None, unrounded=False):
    """Bytes by category that live after `end` events; event by event."""
    held = dict.fromkeys(CATEGORIES, 0)
    for event in program.events[:end].tolist():
        if event == 0:
            continue
        block = abs(event) - 1
        size = int(program.fixed_bytes[block] + program.example_bytes[block] * micro_batch)
        name = CATEGORIES[program.categories[block]]
        held[name] += (max(size, 0) if unrounded else rounded(size)) * sign(event)
    return held


def slow_peak(program, micro_batch):
    """(bytes, items, phase) where most is allocated, the first of equals."""
    best = (-1, {}, "")
    held = dict.fromkeys(CATEGORIES, 0)
    for event, phase in zip(program.events.tolist(), program.phases.tolist(), strict=True):
        block = abs(event) - 1
        size = rounded(int(program.fixed_bytes[block] + program.example_bytes[block] * micro_batch))
        held[CATEGORIES[program.categories[block]]] += size * sign(event)
        if sum(held.values()) > best[0]:
            best = (sum(held.values()), dict(held), PHASES[phase])
    return best
