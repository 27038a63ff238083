import itertools
import json
import re

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scaler.batch import BatchPlan, candidates
from scaler.errors import BadInput, NothingFeasible
from scaler.schema import parse

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
sizes = st.integers(1, 5000)
counts = st.integers(1, 12)
plans = st.builds(
    BatchPlan,
    micro_batches=st.lists(st.integers(1, 2000), min_size=1, max_size=8).map(tuple)
    | st.builds(lambda size, workers: (size,) * workers, st.integers(1, 2000), counts),
    accumulation=st.integers(1, 64),
    zero_stage=st.integers(0, 3),
)


def fitting_accumulations(global_batch, limits):
    """Every accumulation whose passes are whole and can hold between one example and the limit per worker."""
    return [
        passes
        for passes in range(1, global_batch + 1)
        if global_batch % passes == 0 and len(limits) <= global_batch // passes <= sum(limits)
    ]


def named_batches(error):
    return [int(number) for number in re.findall(r"\d+", error.hint.rsplit(" are ", 1)[1])]


def as_written(text):
    return text.replace(",", "")


# The identity


@quiet
@given(plans)
def test_the_identity_holds(plan):
    assert plan.global_batch == plan.accumulation * sum(plan.micro_batches)
    assert plan.workers == len(plan.micro_batches)
    assert plan.micro_batch == max(plan.micro_batches)
    assert plan.is_equal == (min(plan.micro_batches) == max(plan.micro_batches))
    if plan.is_equal:
        assert plan.global_batch == plan.micro_batch * plan.accumulation * plan.workers


@quiet
@given(st.integers(1, 2000), st.integers(1, 64), counts, st.integers(0, 3))
def test_an_equal_plan_has_the_same_pass_everywhere(micro_batch, accumulation, workers, zero_stage):
    plan = BatchPlan.equal(micro_batch, accumulation, workers, zero_stage)
    assert plan.micro_batches == (micro_batch,) * workers
    assert plan.global_batch == micro_batch * accumulation * workers
    assert plan.zero_stage == zero_stage
    assert plan.is_equal


@pytest.mark.parametrize("parts", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-4, 1, 2), (1, 1, 1, 4), (1, 1, 1, -1)])
def test_an_impossible_equal_plan_is_refused(parts):
    with pytest.raises(BadInput) as caught:
        BatchPlan.equal(*parts)
    assert caught.value.hint


def test_every_bad_part_of_an_equal_plan_is_named():
    with pytest.raises(BadInput, match="micro_batch = 0, accumulation = -1, workers = 0"):
        BatchPlan.equal(0, -1, 0)


@quiet
@given(plans)
def test_the_written_arithmetic_is_true(plan):
    left, right = as_written(plan.arithmetic()).split(" = ")
    product = re.sub(r"\([a-z-]+\)", "", left).replace("x", "*")
    assert re.fullmatch(r"[\d\s*+()]+", product)
    assert eval(product) == int(right) == plan.global_batch


@quiet
@given(plans)
def test_shares_tile_one_pass(plan):
    shares = plan.shares()
    assert shares[0][0] == 0
    assert shares[-1][1] == sum(plan.micro_batches)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(shares))
    assert tuple(stop - start for start, stop in shares) == plan.micro_batches


def test_a_plan_is_frozen_and_hashable():
    plan = BatchPlan.equal(64, 2, 4)
    assert {plan: 1}[BatchPlan.equal(64, 2, 4)] == 1
    with pytest.raises(ValidationError, match="frozen"):
        plan.accumulation = 3


def test_check_accepts_the_true_global_batch():
    BatchPlan.equal(64, 2, 4).check(512)


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        (BatchPlan.equal(64, 2, 4), ["64", "2", "4", "512"]),
        (BatchPlan(micro_batches=(719, 718), accumulation=2), ["719 + 718", "2874"]),
    ],
)
def test_check_refuses_a_wrong_global_batch_with_the_arithmetic(plan, parts):
    with pytest.raises(BadInput) as caught:
        plan.check(500)
    for part in ["global_batch = 500", *parts]:
        assert part in as_written(caught.value.message)
    assert str(plan.global_batch) in as_written(caught.value.hint)


# Splitting


