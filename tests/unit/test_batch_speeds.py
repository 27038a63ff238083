"""Batches over devices of unequal speed, each with a limit of its own."""

import itertools

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.errors import BadInput, NothingFeasible

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

speed = st.floats(0.01, 100)
devices = st.lists(st.tuples(st.integers(1, 1000), speed), min_size=1, max_size=6)
batch = st.integers(1, 5000)


def split(global_batch, found):
    limits, speeds = zip(*found, strict=True)
    assume(global_batch >= len(limits))
    try:
        return BatchPlan.split(global_batch, len(limits), limits, speeds=speeds)
    except NothingFeasible:
        assume(False)


@quiet
@given(batch, devices)
def test_a_split_by_speed_is_exact_within_every_limit_and_leaves_nobody_out(global_batch, found):
    plan = split(global_batch, found)
    assert plan.accumulation * sum(plan.micro_batches) == plan.global_batch == global_batch
    assert plan.workers == len(found)
    assert all(0 < entry <= limit for entry, (limit, _) in zip(plan.micro_batches, found, strict=True))


@quiet
@given(batch, devices)
def test_speeds_change_who_does_what_not_how_many_passes(global_batch, found):
    plan = split(global_batch, found)
    limits = [limit for limit, _ in found]
    assert plan.accumulation == BatchPlan.split(global_batch, len(limits), limits).accumulation


@quiet
@given(batch, devices)
def test_speeds_refuse_no_batch_that_splits_without(global_batch, found):
    limits, speeds = zip(*found, strict=True)
    assume(global_batch >= len(limits))
    try:
        BatchPlan.split(global_batch, len(limits), limits)
    except NothingFeasible as error:
        with pytest.raises(NothingFeasible) as caught:
            BatchPlan.split(global_batch, len(limits), limits, speeds=speeds)
        assert (caught.value.message, caught.value.hint) == (error.message, error.hint)
    else:
        BatchPlan.split(global_batch, len(limits), limits, speeds=speeds)


@quiet
@given(batch, st.lists(speed, min_size=1, max_size=6))
def test_where_nothing_is_limited_entries_are_proportional_to_speeds(global_batch, speeds):
    shares = [global_batch * own / sum(speeds) for own in speeds]
    assume(min(shares) >= 1)
    plan = BatchPlan.split(global_batch, len(speeds), [5000] * len(speeds), speeds=speeds)
    assert plan.accumulation == 1
    for entry, share in zip(plan.micro_batches, shares, strict=True):
        assert entry == pytest.approx(share, abs=1 + 1e-6)


@quiet
@given(batch, devices)
def test_what_does_not_fit_goes_to_the_others_in_proportion(global_batch, found):
    """Passes below their limit end together, to an example; those at it would not end later."""
    plan = split(global_batch, found)
    rows = [(entry, *own) for entry, own in zip(plan.micro_batches, found, strict=True)]
    assume(min(plan.micro_batches) > 1)  # a slow device takes one example although that takes longer
    for entry, limit, own_speed in rows:
        for other, other_limit, other_speed in rows:
            if entry < limit:
                assert (other - 1) / other_speed <= (entry + 1) / own_speed * (1 + 1e-9)
            if entry < limit and other < other_limit:
                assert (entry - 1) / own_speed <= (other + 1) / other_speed * (1 + 1e-9)


@quiet
@given(batch, st.lists(st.integers(1, 1000), min_size=1, max_size=5), speed, st.randoms())
def test_for_equal_speeds_the_order_of_devices_does_not_matter(global_batch, limits, own_speed, random):
    turned = random.sample(limits, len(limits))
    left, right = (split(global_batch, [(limit, own_speed) for limit in order]) for order in (limits, turned))
    assert sorted(left.micro_batches) == sorted(right.micro_batches)
    assert left.accumulation == right.accumulation


@quiet
@given(batch, st.integers(1, 6), st.integers(1, 1000), speed)
def test_equal_devices_are_split_as_without_speeds(global_batch, workers, limit, own_speed):
    plan = split(global_batch, [(limit, own_speed)] * workers)
    assert plan == BatchPlan.split(global_batch, workers, limit)


@quiet
@given(batch, devices, st.sampled_from([2.0, 0.25, 1024.0]))
def test_only_the_ratio_of_speeds_counts(global_batch, found, factor):
    scaled = [(limit, factor * own_speed) for limit, own_speed in found]
    assert split(global_batch, scaled) == split(global_batch, found)


@quiet
@given(devices)
def test_full_devices_are_full_whatever_their_speeds(found):
    limits = [limit for limit, _ in found]
    plan = BatchPlan.split(sum(limits), len(limits), limits, speeds=[own for _, own in found])
    assert (plan.micro_batches, plan.accumulation) == (tuple(limits), 1)


@pytest.mark.parametrize(
    ("global_batch", "limits", "speeds", "entries", "accumulation"),
    [
        (40, [100, 100], [1, 3], (10, 30), 1),
        (40, [100, 100], [3, 1], (30, 10), 1),
        (40, [100, 20], [1, 3], (20, 20), 1),
        (100, [100, 20, 100], [1, 8, 1], (40, 20, 40), 1),
        (7, [9, 9, 9], [1, 1, 1], (3, 2, 2), 1),
        (10, [100, 100], [0.001, 1], (1, 9), 1),  # a slow device still takes part
        (3, [100, 100, 100], [1, 1000, 1], (1, 1, 1), 1),
        (80, [10, 30], [1, 1], (10, 30), 2),
        (60, [10, 30], [1, 1], (10, 20), 2),
        (64, [16, 48], [1, 3], (16, 48), 1),
        (100, [50, 50], [0.1 + 0.2, 0.3], (50, 50), 1),  # which are not quite equal
    ],
)
def test_known_splits_by_speed(global_batch, limits, speeds, entries, accumulation):
    plan = BatchPlan.split(global_batch, len(limits), limits, speeds=speeds)
    assert (plan.micro_batches, plan.accumulation) == (entries, accumulation)


def test_without_speeds_entries_are_proportional_to_what_fits():
    for limits in itertools.permutations((100, 200, 500)):
        assert BatchPlan.split(400, 3, list(limits)).micro_batches == tuple(limit // 2 for limit in limits)


def test_one_limit_may_go_with_many_speeds():
    assert BatchPlan.split(40, 2, 100, speeds=[1, 3]).micro_batches == (10, 30)


def test_a_plan_moves_to_a_faster_device_and_keeps_its_stage():
    plan = BatchPlan.split(90, 3, 100, zero_stage=2, speeds=[1, 1, 7])
    assert (plan.micro_batches, plan.zero_stage, plan.global_batch) == ((10, 10, 70), 2, 90)


@pytest.mark.parametrize("speeds", [[1.0], [0.0, 0.0]])
def test_speeds_that_are_not_one_positive_number_for_each_worker_are_bad_input(speeds):
    with pytest.raises(BadInput):
        BatchPlan.split(8, 2, 100, speeds=speeds)
