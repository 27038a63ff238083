import numpy as np
import pytest
from fit_records import covers_90_percent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from scaler.fit.steps import BatchRuns, fit_batch_runs

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)

BATCHES = (32, 64, 128, 256, 512, 1024)
MIN_EXAMPLES, CRITICAL = 50_000.0, 300.0


def hyperbola(batch: float, critical: float = CRITICAL) -> float:
    return MIN_EXAMPLES * (1 + batch / critical)


def flat(batch: float) -> float:
    return MIN_EXAMPLES


def linear(batch: float) -> float:
    return 40.0 * batch


def measured(curve=hyperbola, seed=0, spread=0.06, seeds=2, batches=BATCHES):
    """Seeds differ by a log-normal factor."""
    generator = np.random.default_rng(seed)
    return [
        BatchRuns(b, tuple(np.round(curve(b) * np.exp(spread * generator.normal(size=seeds)))))
        for b in batches
    ]


def exactly(curve, batches=BATCHES, seeds=3):
    return fit_batch_runs([BatchRuns(batch, (curve(batch),) * seeds) for batch in batches])


@quiet
@given(st.floats(1e-3, 1e9), st.floats(64, 512))
def test_the_hyperbola_is_recovered_in_any_unit(smallest, critical):
    fit = exactly(lambda batch: smallest * (1 + batch / critical))
    assert fit.identifiable
    assert fit.critical_batch().value == pytest.approx(critical, rel=0.25)
    for batch in (32, 200, 1000):
        assert fit.examples(batch).value == pytest.approx(smallest * (1 + batch / critical), rel=0.03)
    assert fit.examples(4096).value == pytest.approx(smallest * (1 + 4096 / critical), rel=0.15)


@pytest.mark.parametrize(("global_batch", "n_seeds"), [(256, 1), (32, 1), (2048, 1), (256, 4)])
def test_the_interval_covers_the_mean_of_fresh_runs(global_batch, n_seeds):
    hits, repeats = 0, 100
    for seed in range(repeats):
        estimate = fit_batch_runs(measured(seed=[seed, 1])).examples(global_batch, n_seeds)
        fresh = hyperbola(global_batch) * np.exp(0.06 * np.random.default_rng([seed, 2]).normal(size=n_seeds))
        hits += estimate.low <= fresh.mean() <= estimate.high
    assert hits >= 0.83 * repeats
    assert estimate.high / estimate.low < 2


@pytest.mark.parametrize("critical", [100.0, 300.0, 1000.0])
def test_the_interval_holds_the_critical_batch(critical):
    found = [
        fit_batch_runs(measured(lambda b: hyperbola(b, critical), [seed, 5])).critical_batch()
        for seed in range(60)
    ]
    identified = [estimate for estimate in found if estimate is not None]
    assert len(identified) > 50
    hits = sum(estimate.low <= critical <= estimate.high for estimate in identified)
    assert hits >= 0.85 * len(identified)
    assert np.median([estimate.value for estimate in identified]) == pytest.approx(critical, rel=0.15)


@pytest.mark.parametrize("curve", [flat, linear])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_curve_that_has_not_bent_has_no_critical_batch(curve, seeds):
    fit = fit_batch_runs(measured(curve, spread=0.0, seeds=seeds))
    assert not fit.identifiable
    assert fit.critical_batch() is None
    assert fit.examples(256).value == pytest.approx(curve(256), rel=0.02)


@pytest.mark.parametrize("curve", [flat, linear])
@pytest.mark.parametrize("spread", [0.001, 0.02, 0.1])
def test_seed_noise_seldom_passes_for_a_bend(curve, spread):
    repeats = 60
    false = sum(fit_batch_runs(measured(curve, [seed, 6], spread)).identifiable for seed in range(repeats))
    assert stats.binomtest(false, repeats).proportion_ci(0.95).low <= 0.10


def test_a_curve_known_below_its_bend_says_little_above_it():
    fit = exactly(lambda batch: hyperbola(batch, 1e5))
    far = fit.examples(30_000)
    assert not fit.identifiable
    assert far.low < 1.2 * MIN_EXAMPLES and far.high > 4 * MIN_EXAMPLES


def test_richer_shapes_where_the_data_earn_them():
    sharp = exactly(lambda b: MIN_EXAMPLES * (1 + (b / CRITICAL) ** 4) ** 0.25, seeds=10)
    valley = exactly(lambda b: hyperbola(b) * (1 + 40 / b), (16, 32, 64, 128, 256, 512, 1024), seeds=10)
    assert "^4)" in sharp.model and "B_low" not in sharp.model
    assert "B_low" in valley.model
    assert valley.examples(16).value > 1.8 * valley.examples(64).value
    assert valley.examples(1024).value > 1.8 * valley.examples(64).value


def test_more_seeds_narrow_the_interval_down_to_what_is_not_noise():
    fit = fit_batch_runs(measured())
    widths = [estimate.high / estimate.low for estimate in (fit.examples(256, n) for n in (1, 2, 8, 100))]
    assert widths == sorted(widths, reverse=True)
    assert np.log(widths[0]) > 1.5 * np.log(widths[-1])
    assert widths[-1] > 1.01
    assert len({fit.examples(256, n).value for n in (1, 8)}) == 1


@quiet
@given(st.integers(0, 10**6), st.sampled_from([1, 3]))
def test_the_interval_widens_away_from_what_was_measured(seed, seeds):
    fit = fit_batch_runs(measured(seed=seed, batches=(32, 64, 128), seeds=seeds))
    estimates = [fit.examples(batch) for batch in (128, 512, 4096)]
    widths = [estimate.high / estimate.low for estimate in estimates]
    assert widths == sorted(widths)
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in estimates)


