"""From launches to the step time of any plan."""

import numpy as np
import pytest
from fit_records import throughput
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_truths import OVERHEAD_S, PER_EXAMPLE_S, plain_s, spread

from scaler.batch import BatchPlan
from scaler.fit.step_model import StepShape
from scaler.fit.step_posterior import Normal, StepPriors
from scaler.fit.step_time import fit_step_time, mean_over_median, run_median_s, run_sync_s, shape_of

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)

PLANS = [BatchPlan.equal(m, 1, w) for w in (1, 2, 4) for m in (8, 32, 128, 512)]
PLANS += [BatchPlan.equal(128, 4, 2)]
SINGLE = [BatchPlan.equal(m, 1, 1) for m in (8, 32, 128, 512)]


def launches(plans, seed=0, wobble=0.04, repeats=2):
    """Fresh runs differ by a log-normal factor; steps within one hardly do."""
    generator = np.random.default_rng(seed)
    records = []
    for plan in [p for p in plans for _ in range(repeats)]:
        median_s = plain_s(shape_of(plan)) * float(np.exp(wobble * generator.normal()))
        records.append(throughput(plan, 9.0, 0.99 * median_s, median_s, 1.05 * median_s, warmup_steps=1))
    return records


def with_sync(record, *sync_s):
    return record.model_copy(update={"phase_times_s": {"forward": (0.1,) * len(sync_s), "sync": sync_s}})


def test_the_median_of_a_run_leaves_out_its_warm_up():
    record = throughput(PLANS[0], 100.0, 90.0, 3.0, 1.0, 2.0, warmup_steps=2)
    assert run_median_s(record) == 2.0


def test_the_synchronisation_of_a_run_leaves_out_its_warm_up():
    record = throughput(PLANS[0], 100.0, 90.0, 3.0, 1.0, 2.0, warmup_steps=2)
    assert run_sync_s(with_sync(record, 80.0, 70.0, 0.3, 0.1, 0.2)) == 0.2


def test_a_synchronisation_that_was_not_measured_is_no_number():
    assert np.isnan(run_sync_s(throughput(PLANS[0], 1.0, 1.0)))


def test_the_measured_synchronisation_is_fitted():
    plan, alone = BatchPlan.equal(64, 1, 4), StepShape(1, 1, 64)
    runs = [throughput(plan, 1.0, 1.0, 1.0) for _ in range(2)]
    split = [with_sync(run, 0.6, 0.6, 0.6) for run in runs]
    assert fit_step_time(split).predict(alone).value == pytest.approx(0.4, rel=0.1)
    assert fit_step_time(runs).predict(alone).value > 0.5


@pytest.mark.parametrize(
    ("plan", "nodes", "shape"),
    [
        (BatchPlan.equal(8, 1, 1), 1, StepShape(1, 1, 8, 1)),
        (BatchPlan.equal(8, 3, 4), 2, StepShape(2, 4, 8, 3)),
        (BatchPlan(micro_batches=(719, 718)), 1, StepShape(1, 2, 719, 1)),
        (BatchPlan(micro_batches=(7, 57)), 1, StepShape(1, 2, 57, 1)),
    ],
)
def test_unequal_workers_end_with_the_largest_micro_batch(plan, nodes, shape):
    assert shape_of(plan, nodes) == shape


@pytest.mark.parametrize("seed", range(3))
def test_launches_tell_the_step_time_of_any_plan(seed):
    fit = fit_step_time(launches(PLANS, seed, repeats=4))
    assert (fit.runs, fit.largest_workers) == (4 * len(PLANS), 4)
    assert fit.overhead_s == pytest.approx(OVERHEAD_S, rel=0.15)
    assert fit.per_example_s == pytest.approx(PER_EXAMPLE_S, rel=0.15)
    for plan in (BatchPlan.equal(100, 3, 3), BatchPlan.split(1437, 2, 719), BatchPlan.equal(1024, 1, 8)):
        estimate = fit.predict(shape_of(plan))
        assert estimate.value == pytest.approx(plain_s(shape_of(plan)), rel=0.12)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.samples == fit.runs


def test_the_nodes_of_a_run_are_those_it_ran_on():
    runs = [
        throughput(BatchPlan.equal(64, 1, workers), time_s).model_copy(update={"nodes": nodes})
        for nodes, workers, time_s in ((1, 1, 0.1), (1, 4, 0.11), (2, 4, 0.5))
        for _ in range(2)
    ]
    fit = fit_step_time(runs)
    assert [fit.predict(StepShape(nodes, 4, 64)).value for nodes in (1, 2)] == pytest.approx(
        [0.11, 0.5], rel=0.1
    )


