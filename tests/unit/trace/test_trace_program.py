"""Counting, replaying and extrapolating recorded allocations, against slow references."""

import copy
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trace_programs import (
    CATEGORIES,
    KIB,
    MIB,
    PHASES,
    Writing,
    balance,
    drawn,
    followed,
    live_bytes,
    quiet,
    rounded,
    scripts,
    sign,
    slow_peak,
)

from scaler.trace.allocator import OutOfMemory
from scaler.trace.program import Program

sizes = st.integers(1, 5000)


def short(fixed=(0, 0), per_example=0, categories=("temporaries", "temporaries"), backwards=False):
    """Building, and one step that allocates two blocks and frees them, in order or not."""

    def at(micro_batch):
        writing = Writing(micro_batch)
        writing.end_step()
        first, second = (
            writing.allocate(size, name, per_example) for size, name in zip(fixed, categories, strict=True)
        )
        writing.phase = "backward"
        writing.free(*((second, first) if backwards else (first, second)))
        writing.end_step()
        return writing.trace

    return at


# Counting


@quiet
@given(scripts, sizes)
def test_the_count_is_the_slow_sum(script, micro_batch):
    program = drawn(script)
    assume(len(program.categories))
    peak = program.count(micro_batch)
    expected, items, phase = slow_peak(program, micro_batch)
    assert (peak.allocated_bytes, peak.regime) == (expected, phase)
    assert peak.items == items
    assert sum(peak.items.values()) == peak.reserved_bytes == expected
    assert peak.retries == 0


@quiet
@given(scripts, st.sampled_from(CATEGORIES), st.sampled_from([None, "forward", "backward", "optimizer"]))
def test_what_a_category_holds_is_the_slow_sum(script, category, phase):
    program = drawn(script)
    assume(len(program.categories))
    blocks = followed(script, 0).blocks
    most = held = 0
    for event in program.events[program.events != 0].tolist():
        block = abs(event) - 1
        if blocks[block].category == category and phase in (None, blocks[block].phase):
            held += int(program.fixed_bytes[block]) * sign(event)
        most = max(most, held)
    assert program.held_bytes(category, phase) == most


@quiet
@given(scripts, sizes)
def test_every_block_is_rounded_up_and_never_below_nothing(script, micro_batch):
    program = drawn(script)
    exact = [block.bytes for block in followed(script, micro_batch).blocks]
    assert program.block_bytes(micro_batch).tolist() == [rounded(size) for size in exact]


def test_a_block_that_shrinks_ends_at_nothing():
    program = Program.between(*(short((5 * KIB, KIB), -512)(n) for n in (2, 3)))
    assert program.block_bytes(9).tolist() == [512, 0]
    assert program.count(100).allocated_bytes == program.replay(100, None, False).reserved_bytes == 0


def test_a_peak_is_itemised_where_it_is():
    program = Program.between(*(short((KIB, 3 * KIB), 512, ("parameters", "activations"))(n) for n in (2, 4)))
    peak = program.count(10)
    assert peak.allocated_bytes == 4 * KIB + 2 * 10 * 512
    assert peak.regime == "forward"
    assert {name: size for name, size in peak.items.items() if size} == {
        "parameters": KIB + 5120,
        "activations": 3 * KIB + 5120,
    }


# Replaying


@quiet
@given(scripts, st.integers(1, 300), st.booleans())
def test_a_replay_reserves_at_least_what_is_allocated(script, micro_batch, expandable):
    program = drawn(script)
    assume(len(program.categories))
    counted, replayed = program.count(micro_batch), program.replay(micro_batch, None, expandable)
    assert counted.allocated_bytes <= replayed.allocated_bytes <= replayed.reserved_bytes
    assert (replayed.items, replayed.regime) == (counted.items, counted.regime)
    assert replayed.retries == 0
    again = program.replay(micro_batch, replayed.reserved_bytes, expandable)
    assert again == replayed
    if counted.allocated_bytes:
        with pytest.raises(OutOfMemory):
            program.replay(micro_batch, counted.allocated_bytes - 1, expandable)


def stepping(*steps):
    """Steps that allocate blocks of so many MiB one after the other; a tuple is allocated at a time."""

    def at(micro_batch):
        writing = Writing(micro_batch)
        writing.end_step()
        for step in steps:
            for sizes_mib in step:
                writing.free(*[writing.allocate(round(size * MIB)) for size in sizes_mib])
            writing.end_step()
        return writing.trace

    return Program.between(at(2), at(3))


SMALL = (0.75,) * 30
"""Small blocks have segments of their own, which large blocks cannot use, nor the other way round."""


@pytest.mark.parametrize(
    ("steps", "slow"),
    [
        ([[(30,), (40,)]] * 2, False),  # the larger block's segment serves both
        ([[(30,)], [(40,)]], False),
        ([[(40,)], [(30,)]], False),
        ([[SMALL, (45,)]] * 2, True),  # each releases what the other cached
        ([[SMALL, (45,)], [(45,)]], False),
    ],
)
def test_only_a_step_that_goes_on_releasing_cached_memory_is_slow(steps, slow):
    program = stepping(*steps)
    assert (program.replay(1, 50 * MIB, expandable_segments=False).retries > 0) is slow
    assert program.replay(1, 100 * MIB, expandable_segments=False).retries == 0


