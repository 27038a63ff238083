import numpy as np
import pytest
from fit_records import covers_90_percent, throughput
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.fit.step_time import fit_step_time, run_median_s

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)

OVERHEAD_S, PER_EXAMPLE_S, SYNC_S = 0.002, 2e-5, 0.0008
PLANS = [BatchPlan.equal(m, 1, w) for w in (1, 2, 4) for m in (8, 32, 128, 512)]
PLANS += [BatchPlan.equal(128, 4, 2)]
SINGLE = [BatchPlan.equal(m, 1, 1) for m in (8, 32, 128, 512)]


def true_s(plan: BatchPlan) -> float:
    compute_s = plan.accumulation * (OVERHEAD_S + PER_EXAMPLE_S * plan.micro_batch)
    return compute_s + SYNC_S * float(np.log2(plan.workers))


def launches(plans, seed=0, spread=0.04, repeats=2):
    """Fresh runs differ by a log-normal factor; steps within one hardly do."""
    generator = np.random.default_rng(seed)
    records = []
    for plan in [p for p in plans for _ in range(repeats)]:
        median_s = true_s(plan) * float(np.exp(spread * generator.normal()))
        records.append(throughput(plan, 9.0, 0.99 * median_s, median_s, 1.05 * median_s, warmup_steps=1))
    return records


def coefficients(fit):
    return dict(zip(fit.terms, fit.coefficients_s, strict=True))


def test_the_median_of_a_run_leaves_out_its_warm_up():
    record = throughput(PLANS[0], 100.0, 90.0, 3.0, 1.0, 2.0, warmup_steps=2)
    assert run_median_s(record) == 2.0


def test_coefficients_are_recovered_exactly_without_noise():
    fit = fit_step_time(launches(PLANS, spread=0.0))
    assert coefficients(fit) == pytest.approx(
        {"overhead": OVERHEAD_S, "per_example": PER_EXAMPLE_S, "sync": SYNC_S}
    )
    assert (fit.overhead_s, fit.per_example_s) == pytest.approx((OVERHEAD_S, PER_EXAMPLE_S))
    for plan in (BatchPlan.equal(100, 3, 3), BatchPlan.split(1437, 2, 719)):
        assert fit.predict(plan).value == pytest.approx(true_s(plan))


@pytest.mark.parametrize("seed", range(5))
def test_coefficients_are_recovered_from_wobbling_runs(seed):
    fit = fit_step_time(launches(PLANS, seed, repeats=4))
    assert fit.overhead_s == pytest.approx(OVERHEAD_S, rel=0.08)
    assert fit.per_example_s == pytest.approx(PER_EXAMPLE_S, rel=0.08)
    assert coefficients(fit)["sync"] == pytest.approx(SYNC_S, rel=0.25)
    assert (fit.runs, fit.largest_workers, fit.largest_micro_batch) == (4 * len(PLANS), 4, 512)


@pytest.mark.parametrize(
    ("plans", "fresh"),
    [
        (PLANS, BatchPlan.equal(64, 1, 2)),
        (PLANS, BatchPlan.equal(512, 4, 4)),
        (PLANS, BatchPlan.equal(1024, 1, 8)),
        (SINGLE, BatchPlan.equal(64, 1, 1)),
    ],
    ids=lambda value: value.arithmetic() if isinstance(value, BatchPlan) else "",
)
def test_the_interval_covers_the_median_of_a_fresh_run(plans, fresh):
    hits, repeats = 0, 200
    for seed in range(repeats):
        estimate = fit_step_time(launches(plans, seed)).predict(fresh)
        observed = true_s(fresh) * np.exp(0.04 * np.random.default_rng([seed, 1]).normal())
        hits += estimate.low <= observed <= estimate.high
    assert covers_90_percent(hits, repeats)


def test_more_spread_between_runs_widens_the_interval():
    widths = []
    for spread in (0.01, 0.05, 0.2):
        estimate = fit_step_time(launches(PLANS, spread=spread)).predict(PLANS[5])
        widths.append(estimate.high / estimate.low)
    assert widths == sorted(widths)
    assert widths[0] < 1.1 < widths[2]


def test_one_worker_count_has_no_sync_term():
    fit = fit_step_time(launches(SINGLE, spread=0.0))
    assert fit.terms == ("overhead", "per_example")
    fit = fit_step_time(launches([BatchPlan.equal(m, 1, 4) for m in (8, 64)], spread=0.0))
    assert "sync" not in fit.terms


def test_one_micro_batch_has_no_per_example_term():
    fit = fit_step_time(launches([BatchPlan.equal(64, 1, w) for w in (1, 2)], spread=0.0))
    assert fit.terms == ("overhead", "sync")
    assert fit.per_example_s == 0.0


def test_one_run_has_no_interval():
    fit = fit_step_time(launches(PLANS[:1], repeats=1, spread=0.0))
    estimate = fit.predict(PLANS[0])
    assert estimate.value == pytest.approx(true_s(PLANS[0]))
    assert not estimate.is_identified
    assert not fit.mean_over_median.is_identified


def test_as_many_runs_as_terms_have_no_interval():
    fit = fit_step_time(launches(SINGLE[:2], repeats=1))
    assert fit.degrees_of_freedom == 0
    assert not fit.predict(SINGLE[0]).is_identified


def test_without_runs_there_is_no_fit():
    assert fit_step_time([]) is None


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
def test_whatever_the_runs_no_term_is_negative_and_every_step_takes_time(runs):
    fit = fit_step_time(throughput(BatchPlan.equal(m, a, w), t) for m, a, w, t in runs)
    assert all(c >= 0 for c in fit.coefficients_s)
    for plan in (BatchPlan.equal(4, 1, 1), BatchPlan.equal(700, 2, 3)):
        estimate = fit.predict(plan)
        assert 0 < estimate.value < np.inf
        if estimate.is_identified:
            assert estimate.low <= estimate.value <= estimate.high


def test_a_run_dominated_by_synchronisation_leaves_a_step_time_for_one_worker():
    runs = [throughput(BatchPlan.equal(8, 1, w), 0.01 * w**1.1) for w in (2, 4) for _ in range(2)]
    assert fit_step_time(runs).predict(BatchPlan.equal(8, 1, 1)).value > 0


def test_slow_steps_make_the_mean_longer_than_the_median():
    runs = [throughput(PLANS[0], 5.0, 1.0, 1.0, 1.0, 3.0, warmup_steps=1) for _ in range(3)]
    tail = fit_step_time(runs).mean_over_median
    assert tail.value == pytest.approx(1.5)
    assert (tail.low, tail.high) == pytest.approx((1.5, 1.5))


def test_the_tail_is_the_geometric_mean_over_runs():
    runs = [throughput(PLANS[0], 1.0, 1.0, x) for x in (1.0, 10.0)]
    tail = fit_step_time(runs).mean_over_median
    assert tail.value == pytest.approx(2.0)
    assert tail.low < 2.0 < tail.high


@pytest.mark.parametrize(
    ("plan", "far"),
    [
        (BatchPlan.equal(2048, 1, 16), False),
        (BatchPlan.equal(2049, 1, 1), True),
        (BatchPlan.equal(1, 1, 17), True),
        (BatchPlan.equal(1, 1000, 1), False),
        (BatchPlan(micro_batches=(2049, 1)), True),
    ],
)
def test_beyond_four_times_what_was_measured_is_extrapolated(plan, far):
    assert fit_step_time(launches(PLANS)).is_extrapolated(plan) is far
