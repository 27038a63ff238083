"""Learning rates and examples to target of all trials together."""

import math

import numpy as np
import pytest
from fit_records import SEEN, trial

from scaler.fit.convergence import fit_convergence
from scaler.fit.optimizer import Optimizer, optimizer_of
from scaler.fit.rate_posterior import GROWTH_OF_ADAM, GROWTH_OF_SGD, USUAL_GROWTH
from scaler.records import WorkloadRecord

SGD = Optimizer("SGD")


def examples(batch, rate):
    """The best rate is 0.2 at 64, where 4,000 examples do, and grows as the square root."""
    u = math.log(rate / (0.2 * math.sqrt(batch / 64)))
    return 4_000 * math.sqrt(batch / 64) * math.exp(math.log(math.cosh(u)) + max(0.0, u) ** 2)


def trials(batches=(64, 256), rates=(0.07, 0.2, 0.6), seeds=2, spread=0.05):
    random = np.random.default_rng(0)
    return [
        trial(batch, float(f"{rate * math.sqrt(batch / 64):.4g}"), round(value), seed=seed)
        for batch in batches
        for rate in rates
        for seed in range(seeds)
        for value in [examples(batch, rate * math.sqrt(batch / 64)) * math.exp(spread * random.normal())]
    ]


def test_every_trial_counts_at_the_rate_that_was_chosen():
    fit = fit_convergence(trials(), SGD)
    assert list(fit.runs) == [64, 256]
    assert {fit.learning_rate(64), fit.learning_rate(256)} == {0.2, 0.4}
    for batch in (64, 256):
        assert len(fit.runs[batch].reached) >= 2
        found = fit.examples(batch)
        assert found.low < examples(batch, fit.learning_rate(batch)) < found.high
        assert found.value == pytest.approx(examples(batch, fit.learning_rate(batch)), rel=0.15)


def test_more_seeds_are_predicted_more_closely():
    fit = fit_convergence(trials(), SGD)
    one, many = fit.examples(64), fit.examples(64, n_seeds=100)
    assert one.high / one.low > many.high / many.low


def test_a_rate_with_more_seeds_is_kept_though_another_looks_a_little_better():
    few = trials(batches=(64,), rates=(0.07, 0.25, 0.6), seeds=1, spread=0.0)
    seeds = [trial(64, 0.17, 4_100, seed=seed) for seed in range(3)]
    fit = fit_convergence([*few, *seeds], SGD)
    assert fit.learning_rate(64) == 0.17
    assert fit.seeds[64][0.17] == 3


def test_an_untried_batch_gets_the_advised_rate():
    fit = fit_convergence(trials(), SGD)
    assert fit.learning_rate(128) == fit.rates.advised_rate(128)


def test_a_seed_that_was_stopped_says_that_the_batch_needs_more():
    runs = trials()
    stopped = trial(256, 0.4, 16_000, stop="limit", seed=7)
    with_it, without = (fit_convergence(records, SGD) for records in ([*runs, stopped], runs))
    assert 256 in with_it.runs and len(with_it.runs[256].censored) <= 1
    assert with_it.examples(256).high > without.examples(256).high


def test_one_batch_has_its_mean_and_no_interval():
    fit = fit_convergence(trials(batches=(64,)), SGD)
    assert fit.steps is None
    found = fit.examples(64)
    assert not found.is_identified
    assert found.samples == len(fit.runs[64].reached)


def test_nothing_is_fitted_where_no_trial_reached_the_target():
    assert fit_convergence([], SGD) is None
    assert (
        fit_convergence([trial(64, 0.1, 500, stop="limit"), trial(64, 9.0, 5, stop="diverged")], SGD) is None
    )


def test_many_batches_are_predicted_as_one_is():
    fit = fit_convergence(trials(), SGD)
    asked = [64, 100, 256, 1024]
    alone = [fit.examples(batch) for batch in asked]
    assert fit.examples_of(asked) == alone
    assert fit.typical_examples(asked) == pytest.approx(np.array([found.value for found in alone]))
    assert fit.typical_examples([100.5])[0] > 0


def test_draws_lie_around_what_is_predicted_of_the_batches_tried():
    fit = fit_convergence(trials(), SGD)
    drawn = fit.draw_examples([64, 256], 10_000, seed=1)
    for i, batch in enumerate((64, 256)):
        mean = fit.examples(batch, n_seeds=10**6)
        assert np.median(drawn[:, i]) == pytest.approx(mean.value, rel=0.02)
        assert np.quantile(drawn[:, i], [0.05, 0.95]) == pytest.approx(
            np.array([mean.low, mean.high]), rel=0.05
        )


def test_an_untried_batch_may_need_more_for_its_rate_was_not_tried():
    fit = fit_convergence(trials(), SGD)
    drawn = fit.draw_examples([128], 10_000, seed=1)[:, 0]
    bare = fit.steps.draw([128], 10_000, seed=1)[:, 0]
    assert (drawn >= bare).all()
    cost = fit.rates.cost(128, fit.learning_rate(128))
    assert cost.value <= np.mean(drawn / bare) <= cost.high


def test_draws_of_the_same_batch_are_the_same():
    fit = fit_convergence(trials(), SGD)
    drawn = fit.draw_examples([64, 128, 64, 128], 500, seed=4)
    assert drawn[:, 0] == pytest.approx(drawn[:, 2])
    assert drawn[:, 1] == pytest.approx(drawn[:, 3])
    assert np.array_equal(drawn, fit.draw_examples([64, 128, 64, 128], 500, seed=4))


def test_one_batch_alone_does_not_vary_and_says_nothing_of_others():
    fit = fit_convergence(trials(batches=(64,)), SGD)
    mean = fit.examples(64).value
    assert fit.examples_of([64])[0].value == mean
    assert (fit.draw_examples([64, 64], 10) == mean).all()
    assert fit.typical_examples([64, 128]) == pytest.approx(np.array([mean, np.nan]), nan_ok=True)


@pytest.mark.parametrize(
    ("name", "betas", "growth"),
    [
        ("SGD", (), GROWTH_OF_SGD),
        ("AdamW", (0.9, 0.999), GROWTH_OF_ADAM),
        ("Adagrad", (), USUAL_GROWTH),
        ("", (), USUAL_GROWTH),
    ],
)
def test_what_is_believed_of_growth_follows_from_the_optimizer(name, betas, growth):
    record = WorkloadRecord(
        **SEEN,
        name="w",
        optimizer=name,
        betas=betas,
        reference_global_batch=64,
        reference_learning_rate=0.1,
        reference_warmup_examples=0,
        target_value=0.9,
        target_direction="max",
        batch_statistics=(),
        train_examples=1_000,
        eval_examples=100,
        parameters=10,
    )
    assert optimizer_of([trial(64, 0.1, 500), record]) == Optimizer(name, betas)
    assert optimizer_of([record]).growth == growth
    assert optimizer_of([]) == Optimizer("")