def test_one_run_has_an_interval_from_what_is_known_of_others():
    fit = fit_step_time(launches(PLANS[:1], repeats=1, wobble=0.0))
    estimate = fit.predict(shape_of(PLANS[0]))
    assert estimate.value == pytest.approx(plain_s(shape_of(PLANS[0])), rel=0.02)
    assert 0.7 * estimate.value < estimate.low < estimate.value < estimate.high < 1.4 * estimate.value


def test_one_micro_batch_has_no_time_an_example():
    assert fit_step_time(launches([BatchPlan.equal(64, 1, w) for w in (1, 2)])).per_example_s is None
    assert fit_step_time(launches(SINGLE)).per_example_s == pytest.approx(PER_EXAMPLE_S, rel=0.2)


def test_other_priors_give_another_answer():
    runs = launches([BatchPlan.equal(64, 1, 2)])
    usual, slow = (fit_step_time(runs, priors) for priors in (None, StepPriors(straggle=Normal(0.5, 0.001))))
    asked = StepShape(1, 16, 64)
    assert slow.predict(asked).value > 1.3 * usual.predict(asked).value


def test_without_runs_there_is_no_fit():
    assert fit_step_time([]) is None
    assert mean_over_median([]) is None


@quiet
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 8, 64, 512]),
            st.integers(1, 3),
            st.sampled_from([1, 2, 4, 8]),
            st.floats(1e-4, 1e2),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_the_runs_every_step_takes_time(runs):
    fit = fit_step_time(throughput(BatchPlan.equal(m, a, w), t) for m, a, w, t in runs)
    assert fit.overhead_s > 0
    for shape in (StepShape(1, 1, 4), StepShape(1, 3, 700, 2), StepShape(2, 8, 8)):
        estimate = fit.predict(shape)
        assert 0 < estimate.value < np.inf


def test_a_run_dominated_by_synchronisation_leaves_a_step_time_for_one_worker():
    runs = [throughput(BatchPlan.equal(8, 1, w), 0.01 * w**1.1) for w in (2, 4) for _ in range(2)]
    assert fit_step_time(runs).predict(StepShape(1, 1, 8)).value > 0


# What of an answer is a guess


@pytest.mark.parametrize(
    ("known", "asked", "found"),
    [
        (PLANS, spread((1, 2, 3, 16)), []),
        (SINGLE, spread((1,), (7, 5000)), []),
        (SINGLE, spread((2,)), ["inside a node"]),
        (SINGLE, spread((2,), nodes=2), ["across nodes"]),
        (PLANS, spread((2,), nodes=2), ["across nodes"]),
        (PLANS[4:8], spread((1, 4)), ["only 2 workers"]),
        ([PLANS[0], PLANS[4]], spread((2,), (8,)), []),
        ([PLANS[0], PLANS[4]], spread((2,), (9,)), ["one micro-batch was measured (8)"]),
        ([PLANS[4]], spread((1,), (9,)), ["one micro-batch"]),
        ([PLANS[4]], spread((4,), (9,)), ["one micro-batch", "only 2 workers"]),
    ],
)
def test_what_the_runs_do_not_tell_is_said(known, asked, found):
    told = fit_step_time(launches(known)).unidentified(asked)
    assert len(told) == len(found)
    assert all(words in line for words, line in zip(found, told, strict=True))


@pytest.mark.parametrize(
    ("shape", "far"),
    [
        (StepShape(1, 16, 2048), False),
        (StepShape(1, 1, 2049), True),
        (StepShape(1, 17, 1), True),
        (StepShape(1, 1, 1, 1000), False),
    ],
)
def test_beyond_four_times_what_was_measured_is_extrapolated(shape, far):
    assert fit_step_time(launches(PLANS)).is_extrapolated(shape) is far


# Slow steps


def test_slow_steps_make_the_mean_longer_than_the_median():
    tail = mean_over_median(throughput(PLANS[0], 5.0, 1.0, 1.0, 1.0, 3.0, warmup_steps=1) for _ in range(3))
    assert tail.value == pytest.approx(1.5)
    assert (tail.low, tail.high) == pytest.approx((1.5, 1.5))


def test_the_tail_is_the_geometric_mean_over_runs():
    tail = mean_over_median([throughput(PLANS[0], 1.0, 1.0, x) for x in (1.0, 10.0)])
    assert tail.value == pytest.approx(2.0)
    assert tail.low < 2.0 < tail.high


def test_the_tail_of_one_run_has_no_interval():
    assert not mean_over_median(launches(PLANS[:1], repeats=1)).is_identified
