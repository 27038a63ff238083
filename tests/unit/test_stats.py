import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from scaler.stats import CONFIDENCE, Estimate, block_bootstrap, log_estimate, pooled_log_variance, product

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
positive = st.floats(1e-6, 1e6)


def mean(rows):
    return float(rows.sum() / len(rows))


def coverage(draw, truth, repeats=200):
    hits = 0
    for seed in range(repeats):
        low, high = block_bootstrap(draw(np.random.default_rng(seed)), mean, seed=seed)
        hits += low <= truth <= high
    return hits / repeats


def test_intervals_are_90_percent():
    assert CONFIDENCE == 0.90


def test_the_bootstrap_covers_a_known_mean():
    found = coverage(lambda generator: generator.exponential(3.0, size=40), truth=3.0)
    # Loose bounds: a bootstrap of 40 skewed samples covers a little under 90%.
    assert 0.80 <= found <= 0.97


def test_the_bootstrap_covers_the_mean_of_samples_that_follow_one_another():
    def draw(generator):
        noise = generator.normal(size=202)
        return 5 + noise[2:] + noise[1:-1] + noise[:-2]

    assert 0.75 <= coverage(draw, truth=5.0, repeats=100) <= 0.99


def test_blocks_widen_the_interval_of_correlated_samples():
    walk = np.cumsum(np.random.default_rng(0).normal(size=400))
    narrow, wide = (block_bootstrap(walk, mean, block=block) for block in (1, 20))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


@pytest.mark.parametrize("count", range(8))
def test_under_eight_samples_there_is_no_bootstrap(count):
    assert block_bootstrap([1.0] * count, mean) is None


def test_from_eight_samples_on_there_is_a_bootstrap():
    low, high = block_bootstrap(np.arange(8.0), mean)
    assert 0 <= low < 3.5 < high <= 7


def test_equal_samples_have_an_interval_of_no_width():
    assert block_bootstrap([2.0] * 10, mean) == (2.0, 2.0)


def test_the_bootstrap_repeats_with_its_seed():
    samples = np.random.default_rng(1).normal(size=30)
    assert block_bootstrap(samples, mean, seed=7) == block_bootstrap(samples, mean, seed=7)
    assert block_bootstrap(samples, mean, seed=7) != block_bootstrap(samples, mean, seed=8)


def test_the_bootstrap_keeps_rows_together():
    left = np.random.default_rng(2).uniform(1, 2, size=20)
    rows = np.column_stack([left, 3 * left])
    low, high = block_bootstrap(rows, lambda r: float(r[:, 1].sum() / r[:, 0].sum()))
    assert (low, high) == pytest.approx((3, 3))


@settings(quiet, max_examples=15)
@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=30))
def test_a_bootstrapped_mean_stays_within_the_samples(samples):
    low, high = block_bootstrap(samples, mean)
    slack = 1e-9 * max(map(abs, samples))
    assert min(samples) - slack <= low <= high <= max(samples) + slack


def test_the_pooled_variance_of_two_groups_by_hand():
    groups = [[1.0, np.e], [1.0, np.e**2, np.e**4]]
    # Logs 0, 1 (sum of squares 1/2) and 0, 2, 4 (sum of squares 8), with 1 + 2 degrees of freedom.
    variance, dof = pooled_log_variance(groups)
    assert variance == pytest.approx(8.5 / 3)
    assert dof == 3


@quiet
@given(
    st.lists(st.lists(positive, min_size=2, max_size=5), min_size=1, max_size=4),
    st.lists(positive, max_size=1),
)
def test_the_pooled_variance_weighs_each_group_by_its_degrees_of_freedom(groups, single):
    variances = [np.var(np.log(group), ddof=1) for group in groups]
    weights = [len(group) - 1 for group in groups]
    variance, dof = pooled_log_variance([*groups, single])
    assert variance == pytest.approx(np.average(variances, weights=weights), abs=1e-12)
    assert dof == sum(weights)


@pytest.mark.parametrize("groups", [[], [[]], [[3.0]], [[1.0], [2.0], []]])
def test_single_samples_have_no_spread(groups):
    assert pooled_log_variance(groups) == (0.0, 0)


@quiet
@given(st.floats(-20, 20), st.floats(0, 3), st.integers(1, 50))
def test_a_log_estimate_has_the_t_interval(log_value, log_error, dof):
    estimate = log_estimate(log_value, log_error, dof, samples=dof + 1, method="t")
    if log_error:
        low, high = scipy_stats.t.interval(0.90, dof, loc=log_value, scale=log_error)
    else:
        low = high = log_value
    assert estimate.is_identified
    assert estimate.value == pytest.approx(np.exp(log_value))
    assert estimate.low == pytest.approx(np.exp(low))
    assert estimate.high == pytest.approx(np.exp(high))
    assert (estimate.samples, estimate.method) == (dof + 1, "t")


@pytest.mark.parametrize(
    ("log_error", "dof"), [(None, 5), (0.1, 0), (float("inf"), 5), (float("nan"), 5), (1000.0, 5)]
)
def test_without_a_spread_there_is_no_interval(log_error, dof):
    estimate = log_estimate(1.0, log_error, dof, samples=1, method="single")
    assert not estimate.is_identified
    assert (estimate.low, estimate.high) == (None, None)
    assert estimate.value == pytest.approx(np.e)


def exact(value):
    return Estimate(value=value, low=value, high=value, samples=1, method="exact")


@quiet
@given(positive, positive)
def test_exact_estimates_multiply_exactly(left, right):
    estimate = product(exact(left), exact(right), "both")
    assert estimate == exact(left * right).model_copy(update={"method": "both"})


@quiet
@given(positive, st.floats(1, 10), st.floats(1, 10), positive)
def test_an_exact_factor_only_scales(value, below, above, factor):
    estimate = Estimate(value=value, low=value / below, high=value * above, samples=3, method="t")
    result = product(estimate, exact(factor), "t")
    scaled = estimate.scaled(factor)
    assert (result.value, result.low, result.high) == pytest.approx((scaled.value, scaled.low, scaled.high))


def test_log_half_widths_add_in_squares():
    left = Estimate(value=10, low=10 / np.exp(3), high=10 * np.exp(0.3), samples=9, method="a")
    right = Estimate(value=2, low=2 / np.exp(4), high=2 * np.exp(0.4), samples=4, method="b")
    result = product(left, right, "a x b")
    assert result.value == 20
    assert result.low == pytest.approx(20 / np.exp(5))
    assert result.high == pytest.approx(20 * np.exp(0.5))
    assert (result.samples, result.method) == (4, "a x b")
    assert product(right, left, "a x b").high == pytest.approx(result.high)


def test_a_product_with_no_spread_has_none():
    bare = Estimate(value=2, samples=1, method="single")
    for result in (product(bare, exact(3), "m"), product(exact(3), bare, "m")):
        assert result == Estimate(value=6, samples=1, method="m")
        assert not result.is_identified


def test_scaling_keeps_an_absent_interval_absent():
    assert Estimate(value=2, samples=1, method="m").scaled(3) == Estimate(value=6, samples=1, method="m")