def test_memory_that_is_given_back_leaves_room_for_other_sizes():
    def at(micro_batch, release):
        writing = Writing(micro_batch)
        writing.end_step()
        for _ in range(2):
            writing.free(writing.allocate(30 * MIB))
            if release:
                writing.release()
            writing.free(writing.allocate(40 * MIB))
            writing.end_step()
        return writing.trace

    kept, given_back = (Program.between(*(at(n, release) for n in (2, 3))) for release in (False, True))
    assert kept.count(1) == given_back.count(1)
    assert kept.replay(1, None, False).reserved_bytes == 70 * MIB
    assert given_back.replay(1, None, False).reserved_bytes == 40 * MIB
    assert given_back.replay(1, 40 * MIB, False).retries == 0  # nobody ran out for it


# The line through two traces


@quiet
@given(scripts, st.integers(1, 6), st.integers(1, 6), sizes)
def test_the_line_holds_at_every_other_size(script, small, gap, micro_batch):
    program, further = drawn(script, (small, small + gap)), followed(script, micro_batch)
    assume(any(block.bytes for block in further.blocks))
    assert program.error(further) == 0


@quiet
@given(scripts)
def test_a_line_keeps_the_steps_and_what_lives_between_them(script):
    """Reordering frees must move none of them into another step."""
    program, trace = drawn(script), followed(script, 2)
    assert program.step_ends == tuple(trace.step_ends)
    balance(program)
    for end in trace.step_ends:
        held = sum(live_bytes(program, 2, end).values())
        expected = [rounded(trace.blocks[abs(e) - 1].bytes) * sign(e) for e in trace.events[:end] if e]
        assert held == sum(expected)


def fields_of(trace, **changes):
    trace = copy.deepcopy(trace)
    for name, value in changes.items():
        setattr(trace, name, value)
    return trace


def test_traces_of_unlike_steps_have_no_line():
    small = short()(2)
    longer = short()(3)
    longer.blocks.append(longer.blocks[0])
    longer.events += [3, -3]
    longer.phases += ["forward", "forward"]
    turned = fields_of(short()(3), events=[2, 1, -1, -2])
    for unlike in (longer, turned, short(categories=("temporaries", "activations"))(3)):
        with pytest.raises(ValueError, match="the step allocates otherwise at another micro-batch"):
            Program.between(small, unlike)
    moved = short()(3)
    moved.blocks[1].phase = "optimizer"
    with pytest.raises(ValueError, match="allocates otherwise"):
        Program.between(small, moved)


def test_the_order_of_frees_in_a_run_does_not_matter():
    in_order, backwards = (short((KIB, KIB), 512, backwards=back) for back in (False, True))
    line = Program.between(in_order(2), in_order(3))
    mixed = Program.between(in_order(2), backwards(3))
    assert np.array_equal(line.events, mixed.events)
    assert mixed.count(7) == line.count(7)
    assert line.error(backwards(9)) == mixed.error(in_order(9)) == 0


def test_frees_after_a_step_do_not_move_into_it():
    def at(micro_batch):
        writing = Writing(micro_batch)
        state = writing.allocate(10 * KIB, "optimizer_state")
        writing.end_step()
        working = writing.allocate(KIB)
        writing.free(working)
        writing.end_step()
        writing.free(state)  # the training is over
        return writing.trace

    program = Program.between(at(2), at(3))
    assert live_bytes(program, end=program.step_ends[-1])["optimizer_state"] == 10 * KIB


def test_frees_of_the_backward_stay_in_it():
    def at(micro_batch):
        writing = Writing(micro_batch)
        writing.end_step()
        writing.phase = "backward"
        gradient = writing.allocate(KIB, "gradients")
        writing.phase = "forward"  # of a second pass
        kept = writing.allocate(3 * KIB, "activations")
        writing.phase = "backward"
        writing.free(kept)
        writing.phase = "optimizer"
        writing.free(gradient)
        writing.end_step()
        return writing.trace

    program = Program.between(at(2), at(3))
    optimizing = program.phases.tolist().index(PHASES.index("optimizer"))
    assert live_bytes(program, end=optimizing)["activations"] == 0


def test_an_error_is_the_share_of_bytes_that_are_off():
    line = Program.between(*(short((1000, 3000), 100)(n) for n in (2, 3)))
    off = short((1000, 3000), 100)(10)
    assert line.error(off) == 0
    off.blocks[0].bytes += 50  # of 2,000 + 4,000
    assert line.error(off) == pytest.approx(50 / 6050)
    off.blocks[1].bytes -= 50
    assert line.error(off) == pytest.approx(100 / 6000)
    assert line.error(fields_of(off, events=[2, 1, -1, -2])) == math.inf
