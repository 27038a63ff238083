"""What data parallelism adds and takes: terms by arithmetic, and every program stays balanced."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_programs import CATEGORIES, KIB, MIB, Writing, balance, drawn, live_bytes, quiet, scripts

from scaler.trace.program import Program
from scaler.trace.sharding import Sharding, shard

LAYERS = (4 * MIB, MIB, 7 * MIB, 64 * KIB)  # bytes of parameters; whole when cut in eight
TOTAL = sum(LAYERS)
RANKS = (1, 2, 4, 8)
EXAMPLE = 128 * KIB  # of activations

shardings = st.builds(
    Sharding,
    workers=st.sampled_from([1, 2, 3, 4, 7, 8]),
    zero_stage=st.integers(0, 3),
    gradient_as_bucket_view=st.booleans(),
    offload_optimizer=st.booleans(),
    bucket_elements=st.sampled_from([1, 1000, 2**20, 500_000_000]),
)
stages = pytest.mark.parametrize("stage", [1, 2, 3])
widths = pytest.mark.parametrize("element_bytes", [4, 2])


def training(states=2, element_bytes=4, temporaries="largest", passes=1) -> Program:
    """An unsharded step; `states` and the optimizer's temporaries are in units of parameters."""

    def at(micro_batch):
        writing = Writing(micro_batch, element_bytes)
        for size in LAYERS:
            writing.allocate(size, "parameters")
        writing.end_step()
        for step in range(2):
            gradients = []
            for number in range(passes):
                writing.phase = "forward"
                kept = writing.allocate(0, "activations", EXAMPLE)
                writing.phase = "backward"
                if number == 0:
                    gradients = [writing.allocate(size, "gradients") for size in reversed(LAYERS)]
                writing.free(kept)
            writing.phase = "optimizer"
            if step == 0:
                for size in LAYERS * states:
                    writing.allocate(size, "optimizer_state")
            if temporaries == "all":
                writing.free(*[writing.allocate(size) for size in LAYERS])
            elif temporaries == "largest":
                for size in LAYERS:
                    writing.free(writing.allocate(size))
            writing.free(*gradients)
            writing.end_step()
        return writing.trace

    return Program.between(at(2), at(3))


def resident(program):
    """What is held from step to step."""
    return live_bytes(program, end=program.step_ends[-1])


def most(program, category):
    return program.held_bytes(category)


@quiet
@given(scripts, shardings)
def test_every_program_stays_balanced(script, sharding):
    building, steps, ending = script
    gradient = ((4 * KIB, 0), "gradients")  # there is always one
    program = drawn((building, [(one, [gradient, *two], three) for one, two, three in steps], ending))
    sharded = shard(program, sharding)
    left = balance(sharded)
    assert len(sharded.events) == len(sharded.phases)
    assert len(sharded.step_ends) == len(program.step_ends)
    assert list(sharded.step_ends) == sorted(sharded.step_ends)
    assert sharded.step_ends[-1] <= len(sharded.events)
    assert (sharded.fixed_bytes >= 0).all()
    lived = balance(program)
    known = len(program.categories)
    ended = set(range(1, known + 1)) - lived  # what the end frees, a sharded program keeps
    assert {block for block in left if block <= known} <= lived | ended


@quiet
@given(
    shardings, st.sampled_from([0, 1, 2]), st.sampled_from([2, 4]), st.sampled_from(["all", "largest", None])
)
def test_nothing_piles_up_from_step_to_step(sharding, states, element_bytes, temporaries):
    sharded = shard(training(states, element_bytes, temporaries), sharding)
    first, second = (live_bytes(sharded, end=end) for end in sharded.step_ends[1:])
    assert first == second
    assert (first["activations"], first["temporaries"]) == (0, 0)


@quiet
@given(shardings, st.integers(1, 1000))
def test_activations_are_not_spread(sharding, micro_batch):
    program = training()
    held = program.held_bytes("activations") + EXAMPLE * micro_batch
    peak = shard(program, sharding).count(micro_batch)
    assert peak.items["activations"] in (0, held)
    assert peak.allocated_bytes >= held


def test_one_worker_is_left_alone():
    program = training()
    assert shard(program, Sharding(1)) is program


# DistributedDataParallel


@pytest.mark.parametrize("workers", [2, 8, 64])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 10, 1000])
def test_ddp_adds_one_copy_of_the_gradients(workers, passes, micro_batch):
    program = training(passes=passes)
    alone, spread = program.count(micro_batch), shard(program, Sharding(workers)).count(micro_batch)
    assert spread.items == alone.items | {"buffers": TOTAL}
    assert spread.allocated_bytes == alone.allocated_bytes + TOTAL
    assert spread.regime == alone.regime


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 10, 1000])
def test_with_gradients_as_views_of_buckets_none_is_held_beside(passes, micro_batch):
    program = training(passes=passes)
    plain, view = (shard(program, Sharding(2, gradient_as_bucket_view=on)) for on in (False, True))
    assert most(view, "buffers") == TOTAL
    assert most(view, "gradients") == max(LAYERS)  # each on its way into the bucket
    assert most(plain, "gradients") == TOTAL
    assert view.count(micro_batch).allocated_bytes <= plain.count(micro_batch).allocated_bytes
    optimizing = training(temporaries="all").count(1).allocated_bytes
    assert shard(training(temporaries="all"), Sharding(2, 0, True)).count(1).allocated_bytes == optimizing


