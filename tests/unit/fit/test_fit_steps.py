import numpy as np
import pytest
from fit_records import covers_90_percent, result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from scaler.fit.steps import fit_steps

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)

BATCHES = (32, 64, 128, 256, 512, 1024)
MIN_EXAMPLES, CRITICAL = 50_000.0, 300.0


def hyperbola(batch: float, critical: float = CRITICAL) -> float:
    return MIN_EXAMPLES * (1 + batch / critical)


def flat(batch: float) -> float:
    return MIN_EXAMPLES


def linear(batch: float) -> float:
    return 40.0 * batch


def measured(curve=hyperbola, seed=0, spread=0.1, seeds=2, batches=BATCHES):
    """Seeds differ by a log-normal factor."""
    generator = np.random.default_rng(seed)
    return [result(b, curve(b) * np.exp(spread * generator.normal(size=seeds))) for b in batches]


@quiet
@given(st.floats(3e3, 1e8), st.floats(32, 1024))
def test_the_hyperbola_is_recovered(smallest, critical):
    fit = fit_steps(result(b, [smallest * (1 + b / critical)]) for b in BATCHES)
    assert np.exp(fit.log_min_examples) == pytest.approx(smallest, rel=0.01)
    assert np.exp(fit.log_critical_batch) == pytest.approx(critical, rel=0.02)
    assert fit.identifiable
    assert fit.critical_batch().value == pytest.approx(critical, rel=0.02)
    for batch in (16, 200, 4096):
        assert fit.examples(batch).value == pytest.approx(smallest * (1 + batch / critical), rel=0.02)


@pytest.mark.parametrize(("global_batch", "n_seeds"), [(256, 1), (32, 1), (2048, 1), (256, 4)])
def test_the_interval_covers_the_mean_of_fresh_runs(global_batch, n_seeds):
    hits, repeats = 0, 150
    for seed in range(repeats):
        estimate = fit_steps(measured(seed=[seed, 1])).examples(global_batch, n_seeds)
        fresh = hyperbola(global_batch) * np.exp(0.1 * np.random.default_rng([seed, 2]).normal(size=n_seeds))
        hits += estimate.low <= fresh.mean() <= estimate.high
    assert covers_90_percent(hits, repeats)


@pytest.mark.parametrize("critical", [100.0, 300.0, 1000.0])
def test_the_interval_covers_the_critical_batch(critical):
    hits, found = 0, 0
    for seed in range(150):
        estimate = fit_steps(measured(lambda b: hyperbola(b, critical), [seed, 5])).critical_batch()
        if estimate is not None:
            found += 1
            hits += estimate.low <= critical <= estimate.high
    assert found > 120
    assert covers_90_percent(hits, found)


@pytest.mark.parametrize("curve", [flat, linear])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_curve_that_has_not_bent_has_no_critical_batch(curve, seeds):
    fit = fit_steps(measured(curve, spread=0.0, seeds=seeds))
    assert not fit.identifiable
    assert fit.critical_batch() is None
    assert fit.examples(256).value == pytest.approx(curve(256), rel=0.01)


@pytest.mark.parametrize("curve", [flat, linear])
@pytest.mark.parametrize("spread", [0.001, 0.02, 0.1])
def test_seed_noise_seldom_passes_for_a_bend(curve, spread):
    repeats = 120
    false = sum(fit_steps(measured(curve, [seed, 6], spread)).identifiable for seed in range(repeats))
    assert stats.binomtest(false, repeats).proportion_ci(0.95).low <= 0.10


def test_more_seeds_narrow_the_interval():
    fit = fit_steps(measured())
    widths = [estimate.high / estimate.low for estimate in (fit.examples(256, n) for n in (1, 2, 8, 100))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1.2 * widths[-1]
    assert widths[-1] > 1
    assert len({fit.examples(256, n).value for n in (1, 8)}) == 1


def test_the_interval_widens_away_from_what_was_measured():
    fit = fit_steps(measured(batches=(32, 64, 128), seeds=3))
    widths = [e.high / e.low for e in (fit.examples(64), fit.examples(512))]
    assert widths[1] > widths[0]


@pytest.mark.parametrize(
    "results", [[], [result(64, [500, 520])], [result(64, [500, 520]), result(128, []), result(256, [])]]
)
def test_under_two_batches_that_reached_the_target_there_is_no_fit(results):
    assert fit_steps(results) is None


def test_two_runs_have_no_interval_and_no_critical_batch():
    fit = fit_steps([result(32, [hyperbola(32)]), result(512, [hyperbola(512)])])
    assert fit.examples(32).value == pytest.approx(hyperbola(32), rel=0.01)
    assert not fit.examples(128).is_identified
    assert not fit.identifiable
    assert fit.critical_batch() is None


def test_batches_that_missed_the_target_are_left_out():
    reached = measured()
    assert fit_steps([*reached, result(4096, [])]) == fit_steps(reached)
    assert fit_steps(reached).largest_batch == 1024
    assert fit_steps(reached).samples == 12


@pytest.mark.parametrize("examples", [1, 2, 10**12])
def test_counts_of_any_size_are_fitted(examples):
    fit = fit_steps(result(b, [examples, examples]) for b in (32, 64, 128))
    assert fit.examples(64).value == pytest.approx(examples, rel=0.01)


@pytest.mark.parametrize(("batch", "far"), [(7, True), (8, False), (4096, False), (4097, True)])
def test_beyond_four_times_what_was_measured_is_extrapolated(batch, far):
    assert fit_steps(measured()).is_extrapolated(batch) is far
