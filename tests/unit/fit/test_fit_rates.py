"""The fit of all trials against simulated truths."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rate_truths import FORMS, GROWTHS, power, quadratic, sgd, simulate, surge, valley

from scaler.fit.rate_curve import Shapes, Trial
from scaler.fit.rate_fit import fit_examples, fit_losses
from scaler.fit.rate_posterior import GROWTH_OF_SGD

CASES = list(itertools.product(GROWTHS.values(), FORMS.values(), range(2)))


@settings(deadline=None)
@given(
    st.floats(0.01, 10),
    st.floats(0.3, 5),
    st.floats(0.3, 20),
    st.booleans(),
    st.floats(-6, 6),
    st.floats(-6, 6),
)
def test_the_curve_has_its_least_at_the_best_rate_and_its_curvature_there(curvature, left, right, wall, u, v):
    shapes = Shapes(*(np.array([v]) for v in (curvature, left, right, 1.0, 1.0)), wall, np.zeros(1))
    small = 1e-3
    points = shapes.excess(np.array([[u, v, 0.0, -small, small]]))[0]
    assert points[0] >= -1e-9 and points[2] == pytest.approx(0, abs=1e-9)
    assert points[3] + points[4] == pytest.approx(curvature * small**2, rel=0.05, abs=1e-10)
    if 0 <= u < v or v < u <= 0:
        assert points[0] <= points[1] + 1e-9


def test_too_low_a_rate_costs_in_proportion_and_too_high_a_rate_meets_a_wall():
    line, wall = (
        Shapes(*(np.array([v]) for v in (0.8, 1.1, 0.3, 1.0, 1.0)), wall, np.zeros(1))
        for wall in (False, True)
    )
    far = np.array([[-5.0, -4.0, 1.0, 2.0]])
    (low, lower, high, higher), (same, _, above, beyond) = line.excess(far)[0], wall.excess(far)[0]
    assert low == same and low - lower == pytest.approx(0.8 * 1.1, rel=0.05)
    assert higher - high == pytest.approx(0.8 * 0.3, rel=0.1)
    assert above > np.log(3) and beyond > 20


def test_intervals_hold_the_truth_of_batches_measured_and_not():
    known, between, beyond = [], [], []
    for number, (growth, form, seed) in enumerate(CASES):
        trials, best = simulate(growth, form, 10 * number + seed)
        fit = fit_losses(trials)
        for batch, log_rate in best.items():
            found = fit.best_rate(batch)
            known.append(found.low <= math.exp(log_rate) <= found.high)
        for batch, hits in ((128, between), (1024, beyond), (2048, beyond)):
            found = fit.best_rate(batch)
            hits.append(found.low <= math.exp(growth(batch)) <= found.high)
    assert np.mean(known) > 0.8
    assert np.mean(between) > 0.75
    assert np.mean(beyond) > 0.75


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_the_best_rate_is_found_within_a_third_of_the_grids_step(growth, form):
    trials, best = simulate(growth, form, 3, deviation=0.0)
    fit = fit_losses(trials)
    errors = [math.log(fit.best_rate(batch).value) - log_rate for batch, log_rate in best.items()]
    assert np.mean(np.abs(errors)) < math.log(2) / 3


def test_intervals_widen_away_from_the_data():
    fit = fit_losses(simulate(power, quadratic, 1)[0])
    asked = (7, 8, 128, 2048, 2049)
    widths = [math.log(e.high / e.low) for e in map(fit.best_rate, (256, 128, 1024, 4096, 16384))]
    assert widths == sorted(widths)
    assert [fit.is_extrapolated(batch) for batch in asked] == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_the_exponent_of_a_power_law_is_recovered():
    batches = (32, 64, 128, 256, 512, 1024)
    fit = fit_losses(simulate(power, quadratic, 2, batches=batches, deviation=0.02)[0])
    found = fit.exponent()
    assert found.low < 0.6 < found.high
    assert found.value == pytest.approx(0.6, abs=0.12)
    assert fit.identifiable
    assert fit.saturates() is False
    assert not fit.falls()


def test_saturation_and_fall_are_told():
    batches = (64, 128, 256, 512, 1024, 4096, 16384)
    flat = fit_losses(simulate(sgd, quadratic, 4, batches=batches, deviation=0.02)[0])
    assert flat.saturates() is True
    assert flat.exponent().value > 0.3
    fallen = fit_losses(simulate(surge, quadratic, 4, batches=batches, deviation=0.02)[0])
    assert fallen.falls()


def test_one_best_rate_for_all_batches_has_the_exponent_nought():
    fit = fit_losses(simulate(lambda _: -3.0, quadratic, 5, deviation=0.0)[0])
    assert abs(fit.exponent().value) < 0.15
    assert fit.exponent().low < 0 < fit.exponent().high


def test_another_unit_of_loss_changes_nothing_but_itself():
    trials, _ = simulate(sgd, valley, 6)
    times_ten = [Trial(t.global_batch, t.log_rate, 10 * t.value) for t in trials]
    one, other = fit_losses(trials), fit_losses(times_ten)
    for batch in (64, 128, 1024):
        assert one.best_rate(batch).value == pytest.approx(other.best_rate(batch).value, rel=0.05)


def test_what_another_rate_costs():
    trials, best = simulate(sgd, valley, 7, noise=0.02)
    fit = fit_examples(trials)
    at, twice = (fit.cost(64, factor * math.exp(best[64])) for factor in (1.0, 2.0))
    assert at.low >= 1
    assert at.value < 1.03
    truth = math.exp(valley(math.log(2)))
    assert twice.low < truth < twice.high
    assert fit.expected_loss(64, math.exp(best[64])) < 0.05


def test_the_advised_rate_keeps_away_from_the_wall():
    fit = fit_examples(simulate(sgd, valley, 7, noise=0.02)[0][::3])
    for batch in (64, 128, 2048):
        best, advised = fit.best_rate(batch), fit.advised_rate(batch)
        assert best.low <= advised <= best.high
        assert advised < 1.02 * best.value
        costs = [fit.cost(batch, rate).value for rate in (best.high, advised)]
        assert costs[1] < costs[0]
    assert fit.advised_rate(2048) / fit.best_rate(2048).value < fit.advised_rate(64) / fit.best_rate(64).value


def test_steps_times_rate_carry_what_one_batch_taught_to_another():
    """A batch whose only trial was stopped is bounded by it where the product is known to be alike."""
    seen = [
        Trial(64, math.log(rate), math.log(examples))
        for rate, examples in ((0.1, 6_000), (0.2, 4_000), (0.3, 4_100))
    ]
    stopped = Trial(256, math.log(1.2), math.log(30_000), bounded=True)
    before, after = (fit_examples(trials, GROWTH_OF_SGD) for trials in (seen, [*seen, stopped]))
    assert after.best_rate(256).high < 0.8 * before.best_rate(256).high
    assert after.out_of == (64,)
    loose = fit_examples([*seen, stopped])
    assert loose.best_rate(256) == fit_examples(seen).best_rate(256).model_copy(update={"samples": 4})


def test_fewer_examples_at_another_batch_mean_a_higher_best_rate_there():
    seen = [Trial(64, math.log(rate), math.log(e)) for rate, e in ((0.1, 6_000), (0.2, 4_000), (0.6, 8_000))]
    few, many = (
        fit_examples([*seen, Trial(512, math.log(0.3), math.log(examples))], GROWTH_OF_SGD)
        for examples in (6_000, 25_000)
    )
    assert few.best_rate(512).value > 1.2 * many.best_rate(512).value


def test_bounds_say_where_the_best_rate_is_not():
    """Two rates reached the target; what is beyond them was stopped as it could not win."""
    seen = [Trial(64, math.log(0.1), 6.0), Trial(64, math.log(0.2), 6.05)]
    stopped = [Trial(64, math.log(0.4), 6.3, bounded=True), Trial(64, math.log(0.05), 6.3, bounded=True)]
    fit = fit_examples([*seen, *stopped])
    assert fit.bracketed == {64}
    found = fit.best_rate(64)
    assert 0.05 < found.value < 0.4
    alone = fit_examples(seen).best_rate(64)
    assert found.high / found.low < alone.high / alone.low


def test_a_rate_that_diverged_lies_above_the_best():
    seen = [Trial(64, math.log(rate), value) for rate, value in ((0.05, 6.5), (0.1, 6.2), (0.2, 6.0))]
    free = fit_examples(seen).best_rate(64)
    walled = fit_examples([*seen, Trial(64, math.log(0.4), math.nan)]).best_rate(64)
    assert walled.high < free.high


def test_one_batch_or_one_rate_identify_no_growth():
    one_batch = fit_losses(simulate(power, quadratic, 8, batches=(64,))[0])
    assert one_batch.exponent() is None
    assert not one_batch.identifiable
    assert "64" in one_batch.unidentified()[0]
    one_rate = fit_losses([Trial(batch, -3.0, 2.0) for batch in (64, 128, 256)])
    assert not one_rate.identifiable
    assert one_rate.saturates() is None
    found = one_rate.best_rate(128)
    assert found.high / found.low > 10


def test_the_same_trials_give_the_same_fit():
    trials, _ = simulate(sgd, valley, 9)
    assert fit_losses(trials).best_rate(128) == fit_losses(list(trials)).best_rate(128)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_is_known_where_everything_diverged(value):
    assert fit_losses([Trial(64, -3.0, value)]) is None