def test_1437_examples_over_two_workers_are_719_and_718():
    plan = BatchPlan.split(1437, 2, 1000)
    assert plan.micro_batches == (719, 718)
    assert (plan.accumulation, plan.global_batch, plan.is_equal) == (1, 1437, False)


@quiet
@given(sizes, counts, st.integers(1, 3000), st.integers(0, 3))
def test_a_split_is_exact_even_within_the_limit_and_of_the_fewest_passes(
    global_batch, workers, limit, zero_stage
):
    assume(global_batch >= workers)
    fitting = fitting_accumulations(global_batch, [limit] * workers)
    if not fitting:
        with pytest.raises(NothingFeasible):
            BatchPlan.split(global_batch, workers, limit)
        return
    plan = BatchPlan.split(global_batch, workers, limit, zero_stage)
    assert plan.accumulation * sum(plan.micro_batches) == plan.global_batch == global_batch
    assert plan.workers == workers
    assert plan.zero_stage == zero_stage
    assert max(plan.micro_batches) <= limit
    assert max(plan.micro_batches) - min(plan.micro_batches) <= 1
    assert plan.accumulation == fitting[0]


@quiet
@given(sizes, counts, st.integers(1, 3000), st.floats(0.1, 10))
def test_equal_devices_share_as_unequal_ones_do_that_have_room(global_batch, workers, limit, speed):
    assume(workers <= global_batch <= workers * limit)
    plan = BatchPlan.split(global_batch, workers, limit)
    limits = [limit] * (workers - 1) + [limit + 1]  # more than is needed
    assert BatchPlan.split(global_batch, workers, limits, speeds=[speed] * workers) == plan
    assert BatchPlan.split(global_batch, workers, [limit] * workers, speeds=[speed] * workers) == plan
    assert sum(plan.micro_batches) == global_batch
    assert list(plan.micro_batches) == sorted(plan.micro_batches, reverse=True)
    assert plan.micro_batches[0] - plan.micro_batches[-1] <= 1


