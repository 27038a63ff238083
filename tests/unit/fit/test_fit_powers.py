"""Whether powers of two matter, from passes whose times are known."""

import numpy as np
import pytest
from fit_records import covers_90_percent, powers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.fit.powers import PowersFit, fit_powers

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)

NOT_FASTER, UNSETTLED = "powers of two are not faster", "not settled"
NOTHING, MULTIPLES, POWERS = "do not matter", "multiples of 8 are faster", "powers of two are faster"


def pass_times_s(power, odd=1.0, between=1.0, overhead_s=2e-3, per_example_s=1e-5):
    """A straight line in the size; odd sizes, and those between powers, take a factor more."""
    sizes = np.array([power - 1, power, power + 1, 3 * power // 2, 2 * power])
    return (overhead_s + per_example_s * sizes) * np.array([odd, 1, odd, between, 1])


def simulated(power=64, rounds=60, noise=0.03, drift=0.02, seed=0, **factors):
    """Rounds whose passes differ by noise of their own and by a drift that they share."""
    draw = np.random.default_rng(seed)
    shared = np.cumsum(drift * draw.normal(size=(rounds, 1)), axis=0)
    own = noise * draw.normal(size=(rounds, 5))
    return powers(power, pass_times_s(power, **factors) * np.exp(shared + own))


def test_without_a_record_there_is_no_fit():
    assert fit_powers([]) is None


@quiet
@given(
    power=st.sampled_from([16, 64, 512]),
    odd=st.floats(0.8, 1.5),
    between=st.floats(0.8, 1.5),
    overhead_s=st.floats(0, 1e-2),
    per_example_s=st.floats(1e-6, 1e-3),
)
def test_exact_times_give_the_exact_ratios(power, odd, between, overhead_s, per_example_s):
    times_s = pass_times_s(power, odd, between, overhead_s, per_example_s)
    fit = fit_powers([powers(power, [times_s] * 20)])
    assert fit.power == power
    for estimate, truth in ((fit.neighbours, odd), (fit.between, between)):
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((truth,) * 3)
        assert estimate.samples == 20


@pytest.mark.parametrize(("odd", "between"), [(1.0, 1.0), (1.1, 1.0), (1.05, 1.3)])
def test_simulated_ratios_are_found_in_noise_and_drift(odd, between):
    fit = fit_powers([simulated(rounds=200, odd=odd, between=between)])
    for estimate, truth in ((fit.neighbours, odd), (fit.between, between)):
        assert estimate.value == pytest.approx(truth, rel=0.01)
        assert estimate.low < estimate.value < estimate.high


def test_the_intervals_cover_the_truth():
    repeats = 120
    fits = [fit_powers([simulated(seed=[seed, 11], odd=1.06, between=1.2)]) for seed in range(repeats)]
    assert covers_90_percent(sum(f.neighbours.low <= 1.06 <= f.neighbours.high for f in fits), repeats)
    assert covers_90_percent(sum(f.between.low <= 1.2 <= f.between.high for f in fits), repeats)


def test_more_rounds_narrow_the_intervals():
    few, many = (fit_powers([simulated(rounds=rounds)]).neighbours for rounds in (20, 200))
    assert many.high - many.low < few.high - few.low


def test_slow_rounds_weigh_no_more_than_others():
    calm = simulated()
    rows = np.array(calm.step_times_s).T
    rows[::10, 1] *= 50  # one pass in fifty
    assert fit_powers([powers(64, rows)]).neighbours.value == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("factors", "verdict", "grain"),
    [
        ({}, NOTHING, 1),
        ({"odd": 1.2}, MULTIPLES, 8),
        ({"odd": 1.2, "between": 1.3}, POWERS, 8),
        ({"between": 1.3}, POWERS, 1),
        ({"odd": 1.01, "between": 1.01}, UNSETTLED, 1),
        ({"odd": 0.8}, NOT_FASTER, 1),
    ],
)
def test_each_case_has_its_verdict_and_its_grain(factors, verdict, grain):
    fit = fit_powers([simulated(**factors)])
    assert verdict in fit.verdict
    assert fit.grain == grain


def test_the_verdict_tells_which_sizes_take_how_much_more():
    assert "63 and 65 examples take 25.0% more" in exactly(odd=1.25).verdict
    assert "96 examples take 50.0% more" in exactly(between=1.5).verdict
    assert "any size near 64" in exactly().verdict


def exactly(rounds=20, **factors) -> PowersFit:
    return fit_powers([powers(64, [pass_times_s(64, **factors)] * rounds)])


def test_a_difference_that_may_be_noise_is_none():
    fit = fit_powers([simulated(rounds=20, noise=0.3, odd=1.05)])
    assert fit.neighbours.low < 1.02 < fit.neighbours.high
    assert fit.grain == 1
    assert MULTIPLES not in fit.verdict


def test_too_few_rounds_give_no_interval_and_no_grain():
    fit = exactly(rounds=7, odd=1.5, between=1.5)
    assert not fit.neighbours.is_identified and not fit.between.is_identified
    assert fit.grain == 1


def test_the_last_record_counts():
    fit = fit_powers([simulated(power=16, odd=1.5), simulated(power=128)])
    assert fit.power == 128
    assert fit.grain == 1


def test_a_fit_comes_back_from_json():
    fit = fit_powers([simulated(odd=1.2)])
    assert PowersFit.model_validate_json(fit.model_dump_json()) == fit


@pytest.mark.parametrize("factors", [{"odd": 0.8}, {"between": 0.8}])
def test_powers_of_two_that_are_slower_are_not_said_to_take_their_share(factors):
    assert "within 2%" not in fit_powers([simulated(**factors)]).verdict


@pytest.mark.parametrize("record", [simulated(rounds=20, noise=0.4), simulated(rounds=7, odd=1.5)])
def test_what_the_rounds_do_not_tell_is_not_said_to_be_within_2_percent(record):
    fit = fit_powers([record])
    assert not fit.neighbours.is_identified or fit.neighbours.high > 1.1
    assert "within 2%" not in fit.verdict
