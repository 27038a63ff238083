"""What regimes showed: the noise of a cost, its unrest, an epoch's time, and who arrives first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from regime_cases import curve, noisy, regime, regimes_record, tutorial

from scaler.fit.regimes import fit_regimes


def only(*regimes, **fields):
    return fit_regimes(regimes_record(*regimes, **fields)).regimes[0]


@pytest.mark.parametrize("deviation", [0.01, 0.3])
def test_the_noise_is_the_costs_standard_deviation_whatever_the_trend(deviation):
    found = only(regime(64, noisy(2000, deviation)))
    assert found.noise.value == pytest.approx(deviation, rel=0.08)
    assert found.noise.low < deviation < found.noise.high


def test_blocks_give_the_noise_of_their_steps():
    costs = noisy(4000, 0.2)
    whole = only(regime(64, costs)).noise.value
    blocks = only(regime(64, costs, curve=curve(costs, block=37))).noise.value
    assert blocks == pytest.approx(whole, rel=0.02)


def test_a_smooth_curve_rises_nowhere_and_a_noisy_one_on_half_its_steps():
    assert only(regime(256, noisy(100, 0.0))).rises == 0
    assert only(regime(1, noisy(2000, 1.0))).rises == pytest.approx(0.5, abs=0.03)


def test_an_epochs_time_is_its_steps_times_the_median_step():
    found = only(regime(64, noisy(100, 0.1), step_time_s=0.01))
    assert found.epoch_time_s.value == pytest.approx(4 * 0.01)
    assert found.epochs == 100 * 64 / 256


def test_one_slow_step_does_not_move_an_epochs_time():
    slow = curve(noisy(100, 0.1))
    times = np.asarray(slow.time_s) + np.where(np.arange(100) > 50, 5.0, 0.0)
    found = only(regime(64, noisy(100, 0.1), curve=slow.model_copy(update={"time_s": tuple(times.tolist())})))
    assert found.epoch_time_s.value == pytest.approx(0.04)


def test_unrest_needs_eight_changes_for_an_interval():
    assert only(regime(64, noisy(200, 0.1))).unrest.low is not None
    few = only(regime(64, noisy(60, 0.1))).unrest
    assert few.value > 0 and few.low is None


def test_the_common_cost_is_the_lowest_that_all_reached():
    fit = fit_regimes(
        regimes_record(regime(64, noisy(200, 0, last=0.2)), regime(256, noisy(100, 0, last=0.1)))
    )
    assert fit.common_cost == pytest.approx(0.2)
    slow, fast = (r.arrival for r in fit.regimes)
    assert slow.iterations == 200 and slow.epochs == 50 and slow.time_s == pytest.approx(2.0)
    assert fast.iterations < 100


def test_who_got_nowhere_does_not_set_the_common_cost():
    stuck = regime(1, np.full(100, 2.0), spans_plane=False)
    fit = fit_regimes(regimes_record(stuck, regime(64, noisy(100, 0)), regime(256, noisy(100, 0))))
    assert fit.common_cost == pytest.approx(0.1)
    assert fit.regimes[0].arrival is None and not fit.regimes[0].spans_plane


def test_what_was_not_measured_is_absent():
    nothing = regime(1, stop="undefined", reason="why")
    found = only(nothing, regime(256, noisy(10, 0)))
    assert (found.noise, found.rises, found.unrest, found.end_cost, found.epoch_time_s) == (None,) * 5
    assert found.reason == "why" and found.iterations == 0


def test_a_diverged_regime_has_no_end():
    found = only(regime(1, np.geomspace(1, 1e30, 50), stop="diverged", spans_plane=False))
    assert found.end is None and found.end_cost is None and found.iterations == 50


def test_one_step_has_no_noise():
    found = only(regime(256, [1.0]))
    assert found.noise is None and found.rises is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_any_curve_can_be_read(costs):
    fit = fit_regimes(regimes_record(regime(64, costs)))
    assert type(fit).model_validate_json(fit.model_dump_json()) == fit


def test_the_order_is_the_records():
    assert [(r.batch, r.rate_factor) for r in fit_regimes(tutorial()).regimes] == [
        (1, 1.0),
        (1, 0.1),
        (64, 1.0),
        (256, 1.0),
    ]