@quiet
@given(sizes, st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_a_split_over_unequal_devices_is_exact_and_within_every_limit(global_batch, limits):
    assume(global_batch >= len(limits))
    try:
        plan = BatchPlan.split(global_batch, len(limits), limits)
    except NothingFeasible:
        return
    assert plan.global_batch == global_batch
    assert all(0 < entry <= limit for entry, limit in zip(plan.micro_batches, limits, strict=True))


@quiet
@given(sizes, st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_a_split_over_unequal_devices_is_refused_only_when_no_spread_fits(global_batch, limits):
    assume(global_batch >= len(limits))
    fitting = fitting_accumulations(global_batch, limits)
    if fitting:
        assert BatchPlan.split(global_batch, len(limits), limits).accumulation == fitting[0]
    else:
        with pytest.raises(NothingFeasible):
            BatchPlan.split(global_batch, len(limits), limits)


@quiet
@given(st.lists(st.integers(10, 1000), min_size=1, max_size=6), st.floats(0.2, 1))
def test_entries_are_proportional_to_unequal_limits(limits, filled):
    global_batch = max(1, int(filled * sum(limits)))
    plan = BatchPlan.split(global_batch, len(limits), limits)
    for entry, limit in zip(plan.micro_batches, limits, strict=True):
        assert abs(entry - global_batch * limit / sum(limits)) < 1


@pytest.mark.parametrize(
    ("global_batch", "limits", "entries", "accumulation"),
    [
        (40, [10, 30], (10, 30), 1),
        (20, [10, 30], (5, 15), 1),
        (80, [10, 30], (10, 30), 2),
        (1437, [800, 1600], (479, 958), 1),
        (512, [64, 64, 64, 64], (64, 64, 64, 64), 2),
        (7, [3, 3, 3], (3, 2, 2), 1),
        (2, [1, 1], (1, 1), 1),
    ],
)
def test_known_splits(global_batch, limits, entries, accumulation):
    plan = BatchPlan.split(global_batch, len(limits), limits)
    assert (plan.micro_batches, plan.accumulation) == (entries, accumulation)


def test_a_prime_batch_that_does_not_split_says_so_and_names_the_nearest():
    with pytest.raises(NothingFeasible, match="1009 does not split over 2 workers") as caught:
        BatchPlan.split(1009, 2, 100)
    below, above = named_batches(caught.value)
    assert below == 1008 < 1009 < above
    assert {BatchPlan.split(batch, 2, 100).global_batch for batch in (below, above)} == {below, above}


@quiet
@given(st.sampled_from([31, 61, 101, 211, 997, 1009, 1999]), st.integers(1, 8), st.integers(1, 40))
def test_the_named_nearest_batches_do_split(prime, workers, limit):
    assume(prime >= workers)
    try:
        BatchPlan.split(prime, workers, limit)
    except NothingFeasible as error:
        named = named_batches(error)
        assert named
        for batch in named:
            assert batch != prime
            assert BatchPlan.split(batch, workers, limit).global_batch == batch


@quiet
@given(st.integers(2, 60), st.integers(1, 8), st.integers(1, 8))
def test_the_named_nearest_small_batches_do_split(global_batch, workers, limit):
    assume(global_batch >= workers)
    try:
        BatchPlan.split(global_batch, workers, limit)
    except NothingFeasible as error:
        for batch in named_batches(error):
            assert BatchPlan.split(batch, workers, limit).global_batch == batch


@pytest.mark.parametrize(
    ("global_batch", "workers", "limit"),
    [
        (0, 1, 1),
        (-8, 2, 4),
        (8, 0, 4),
        (8, -1, 4),
        (8, 2, 0),
        (8, 2, -1),
        (8, 2, [4]),
        (8, 2, [8, 0]),
        (8, 0, []),
    ],
)
def test_an_impossible_question_is_bad_input(global_batch, workers, limit):
    with pytest.raises(BadInput, match="cannot split") as caught:
        BatchPlan.split(global_batch, workers, limit)
    assert caught.value.hint


def test_fewer_examples_than_workers_are_refused():
    with pytest.raises(BadInput, match="3 of 8 workers without an example"):
        BatchPlan.split(5, 8, 100)


@quiet
@given(sizes, counts, counts, st.integers(1, 500), st.integers(0, 3))
def test_the_same_batch_moves_to_other_workers_in_no_larger_passes(
    global_batch, before, after, limit, zero_stage
):
    assume(global_batch >= max(before, after))
    try:
        plan = BatchPlan.split(global_batch, before, limit, zero_stage)
        moved = plan.for_workers(after)
    except NothingFeasible:
        return
    assert (moved.global_batch, moved.workers, moved.zero_stage) == (global_batch, after, zero_stage)
    assert moved.micro_batch <= plan.micro_batch


def test_larger_passes_are_used_where_allowed():
    plan = BatchPlan.equal(64, 1, 8)
    assert plan.for_workers(2).accumulation == 4
    assert plan.for_workers(2, max_micro_batch=256) == BatchPlan.equal(256, 1, 2)


# Reading and writing


@quiet
@given(plans)
def test_plans_come_back_from_dict_json_and_yaml(plan):
    assert BatchPlan.model_validate(plan.model_dump()) == plan
    assert BatchPlan.model_validate_json(plan.model_dump_json()) == plan
    assert parse(BatchPlan, json.loads(json.dumps(plan.model_dump())), "plan") == plan
    assert parse(BatchPlan, yaml.safe_load(yaml.safe_dump(plan.model_dump())), "plan") == plan


@quiet
@given(plans)
def test_a_written_plan_states_every_number(plan):
    written = plan.model_dump()
    assert written["global_batch"] == plan.global_batch
    assert written["workers"] == plan.workers
    assert written["accumulation"] == plan.accumulation
    assert written["zero_stage"] == plan.zero_stage
    assert ("micro_batch" in written) == plan.is_equal != ("micro_batches" in written)


@quiet
@given(plans, st.integers(-5, 10_000))
def test_a_wrong_stated_global_batch_is_refused_with_the_arithmetic(plan, stated):
    assume(stated != plan.global_batch)
    with pytest.raises(BadInput) as caught:
        parse(BatchPlan, {**plan.model_dump(), "global_batch": stated}, "plan")
    assert f"global_batch = {stated}" in caught.value.message
    if stated > 0:
        assert plan.arithmetic() in caught.value.message


@pytest.mark.parametrize("workers", [1, 3, 0, -2])
def test_wrong_stated_workers_are_refused(workers):
    with pytest.raises(BadInput, match=f"workers = {workers}"):
        parse(BatchPlan, {"micro_batches": [719, 718], "workers": workers}, "plan")


def test_a_wrong_worker_count_breaks_the_identity():
    with pytest.raises(BadInput, match=r"global_batch = 512, but .* = 384"):
        parse(BatchPlan, {"global_batch": 512, "micro_batch": 64, "accumulation": 2, "workers": 3}, "plan")


def test_accumulation_and_zero_stage_have_defaults():
    assert parse(BatchPlan, {"micro_batch": 64, "workers": 4}, "plan") == BatchPlan.equal(64, 1, 4)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "micro_batches: missing"),
        ({"micro_batch": 64}, "needs workers"),
        ({"micro_batch": 64, "micro_batches": [64, 64], "workers": 2}, "not both"),
        ({"micro_batches": []}, "at least one worker"),
        ({"micro_batches": [64, 0]}, r"micro_batches\.1"),
        ({"micro_batches": [64, -1], "workers": 2}, r"micro_batches\.1"),
        ({"micro_batches": 64, "workers": 2}, "micro_batches"),
        ({"micro_batches": [64], "accumulation": 0}, "accumulation"),
        ({"micro_batches": [64], "zero_stage": 4}, "zero_stage"),
        ({"micro_batches": [64], "acumulation": 2}, "did you mean 'accumulation'"),
        ({"micro_batches": [64], "workers": 1, "acumulation": 2}, "did you mean 'accumulation'"),
        ({"micro_batches": [64], "workers": True}, "workers = True"),
        ({"micro_batches": [64], "workers": "1"}, "workers = '1'"),
        ({"micro_batches": [64], "global_batch": 64.0}, "global_batch = 64.0"),
        ({"micro_batch": "many", "workers": 2}, "many"),
        ({"micro_batch": None, "workers": 2}, "micro_batch"),
        (None, "expected a mapping"),
        ([64, 64], "expected a mapping"),
        ({"micro_batch": 2, "workers": 2, 1: 2}, "1: Keys should be strings"),
    ],
)
def test_a_bad_written_plan_is_bad_input(data, fault):
    with pytest.raises(BadInput, match=fault):
        parse(BatchPlan, data, "plan.yaml")


