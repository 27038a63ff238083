"""Warm-up, outliers and the width of a median: what is made of the step times of one run."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from scaler.stats import median_width, outliers, settled_from

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

times = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


def steps(count, seed=0, spread=0.05):
    """Step times of about a second without a warm-up."""
    return np.exp(spread * np.random.default_rng(seed).normal(size=count))


def with_start(seed=0, count=60, slow=10):
    """The first steps take longer, each less so."""
    start = np.ones(count)
    start[:slow] += 3 * np.exp(-np.arange(slow) / 3)
    return start * steps(count, seed)


# Warm-up


@quiet
@given(times)
def test_never_more_than_half_is_warm_up(samples):
    assert 0 <= settled_from(samples) <= len(samples) / 2


@pytest.mark.parametrize("count", [50, 100, 500])
def test_steady_steps_lose_little_to_a_warm_up(count):
    dropped = [settled_from(steps(count, seed)) for seed in range(100)]
    assert np.median(dropped) <= 0.1 * count
    assert sum(drop == 0 for drop in dropped) >= 40


@pytest.mark.parametrize("seed", range(10))
def test_a_start_that_slows_down_less_and_less_is_found(seed):
    # The first three steps are twice as long, the tenth is 15% longer.
    assert 5 <= settled_from(with_start(seed)) <= 30


def test_what_is_left_after_a_slow_start_has_the_median_of_the_rest():
    found = [with_start(seed) for seed in range(20)]
    for samples in found:
        assert np.median(samples[settled_from(samples) :]) == pytest.approx(1.0, rel=0.06)


@pytest.mark.parametrize("at", [0, 3, 20, 59])
def test_one_slow_step_is_no_warm_up(at):
    """Wherever it is: the rest has to be as it would be without it."""
    spared = 0
    for seed in range(50):
        samples = steps(60, seed)
        plain = settled_from(samples)
        samples[at] *= 50
        spared += settled_from(samples) <= max(plain, 5)
    assert spared >= 40


@pytest.mark.parametrize("count", range(1, 10))
def test_a_few_steps_have_no_warm_up(count):
    assert settled_from(with_start(count=20)[:count]) == 0


@pytest.mark.parametrize("count", [10, 12, 14, 15, 20])
def test_few_steady_steps_are_often_kept(count):
    assert sum(settled_from(steps(count, seed)) == 0 for seed in range(100)) >= 30


def test_equal_steps_have_no_warm_up():
    assert settled_from([0.5] * 40) == 0


@quiet
@given(times, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(samples, unit):
    found, scaled = (outliers(s) for s in (samples, [unit * s for s in samples]))
    assert found == scaled
    width, scaled_width = (median_width(s) for s in (samples, [unit * s for s in samples]))
    assert scaled_width == pytest.approx(width)


# Outliers


@quiet
@given(st.sets(st.integers(0, 39), max_size=8), st.integers(0, 100))
def test_steps_far_slower_than_the_others_are_outliers(slow, seed):
    samples = steps(40, seed, spread=0.01)
    samples[list(slow)] *= 3
    assert outliers(samples) == sorted(slow)


def test_fast_steps_are_no_outliers():
    samples = steps(40, spread=0.01)
    samples[5] /= 100
    assert outliers(samples) == []


def test_steady_steps_have_next_to_no_outliers():
    assert sum(len(outliers(steps(100, seed))) for seed in range(50)) < 10


def test_among_equal_steps_a_little_is_no_outlier_and_a_tenth_is():
    assert outliers([1.0] * 20 + [1.04]) == []
    assert outliers([1.0] * 20 + [1.1]) == [20]


# The median


@pytest.mark.parametrize("count", range(8))
def test_under_eight_steps_the_median_has_no_width(count):
    assert median_width([1.0] * count) == np.inf


def test_equal_steps_have_a_median_of_no_width():
    assert median_width([2.0] * 8) == 0.0


@quiet
@given(times.filter(lambda samples: len(samples) >= 8), st.randoms(use_true_random=False))
def test_the_width_does_not_depend_on_the_order(samples, random):
    mixed = random.sample(samples, len(samples))
    assert 0 <= median_width(samples) == median_width(mixed)


def test_more_steps_narrow_the_median():
    found = [np.mean([median_width(steps(n, seed)) for seed in range(50)]) for n in (20, 80, 320)]
    assert found[0] > 1.5 * found[1] > 2 * found[2]


@pytest.mark.parametrize("count", [8, 10, 11, 13, 16, 18, 20, 50, 201, 500])
def test_the_width_is_that_of_an_interval_that_covers_the_median(count):
    """Of evenly spaced samples the width tells how many ranks the interval leaves out on each side."""
    even = np.linspace(100, 101, count)
    ranks = round(median_width(even) * float(np.median(even)) * (count - 1))
    outside = (count - 1 - ranks) // 2
    assert 0.89 <= 1 - 2 * scipy_stats.binom.cdf(outside, count, 0.5) <= 0.98
