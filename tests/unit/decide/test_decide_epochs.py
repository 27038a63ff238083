"""What an epoch costs at each global batch, in a study whose step times are known."""

import pytest
from decide_records import BATCHES, Study, cluster_of, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.decide.decide import decide
from scaler.decide.epochs import epoch_costs, turned
from scaler.decide.fits import fit_all
from scaler.stats import Estimate

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=20)

STUDY = Study()
CLUSTER = cluster_of()
FITS = fit_all(STUDY.records(), CLUSTER)


def per_epoch(workers, zero_stage=0, fits=FITS, cluster=CLUSTER):
    """Beside a chosen plan whose global batch was not tried."""
    return epoch_costs(fits, cluster, BatchPlan.equal(1, 1, workers, zero_stage))


def costs_of(study=STUDY, cluster=CLUSTER, workers=1):
    return per_epoch(workers, fits=fit_all(study.records(), cluster, 0), cluster=cluster)


def around(estimate):
    return estimate.low, estimate.value, estimate.high


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_batch_that_was_tried_has_its_plan_smallest_first(workers):
    plans = [cost.plan for cost in per_epoch(workers)]
    assert plans == [BatchPlan.split(batch, workers, 2000) for batch in BATCHES]


@pytest.mark.parametrize("workers", [1, 4])
def test_an_epochs_time_is_its_examples_over_the_samples_a_second(workers):
    for cost in per_epoch(workers):
        batch, step_s = cost.plan.global_batch, STUDY.step_time_s(cost.plan)
        assert cost.samples_per_s.value == pytest.approx(batch * cost.steps_per_s.value)
        assert cost.epoch_time_s.value == pytest.approx(10_000 / cost.samples_per_s.value)
        assert cost.epoch_time_s.value == pytest.approx(10_000 / batch * step_s, rel=0.04)
        low, high = cost.samples_per_s.low, cost.samples_per_s.high
        assert (cost.epoch_time_s.low, cost.epoch_time_s.high) == pytest.approx((10_000 / high, 10_000 / low))
        for estimate in (cost.steps_per_s, cost.samples_per_s, cost.epoch_time_s):
            assert estimate.low < estimate.value < estimate.high


def test_a_smaller_batch_is_slower_per_epoch_by_what_a_step_costs_anyway():
    times_s = [cost.epoch_time_s.value for cost in per_epoch(1)]
    assert times_s == sorted(times_s, reverse=True)
    assert times_s[0] > 3 * times_s[-1]  # 2 ms beside 0.64 ms of examples, and beside 20 ms


@pytest.mark.parametrize("workers", [1, 4])
def test_the_overhead_is_what_of_a_step_its_examples_do_not_take(workers):
    for cost in per_epoch(workers):
        plan, step_s = cost.plan, 1 / cost.steps_per_s.value
        truth_s = STUDY.step_time_s(plan) - STUDY.per_example_s * plan.micro_batch * plan.accumulation
        assert cost.overhead_s == pytest.approx(truth_s, abs=0.05 * step_s)
        assert 0 < cost.overhead_s < step_s


def test_several_passes_cost_their_fixed_time_each():
    study = Study(memory_mib=40)
    costs = costs_of(study, cluster_of(memory_mib=40))
    passes = {cost.plan.accumulation: cost.overhead_s for cost in costs}
    assert max(passes) > 3
    assert passes[max(passes)] == pytest.approx(max(passes) * study.overhead_s, rel=0.15)


@quiet
@given(st.floats(1e-7, 1e-2), st.floats(1e-7, 1e-3), st.floats(0, 1e-2), st.sampled_from([1, 3]))
def test_the_overhead_is_never_negative_nor_more_than_the_step(overhead_s, per_example_s, sync_s, workers):
    study = Study(overhead_s=overhead_s, per_example_s=per_example_s, sync_s=sync_s)
    costs = costs_of(study, workers=workers)
    assert len(costs) == len(BATCHES)
    for cost in costs:
        assert 0 <= cost.overhead_s < 1 / cost.steps_per_s.value


def test_a_batch_that_cannot_be_spread_is_left_out():
    costs = per_epoch(48)
    assert [cost.plan.global_batch for cost in costs] == [batch for batch in BATCHES if batch >= 48]


def test_each_devices_share_is_in_the_plan_of_unequal_ones():
    groups = [
        {"device": name, "workers": 1, "device_memory": "100MiB", "speed": speed}
        for name, speed in (("old", 1.0), ("new", 3.0))
    ]
    unequal = cluster_of(2, devices=groups, device_memory=None)
    costs = costs_of(cluster=unequal, workers=2)
    assert [cost.plan.micro_batches for cost in costs] == [(batch // 4, 3 * batch // 4) for batch in BATCHES]
    assert all(cost.overhead_s >= 0 for cost in costs)


# Without evidence


@pytest.mark.parametrize(
    "records",
    [
        [STUDY.workload()],
        [STUDY.workload(), *STUDY.memory(), *STUDY.trials()],  # no step was timed
        [STUDY.workload(), *STUDY.throughput(), *STUDY.trials()],  # no memory is known
        [STUDY.workload(), *STUDY.memory(), *STUDY.throughput(), noise()],  # no batch was tried
    ],
)
def test_without_evidence_no_epoch_has_a_cost(records):
    assert per_epoch(1, fits=fit_all(records, CLUSTER)) == ()


def test_one_micro_batch_does_not_tell_what_an_example_takes():
    runs = [STUDY.run(BatchPlan.equal(32, 1, workers), seed) for workers in (1, 2) for seed in (0, 1)]
    fits = fit_all([STUDY.workload(), *STUDY.memory(), *runs, *STUDY.trials()], CLUSTER)
    assert fits.step_time is not None
    assert per_epoch(1, fits=fits) == ()


def test_another_zero_stage_has_no_evidence():
    assert per_epoch(2, zero_stage=3) == ()


# In the answer


def test_the_answer_has_the_epochs_of_its_workers():
    config = decide(STUDY.records(), CLUSTER)
    assert config.epochs == per_epoch(config.chosen_workers)
    assert config.chosen.plan in [cost.plan for cost in config.epochs]


def test_a_batch_that_never_reached_the_target_has_an_epoch_too():
    config = decide(STUDY.records(reached=lambda batch: batch < 1024), CLUSTER)
    assert [cost.plan.global_batch for cost in config.epochs] == [*BATCHES]


def test_the_epoch_of_a_pinned_plan_is_that_plans():
    pinned = BatchPlan.equal(16, 4, 1)
    config = decide(STUDY.records(batches=(64,)), CLUSTER, pinned=pinned)
    assert config.chosen.plan == pinned
    assert [cost.plan for cost in config.epochs] == [pinned]


# Turning


@quiet
@given(st.floats(1e-6, 1e3), st.floats(1, 10), st.floats(1, 10), st.floats(0.1, 1e6))
def test_an_interval_turns_over(value, below, above, amount):
    duration_s = Estimate(value=value, low=value / below, high=value * above, samples=3, method="m")
    found = turned(duration_s, amount)
    assert around(found) == pytest.approx((amount / duration_s.high, amount / value, amount / duration_s.low))
    assert (found.samples, found.method) == (3, "m")
    assert around(turned(found, amount)) == pytest.approx(around(duration_s))


def test_without_an_interval_there_is_none_to_turn():
    assert around(turned(Estimate(value=4.0, samples=1, method="m"), 2.0)) == (None, 0.5, None)