def test_two_runs_have_a_wide_interval_and_no_critical_batch():
    fit = fit_batch_runs([BatchRuns(32, (hyperbola(32),)), BatchRuns(512, (hyperbola(512),))])
    assert fit.examples(32).value == pytest.approx(hyperbola(32), rel=0.05)
    between = fit.examples(128)
    assert between.high / between.low > 1.4
    assert fit.critical_batch() is None


@pytest.mark.parametrize("examples", [1, 2, 10**12])
def test_counts_of_any_size_are_fitted(examples):
    fit = fit_batch_runs([BatchRuns(b, (examples, examples)) for b in (32, 64, 128)])
    assert fit.examples(64).value == pytest.approx(examples, rel=0.01)


@pytest.mark.parametrize(("batch", "far"), [(7, True), (8, False), (4096, False), (4097, True)])
def test_beyond_four_times_what_was_measured_is_extrapolated(batch, far):
    assert fit_batch_runs(measured()).is_extrapolated(batch) is far


# Counts in quanta


def test_counts_in_epochs_are_less_sure_than_they_agree():
    even = exactly({32: 4, 64: 4, 128: 4, 256: 4, 512: 5, 1024: 7}.get)
    assert even.quantum == 1
    assert exactly({32: 4, 64: 4.003, 128: 4, 256: 4, 512: 5, 1024: 7}.get).quantum == 0
    assert exactly(lambda batch: 4000.0 + batch % 7).quantum == 0  # too fine to matter
    assert exactly(lambda batch: 40 if batch < 1024 else 50).quantum == 0  # two values are no pattern
    width = [fit.examples(64).high / fit.examples(64).low for fit in (even, exactly(lambda b: 4 + b / 5e3))]
    assert width[0] > 1.1 * width[1]


# Runs that did not reach the target


def censored(limit, reached=(), batch=1024):
    known = [BatchRuns(b, tuple(hyperbola(b) * f for f in (0.97, 1.03))) for b in BATCHES if b < batch]
    return fit_batch_runs([*known, BatchRuns(batch, tuple(reached), tuple(limit))])


def test_a_run_that_was_cut_short_says_next_to_nothing():
    without = fit_batch_runs(
        [BatchRuns(b, tuple(hyperbola(b) * f for f in (0.97, 1.03))) for b in BATCHES[:-1]]
    )
    fit = censored([0.3 * hyperbola(1024)])
    assert fit.examples(1024).value == pytest.approx(without.examples(1024).value, rel=0.05)


def test_a_run_that_got_far_without_arriving_moves_the_curve_up():
    far = 2 * hyperbola(1024)
    fit, early = censored([far, far]), censored([0.3 * far])
    assert fit.examples(1024).value > 1.2 * early.examples(1024).value
    assert fit.examples(1024).high > far
    assert fit.examples(64).value == pytest.approx(hyperbola(64), rel=0.05)


def test_censored_runs_beside_others_count_as_longer_ones():
    truth = hyperbola(1024)
    all_reached = censored([], [truth, 1.02 * truth, 0.98 * truth])
    one_cut = censored([1.1 * truth], [truth, 0.98 * truth])
    as_if_arrived = censored([], [truth, 0.98 * truth, 1.1 * truth])
    assert one_cut.examples(1024).value > all_reached.examples(1024).value
    assert one_cut.examples(1024).value >= 0.99 * as_if_arrived.examples(1024).value
    assert one_cut.samples == all_reached.samples - 1


def test_coverage_with_runs_cut_at_a_limit():
    hits, repeats = 0, 60
    for seed in range(repeats):
        draw = np.random.default_rng([seed, 9])
        runs = []
        for batch in BATCHES:
            ends = hyperbola(batch) * np.exp(0.06 * draw.normal(size=3))
            limit = 1.03 * hyperbola(batch)  # cuts about a third
            runs.append(
                BatchRuns(
                    batch, tuple(e for e in ends if e <= limit), tuple(limit for e in ends if e > limit)
                )
            )
        estimate = fit_batch_runs(runs).examples(512)
        hits += estimate.low <= hyperbola(512) * np.exp(0.06 * draw.normal()) <= estimate.high
    assert covers_90_percent(hits, repeats) or hits / repeats > 0.9


# Draws


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("curve", [hyperbola, flat, linear])
def test_draws_agree_with_the_interval_of_the_mean_of_very_many_runs(curve, seeds):
    fit = fit_batch_runs(measured(curve, seeds=seeds))
    batches = [32, 128, 300, 1024, 4096]
    drawn = np.log(fit.draw(batches, 20_000, seed=1))
    for i, estimate in enumerate(fit.examples_at(batches, [10**6] * len(batches))):
        low, middle, high = np.quantile(drawn[:, i], [0.05, 0.5, 0.95])
        width = np.log(estimate.high / estimate.low)
        assert middle == pytest.approx(np.log(estimate.value), abs=0.06 * width)
        assert low == pytest.approx(np.log(estimate.low), abs=0.06 * width)
        assert high == pytest.approx(np.log(estimate.high), abs=0.06 * width)


def test_draws_of_the_same_batch_are_the_same_and_of_near_ones_alike():
    fit = fit_batch_runs(measured())
    drawn = np.log(fit.draw([256, 256, 300, 4096], 4000, seed=2))
    assert drawn[:, 0] == pytest.approx(drawn[:, 1], abs=1e-6)
    together = np.corrcoef(drawn.T)
    assert together[0, 2] > together[0, 3]


def test_the_same_seed_gives_the_same_draws_and_another_gives_others():
    fit = fit_batch_runs(measured())
    first, again, other = (fit.draw([64, 512], 100, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (100, 2) and (first > 0).all()