# Candidates


@quiet
@given(st.integers(1, 200_000), st.integers(1, 4096), st.integers(1, 64))
def test_candidates_are_sorted_distinct_and_within_bounds(examples, reference, smallest):
    assume(examples >= max(reference, smallest))
    found = candidates(examples, reference, smallest)
    assert found == sorted(set(found))
    assert all(smallest <= size <= examples for size in found)
    assert all(size.bit_count() == 1 or size in (reference, examples) for size in found)
    assert (reference in found) == (reference >= smallest)
    if examples <= 2000:
        assert examples in found


def test_the_full_batch_is_a_candidate_for_1437_examples():
    assert candidates(1437, reference=64) == [32, 64, 128, 256, 512, 1024, 1437]


def test_the_full_batch_of_a_large_data_set_is_no_candidate():
    assert 2000 in candidates(2000, reference=64)
    assert 2001 not in candidates(2001, reference=64)


def test_a_reference_between_powers_of_two_is_a_candidate():
    assert candidates(500, reference=100) == [32, 64, 100, 128, 256, 500]


def test_powers_start_at_half_a_small_reference():
    assert candidates(100, reference=8)[0] == 4
    assert candidates(100, reference=1)[0] == 1


def test_no_candidate_leaves_a_worker_without_an_example():
    assert candidates(1437, reference=64, smallest=65) == [128, 256, 512, 1024, 1437]


@pytest.mark.parametrize(("examples", "reference", "smallest"), [(63, 64, 1), (0, 1, 1), (100, 64, 101)])
def test_too_little_data_is_refused(examples, reference, smallest):
    with pytest.raises(BadInput, match=f"{examples} examples.* {max(reference, smallest)}") as caught:
        candidates(examples, reference, smallest)
    assert caught.value.hint
