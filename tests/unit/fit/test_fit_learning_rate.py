import math

import numpy as np
import pytest
from fit_records import trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.fit.learning_rate import BatchResult, batch_results, fit_learning_rates
from scaler.fit.optimizer import Optimizer
from scaler.records import ConfirmationRecord

SGD = Optimizer("SGD")
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


def test_all_trials_are_fitted_together():
    records = [
        *seeds(64, 0.1, 500, 520),
        *seeds(64, 0.3, 400, 410),
        *seeds(64, 0.9, 700, 690),
        *seeds(256, 0.2, 800),
        *seeds(256, 0.6, 600),
        *seeds(256, 1.8, 650, stop="limit"),
    ]
    fit = fit_learning_rates(records, SGD)
    assert fit.trials == len(records)
    assert fit.bracketed == {64, 256}
    assert 0.15 < fit.best_rate(64).value < 0.5
    assert fit.best_rate(64).value < fit.best_rate(256).value
    cut_short = trial(64, 0.3, 10, "deadline")
    assert fit_learning_rates([*records, cut_short], SGD).best_rate(64) == fit.best_rate(64)


def test_nothing_is_fitted_where_no_trial_reached_the_target():
    assert fit_learning_rates(seeds(64, 0.1, 500, 500, stop="limit"), SGD) is None
    assert fit_learning_rates(seeds(64, 0.1, 500, stop="diverged"), SGD) is None
    assert fit_learning_rates([], SGD) is None
