import math

import numpy as np
import pytest
from fit_records import result, trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.fit.learning_rate import BatchResult, batch_results, rate_exponent
from scaler.records import ConfirmationRecord

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def seeds(batch, rate, *examples, stop="reached"):
    return [trial(batch, rate, e, stop, seed) for seed, e in enumerate(examples)]


def test_the_rate_with_the_fewest_mean_examples_is_best():
    records = [*seeds(64, 0.3, 500, 100), *seeds(64, 0.1, 200, 300), *seeds(64, 0.03, 290, 290)]
    found = batch_results(records)[64]
    assert found == BatchResult(global_batch=64, rates=(0.03, 0.1, 0.3), best_rate=0.1, examples=(200, 300))
    assert found.mean_examples == 250


def test_batches_are_told_apart_and_ascend():
    records = [*seeds(256, 0.2, 800), *seeds(32, 0.05, 400), *seeds(64, 0.1, 500)]
    found = batch_results(records)
    assert list(found) == [32, 64, 256]
    assert [r.best_rate for r in found.values()] == [0.05, 0.1, 0.2]


@quiet
@given(
    st.dictionaries(
        st.floats(1e-4, 1e2),
        st.lists(st.integers(1, 10**6), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_no_rate_beats_the_best(examples):
    records = [record for rate, each in examples.items() for record in seeds(64, rate, *each)]
    found = batch_results(records)[64]
    assert found.rates == tuple(sorted(examples))
    assert found.mean_examples == pytest.approx(min(np.mean(each) for each in examples.values()))
    assert found.examples == tuple(examples[found.best_rate])


@pytest.mark.parametrize("stop", ["limit", "diverged"])
def test_one_censored_seed_excludes_its_rate(stop):
    records = [*seeds(64, 0.1, 900, 900), *seeds(64, 0.3, 100), trial(64, 0.3, 150, stop, seed=1)]
    found = batch_results(records)[64]
    assert found.best_rate == 0.1
    assert found.rates == (0.1, 0.3)


def test_a_batch_that_never_reached_the_target_has_no_best_rate():
    found = batch_results([*seeds(64, 0.1, 900, stop="limit"), *seeds(64, 0.3, 900, stop="diverged")])[64]
    assert found.best_rate is None
    assert found.examples == ()
    assert found.mean_examples == math.inf
    assert found.edge() == 0


def test_a_trial_that_the_deadline_cut_short_says_nothing():
    assert batch_results(seeds(64, 0.1, 900, stop="deadline")) == {}
    cut = trial(64, 0.1, 10, "deadline", seed=2)
    assert batch_results([*seeds(64, 0.1, 500, 500), cut])[64].examples == (500, 500)


def test_a_rate_with_fewer_seeds_than_others_is_not_compared():
    records = [*seeds(64, 0.3, 100), *seeds(64, 0.1, 500, 500)]
    assert batch_results(records)[64].best_rate == 0.1


def test_a_confirmation_is_not_a_trial():
    run = trial(64, 0.1, 100, seed=1_000_000).model_dump()
    confirmation = ConfirmationRecord(**run | {"kind": "confirmation", "step_times_s": (0.1,)})
    assert batch_results([confirmation]) == {}
    assert batch_results([*seeds(64, 0.1, 500), confirmation])[64].examples == (500,)


@pytest.mark.parametrize(
    ("rates", "best", "edge"),
    [
        ((0.1, 0.3, 1.0), 0.1, -1),
        ((0.1, 0.3, 1.0), 0.3, 0),
        ((0.1, 0.3, 1.0), 1.0, 1),
        ((0.1, 0.3), 0.3, 1),
        ((0.1,), 0.1, 0),
        ((0.1, 0.3), None, 0),
    ],
)
def test_the_edge_of_the_grid_is_named(rates, best, edge):
    examples = (100,) if best is not None else ()
    assert BatchResult(global_batch=64, rates=rates, best_rate=best, examples=examples).edge() == edge


@pytest.mark.parametrize("exponent", [0.5, 1.0, -0.25])
def test_the_exponent_is_recovered(exponent):
    results = [result(b, [100], 0.05 * (b / 32) ** exponent) for b in (32, 64, 128, 256, 512)]
    estimate = rate_exponent(results)
    assert estimate.value == pytest.approx(exponent)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.samples == 5


def test_the_exponent_is_recovered_from_rates_on_a_grid():
    grid = 0.01 * 3.0 ** np.arange(8)
    batches = [2**k for k in range(4, 13)]
    best = [float(grid[np.abs(np.log(grid / (0.01 * (b / 16) ** 0.7))).argmin()]) for b in batches]
    estimate = rate_exponent(result(b, [100], r) for b, r in zip(batches, best, strict=True))
    assert estimate.low < 0.7 < estimate.high
    assert estimate.value == pytest.approx(0.7, abs=0.15)


def test_one_best_rate_for_all_batches_has_the_exponent_nought():
    estimate = rate_exponent(result(b, [100], 0.1) for b in (32, 64, 128, 256))
    assert estimate.value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_the_interval_of_the_exponent_is_as_wide_as_the_grid(exponent):
    batches = (32, 64, 128, 256)
    fine, coarse = (
        rate_exponent(result(b, [100], 0.1 * b**exponent, spacing) for b in batches) for spacing in (1.2, 3.0)
    )
    # The best rates may each lie half a step beside those tried, over an 8-fold range of batches.
    assert coarse.high - coarse.low > 0.5 * math.log(3) / math.log(8)
    assert 0 < fine.high - fine.low < coarse.high - coarse.low


def test_batches_without_a_best_rate_do_not_count():
    reached = [result(b, [100], 0.001 * b) for b in (32, 64, 128)]
    missed = [result(4096, []), result(8192, [])]
    assert rate_exponent([*reached, *missed]).samples == 3
    assert rate_exponent([*reached[:2], *missed]) is None
    assert rate_exponent([]) is None