def test_without_a_bucket_view_buckets_are_there_from_the_start():
    spread = shard(training(), Sharding(2))
    assert live_bytes(spread, end=spread.step_ends[0]) == {
        **dict.fromkeys(CATEGORIES, 0),
        "parameters": TOTAL,
        "buffers": TOTAL,
    }


# ZeRO, by its table


@pytest.mark.parametrize("workers", RANKS)
@pytest.mark.parametrize("states", [0, 1, 2], ids=["sgd", "momentum", "adam"])
@stages
@widths
def test_parameters_and_state_are_what_the_table_says(stage, workers, states, element_bytes):
    """With 16-bit weights and Adam a parameter takes 2 bytes, and 12 that the ranks share."""
    sharded = shard(training(states, element_bytes), Sharding(workers, stage))
    elements = TOTAL // element_bytes
    held = resident(sharded)
    assert held["parameters"] == element_bytes * elements // (workers if stage == 3 else 1)
    assert held["optimizer_state"] == (4 + 4 * states) * elements // workers
    assert most(sharded, "optimizer_state") == held["optimizer_state"]


@pytest.mark.parametrize("workers", RANKS)
@pytest.mark.parametrize("passes", [1, 2])
@stages
def test_gradients_pass_through_a_bucket(stage, workers, passes):
    """In float32: stage 2 keeps a share where passes accumulate, stage 3 always, stage 1 never."""
    sharded = shard(training(passes=passes), Sharding(workers, stage))
    share = TOTAL // workers
    kept = share if stage == 3 or (stage == 2 and passes > 1) else 0
    gathered = TOTAL if stage == 3 else 0
    assert resident(sharded)["gradients"] == kept
    assert most(sharded, "gradients") == kept + max(LAYERS)
    assert resident(sharded)["buffers"] == (TOTAL if stage == 3 else 0)
    assert most(sharded, "buffers") == TOTAL + TOTAL + gathered  # the bucket, its copy, layers
    # Without activations the passes peak where the bucket is copied.
    items = shard(training(passes=passes, temporaries=None), Sharding(workers, stage)).count(0).items
    assert items["buffers"] + items["gradients"] == 2 * TOTAL + gathered + kept


@stages
@pytest.mark.parametrize("workers", RANKS)
def test_a_bucket_is_no_larger_than_deepspeeds(stage, workers):
    bucket = 100_352  # elements, a multiple of 128
    sharded = shard(training(), Sharding(workers, stage, bucket_elements=bucket))
    copied = TOTAL // workers if stage == 1 else 4 * bucket
    gathered = TOTAL if stage == 3 else 0
    assert most(sharded, "buffers") == 4 * bucket + copied + gathered
    share = TOTAL // workers if stage == 3 else 0
    # Stage 1 has all gradients in their own memory until they are reduced.
    assert most(sharded, "gradients") == (TOTAL if stage == 1 else share + max(LAYERS))


def test_stage_1_has_let_gradients_go_when_the_optimizer_works():
    sharded = shard(training(temporaries="all"), Sharding(2, 1, bucket_elements=128))
    assert sharded.count(0).items["gradients"] == 0 or sharded.count(0).regime == "backward"


@stages
@pytest.mark.parametrize("workers", RANKS)
@pytest.mark.parametrize(
    ("temporaries", "units"), [("all", 1), ("largest", 1), (None, 0)], ids=["foreach", "single", "fused"]
)
def test_the_optimizer_works_on_one_tensor_of_its_share(stage, workers, temporaries, units):
    """Its gradient, and as many temporaries as it has for a tensor."""
    share = TOTAL // workers
    sharded = shard(training(temporaries=temporaries), Sharding(workers, stage, bucket_elements=128))
    assert most(sharded, "temporaries") == share * (1 + units)


@stages
def test_offloaded_state_leaves_the_device(stage):
    kept, away = (shard(training(), Sharding(4, stage, offload_optimizer=off)) for off in (False, True))
    assert most(kept, "optimizer_state") == 3 * TOTAL // 4
    assert most(away, "optimizer_state") == most(away, "temporaries") == 0
    assert resident(away)["parameters"] == resident(kept)["parameters"]
    assert away.count(1).allocated_bytes < kept.count(1).allocated_bytes


@quiet
@given(st.integers(1, 3), st.integers(1, 300), st.sampled_from([2, 4]), st.sampled_from(["all", "largest"]))
def test_more_ranks_never_need_more(stage, micro_batch, element_bytes, temporaries):
    program = training(2, element_bytes, temporaries)
    peaks = [
        shard(program, Sharding(n, stage)).count(micro_batch).allocated_bytes for n in (1, 2, 3, 4, 8, 64)
    ]
    assert all(after <= before for before, after in itertools.pairwise(peaks))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_sharded_program_replays(stage):
    sharded = shard(training(), Sharding(4, stage))
    for expandable in (False, True):
        peak = sharded.replay(3, None, expandable)
        assert peak.reserved_bytes >= peak.allocated_bytes >= sharded.count(3).allocated_bytes
