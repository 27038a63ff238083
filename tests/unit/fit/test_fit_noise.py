import numpy as np
import pytest
from fit_records import covers_90_percent, norms
from hypothesis import given
from hypothesis import strategies as st

from scaler.fit.noise import fit_noise, unbiased_parts
from scaler.records import SquaredNorms

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
    estimate = fit_noise([gradients(0, squared_gradient, trace, steps=4000)]).scale
    assert estimate.value == pytest.approx(trace / squared_gradient, rel=0.05)
    assert estimate.samples == 4000
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("small", "big"), [(16, 64), (8, 16), (4, 128)])
@pytest.mark.parametrize(("squared_gradient", "trace"), [(2.0, 60.0), (2.0, 6.0)])
def test_numerator_and_denominator_are_unbiased(small, big, squared_gradient, trace):
    # However few steps each record has, the pooled means give the truth, for every pair of batch sizes:
    # were either mean biased by a share of the other, the ratio would be off by it.
    records = [gradients([s, 7], squared_gradient, trace, 2, small, big) for s in range(1000)]
    assert fit_noise(records).scale.value == pytest.approx(trace / squared_gradient, rel=0.06)


def test_exact_norms_give_the_exact_scale():
    # E|G_B|^2 = |G|^2 + tr(Sigma) / B with |G|^2 = 3 and tr(Sigma) = 48.
    record = norms(16, 64, [3 + 48 / 16] * 10, [3 + 48 / 64] * 10)
    estimate = fit_noise([record]).scale
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((16, 16, 16))


def test_records_of_other_batch_sizes_agree():
    records = [norms(b, 4 * b, [3 + 48 / b] * 4, [3 + 12 / b] * 4) for b in (2, 8, 32)]
    estimate = fit_noise(records).scale
    assert estimate.value == pytest.approx(16)
    assert estimate.samples == 12


@pytest.mark.parametrize(("squared_gradient", "trace"), [(1.0, 64.0), (1.0, 10.0)])
def test_the_interval_covers_the_truth(squared_gradient, trace):
    hits, repeats = 0, 120
    for seed in range(repeats):
        estimate = fit_noise([gradients([seed, 3], squared_gradient, trace)]).scale
        hits += estimate.low <= trace / squared_gradient <= estimate.high
    assert covers_90_percent(hits, repeats)


def test_pure_noise_has_no_scale():
    found = [fit_noise([gradients([seed, 4], 0.0, 64.0)]).scale for seed in range(40)]
    # The lower end of a 90% interval lies above zero by chance in one of twenty.
    assert sum(estimate is not None for estimate in found) <= 6


def test_a_gradient_that_is_not_positive_has_no_scale():
    assert fit_noise([norms(16, 64, [4.0] * 20, [0.9] * 20)]).scale is None


def test_no_noise_has_no_scale():
    assert fit_noise([norms(16, 64, [2.0] * 20, [2.0] * 20)]).scale is None


def test_under_eight_steps_there_is_no_scale():
    assert fit_noise([norms(16, 64, [6.0] * 7, [3.75] * 7)]).scale is None
    assert fit_noise([norms(16, 64, [6.0] * 8, [3.75] * 8)]).scale is not None


@pytest.mark.parametrize("records", [[], [norms(16, 64, [], [])]])
def test_without_steps_there_is_no_scale(records):
    assert fit_noise(records).scale is None


def test_groups_and_the_preconditioned_gradient_have_scales_of_their_own():
    exact = {scale: ([3 + scale / 16] * 10, [3 + scale / 64] * 10) for scale in (48, 6)}
    groups = {str(scale // 3): SquaredNorms(small=s, big=b) for scale, (s, b) in exact.items()}
    groups["frozen"] = SquaredNorms(small=[0.0] * 10, big=[0.0] * 10)
    record = norms(16, 64, *(np.sum(pair, axis=0) for pair in zip(*exact.values(), strict=True)))
    record = record.model_copy(update={"groups": groups, "preconditioned": groups["2"], "left_out_steps": 3})
    found = fit_noise([record, record])
    assert found.scale.value == pytest.approx((48 + 6) / 6)
    assert {name: scale.value for name, scale in found.groups.items()} == pytest.approx({"16": 16, "2": 2})
    assert found.preconditioned.value == pytest.approx(2)
    assert (found.steps, found.left_out_steps) == (20, 6)
    assert str(found).splitlines()[0] == "gradient noise scale: 9 examples (90% interval 9 to 9)"
    assert str(found).splitlines()[-1] == "(20 steps; 6 left out: gradients that were not finite)"


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 1000), st.integers(2, 64))
def test_expected_norms_give_their_parts_back(squared_gradient, trace, small, times):
    big = small * times
    expected = [squared_gradient + trace / batch for batch in (small, big)]
    (found,) = unbiased_parts(expected[:1], expected[1:], small, big)
    worst = max(expected) * 1e-9
    assert found[0] == pytest.approx(squared_gradient, rel=1e-6, abs=worst)
    assert found[1] == pytest.approx(trace, rel=1e-6, abs=worst * big)


def test_an_interval_has_no_pole_where_the_gradient_may_vanish():
    # |G|^2 is clearly positive, but not by much: the interval is wide, one-sided, and not turned inside out.
    for seed in range(20):
        estimate = fit_noise([gradients([seed, 9], 0.3, 64.0)]).scale
        assert estimate is None or 0 < estimate.low < estimate.value < estimate.high
