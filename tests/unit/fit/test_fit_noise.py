import numpy as np
import pytest
from fit_records import covers_90_percent, norms

from scaler.fit.noise import fit_noise_scale

SMALL, BIG, DIMENSION = 16, 64, 40


def gradients(seed, squared_gradient, trace, steps=100, small=SMALL, big=BIG):
    """Gaussian gradients of the mean over `small` examples, and of `big` / `small` such parts together."""
    generator = np.random.default_rng(seed)
    mean = np.full(DIMENSION, np.sqrt(squared_gradient / DIMENSION))
    parts = mean + np.sqrt(trace / DIMENSION / small) * generator.normal(
        size=(steps, big // small, DIMENSION)
    )
    small_norms = (parts**2).sum(axis=2).mean(axis=1)
    big_norms = (parts.mean(axis=1) ** 2).sum(axis=1)
    return norms(small, big, small_norms, big_norms)


@pytest.mark.parametrize(("squared_gradient", "trace"), [(1.0, 64.0), (4.0, 20.0), (0.5, 200.0)])
def test_the_scale_is_near_the_truth_over_many_steps(squared_gradient, trace):
    estimate = fit_noise_scale([gradients(0, squared_gradient, trace, steps=4000)])
    assert estimate.value == pytest.approx(trace / squared_gradient, rel=0.05)
    assert estimate.samples == 4000
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("small", "big"), [(16, 64), (8, 16), (4, 128)])
@pytest.mark.parametrize(("squared_gradient", "trace"), [(2.0, 60.0), (2.0, 6.0)])
def test_numerator_and_denominator_are_unbiased(small, big, squared_gradient, trace):
    # However few steps each record has, the pooled means give the truth, for every pair of batch sizes:
    # were either mean biased by a share of the other, the ratio would be off by it.
    records = [gradients([s, 7], squared_gradient, trace, 2, small, big) for s in range(1000)]
    assert fit_noise_scale(records).value == pytest.approx(trace / squared_gradient, rel=0.06)


def test_exact_norms_give_the_exact_scale():
    # E|G_B|^2 = |G|^2 + tr(Sigma) / B with |G|^2 = 3 and tr(Sigma) = 48.
    record = norms(16, 64, [3 + 48 / 16] * 10, [3 + 48 / 64] * 10)
    estimate = fit_noise_scale([record])
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((16, 16, 16))


def test_records_of_other_batch_sizes_agree():
    records = [norms(b, 4 * b, [3 + 48 / b] * 4, [3 + 12 / b] * 4) for b in (2, 8, 32)]
    estimate = fit_noise_scale(records)
    assert estimate.value == pytest.approx(16)
    assert estimate.samples == 12


@pytest.mark.parametrize(("squared_gradient", "trace"), [(1.0, 64.0), (1.0, 10.0)])
def test_the_interval_covers_the_truth(squared_gradient, trace):
    hits, repeats = 0, 120
    for seed in range(repeats):
        estimate = fit_noise_scale([gradients([seed, 3], squared_gradient, trace)])
        hits += estimate.low <= trace / squared_gradient <= estimate.high
    assert covers_90_percent(hits, repeats)


def test_pure_noise_has_no_scale():
    found = [fit_noise_scale([gradients([seed, 4], 0.0, 64.0)]) for seed in range(40)]
    # The lower end of a 90% interval lies above zero by chance in one of twenty.
    assert sum(estimate is not None for estimate in found) <= 6


def test_a_gradient_that_is_not_positive_has_no_scale():
    assert fit_noise_scale([norms(16, 64, [4.0] * 20, [0.9] * 20)]) is None


def test_no_noise_has_no_scale():
    assert fit_noise_scale([norms(16, 64, [2.0] * 20, [2.0] * 20)]) is None


def test_under_eight_steps_there_is_no_scale():
    assert fit_noise_scale([norms(16, 64, [6.0] * 7, [3.75] * 7)]) is None
    assert fit_noise_scale([norms(16, 64, [6.0] * 8, [3.75] * 8)]) is not None


@pytest.mark.parametrize("records", [[], [norms(16, 64, [], [])]])
def test_without_steps_there_is_no_scale(records):
    assert fit_noise_scale(records) is None
