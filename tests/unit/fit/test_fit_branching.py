"""Which batch loses, on branches whose losses follow a known law."""

import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.fit.branching import fit_branching
from scaler.records import BranchRecord, Environment

BATCH, POINTS = 64, 32
quiet = settings(deadline=None, max_examples=25)


def branch(growth: int, seed: int, losses, examples: int, **fields) -> BranchRecord:
    base = {
        "task": f"b{growth}-{seed}-{fields.get('learning_rate', 0)}",
        "seed": seed,
        "taken_at": datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC),
        "environment": Environment(device="cpu", world_size=1, machine="m", cpu_count=1, versions={}),
        "plan": BatchPlan.equal(growth * BATCH, 1, 1),
        "reference_batch": BATCH,
        "learning_rate": 0.1 * growth**0.5,
        "rate_rule": "square root",
        "start_examples": 10_000,
        "examples": examples,
        "points": POINTS,
        "losses": tuple(losses),
        "held_out_examples": 100,
        "held_out_loss": losses[-1],
    }
    return BranchRecord(**base | fields)


def falling(examples):
    """A loss that falls, steeply at first."""
    return 0.5 + 1.5 / (1 + np.asarray(examples) / 4000)


def study(growths, slower, noise=0.0, seeds=3, generator_seed=0, law=falling):
    """Branches that go through `law` `slower(growth)` times slower; losses are taken before their steps."""
    generator = np.random.default_rng(generator_seed)
    examples = POINTS * max(growths) * BATCH
    part = examples / POINTS
    orders = noise * generator.normal(size=(seeds, POINTS))  # the same examples: the same luck
    found = []
    for growth in growths:
        taken = part * np.arange(POINTS) + (part - growth * BATCH) / 2
        for seed in range(seeds):
            own = noise / 2 * generator.normal(size=POINTS)
            losses = law(taken / slower(growth)) + orders[seed] + own
            end = float(law(np.array([examples / slower(growth)]))[0])
            held_out = end + noise * generator.normal() / 4
            found.append(branch(growth, seed + 1, tuple(losses), examples, held_out_loss=held_out))
    return found


def hyperbola(critical: float):
    return lambda growth: (critical + growth * BATCH) / (critical + BATCH)


def verdicts(fit):
    return {r.global_batch // BATCH: r.verdict for r in fit.results}


@pytest.mark.parametrize("critical", [150.0, 600.0, 2_000.0])
def test_the_true_critical_batch_is_found_and_lies_in_its_interval(critical):
    held, values = 0, []
    for seed in range(8):
        fit = fit_branching(study([1, 2, 4, 8, 16], hyperbola(critical), noise=0.02, generator_seed=seed))
        estimate = fit.critical_batch
        assert estimate is not None
        held += 0.97 * estimate.low <= critical <= 1.03 * estimate.high  # parts of the curve are means
        values.append(estimate.value)
    assert held >= 6
    assert np.median(values) == pytest.approx(critical, rel=0.15)


def test_without_noise_what_needs_a_quarter_more_examples_is_the_border():
    fit = fit_branching(study([1, 2, 4, 8], {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}.get))
    assert verdicts(fit) == {1: "reference", 2: "does not lose", 4: "does not lose", 8: "loses"}
    assert fit.best.global_batch == 4 * BATCH
    assert fit.losing.global_batch == 8 * BATCH
    slowdowns = [r.slowdown.value for r in fit.results[1:]]
    assert slowdowns == pytest.approx([1.1, 1.2, 1.3], rel=0.03)


def test_larger_steps_take_their_losses_earlier_and_are_not_blamed_for_it():
    """Nobody is slower, but the mean loss of large steps is that of networks which saw fewer examples."""
    steep = study([1, 2, 4, 8, 16, 32], lambda _: 1.0, law=lambda e: np.exp(-e / 20_000))
    fit = fit_branching(steep)
    assert all(r.slowdown.value == pytest.approx(1.0, abs=0.02) for r in fit.results[1:])
    assert fit.best.global_batch == 32 * BATCH and fit.losing is None
    assert fit.critical_batch is None


def test_where_no_batch_loses_the_critical_batch_has_only_a_lower_end():
    fit = fit_branching(study([1, 2, 4, 8], lambda _: 1.0, noise=0.01))
    assert fit.critical_batch is None
    assert fit.critical_at_least > 8 * BATCH


def test_the_same_examples_in_every_branch_cancel_the_luck_of_their_order():
    """Orders differ by more than the batches do."""
    fit = fit_branching(study([1, 2, 4], {1: 1.0, 2: 1.0, 4: 3.0}.get, noise=0.05))
    assert verdicts(fit) == {1: "reference", 2: "does not lose", 4: "loses"}


def test_noise_that_hides_the_difference_is_undecided_and_the_reference_is_kept():
    records = study([1, 2], lambda _: 1.1, noise=0.0)
    luck = np.random.default_rng(1)
    noisy = [
        r.model_copy(update={"losses": tuple(np.array(r.losses) + luck.normal())})
        if r.plan.global_batch > BATCH
        else r
        for r in records
    ]
    fit = fit_branching(noisy)
    assert verdicts(fit)[2] == "undecided"
    assert fit.best.verdict == "reference"
    assert fit.critical_batch is None


def test_one_data_order_decides_nothing():
    fit = fit_branching(study([1, 2, 4], hyperbola(600), seeds=1))
    assert set(verdicts(fit).values()) == {"reference", "undecided"}
    assert fit.results[1].difference.low is None


def test_a_plateau_leaves_no_slowdown_to_read_off():
    fit = fit_branching(study([1, 2, 4], hyperbola(100), noise=0.001, law=lambda e: np.ones(len(e))))
    assert all(r.slowdown is None for r in fit.results)
    assert fit.losing is None
    assert fit.critical_batch is None


def test_a_branch_that_diverged_loses_and_blames_its_rate_only():
    good = study([1, 2, 4], lambda _: 1.0, noise=0.005)
    (first, *rest) = [r for r in good if r.plan.global_batch == 4 * BATCH]
    cut = first.model_copy(update={"losses": (*first.losses[:3], None), "held_out_loss": None})
    others = [r for r in good if r.plan.global_batch < 4 * BATCH]
    fit = fit_branching([*others, cut, *rest])
    assert verdicts(fit) == {1: "reference", 2: "does not lose", 4: "loses"}
    assert fit.results[-1].loss is None and fit.results[-1].difference is None
    assert fit.critical_batch is None  # the others say that it is not small, and this one nothing


def test_of_two_rates_the_better_counts():
    linear = [
        r.model_copy(update={"learning_rate": 0.2, "rate_rule": "linear"})
        for r in study([1, 2], lambda _: 1.0)
        if r.plan.global_batch > BATCH
    ]
    fit = fit_branching([*study([1, 2], {1: 1.0, 2: 2.0}.get), *linear])
    assert (fit.best.global_batch, fit.best.rate_rule, fit.best.learning_rate) == (2 * BATCH, "linear", 0.2)


def test_a_held_out_loss_that_is_surely_worse_loses_whatever_the_training_loss():
    found = [
        r.model_copy(update={"held_out_loss": 0.5 + 0.01 * r.seed + 0.3 * (r.plan.global_batch > 2 * BATCH)})
        for r in study([1, 2, 4], lambda _: 1.0, noise=0.001)
    ]
    fit = fit_branching(found)
    assert verdicts(fit) == {1: "reference", 2: "does not lose", 4: "loses"}
    assert fit.critical_at_least is None  # the training losses alone would say: more than what loses


def test_of_two_lengths_those_of_the_largest_batch_count():
    short, long = study([1, 2], hyperbola(600)), study([1, 2, 4], hyperbola(600))
    assert fit_branching([*short, *long]) == fit_branching(long)
    assert fit_branching(short).examples == POINTS * 2 * BATCH


@pytest.mark.parametrize("growths", [[], [1], [2, 4]])
def test_without_the_reference_and_another_there_is_nothing_to_compare(growths):
    records = study(growths, lambda _: 1.0) if growths else []
    assert fit_branching(records) is None


@quiet
@given(
    st.lists(st.floats(1.0, 4.0), min_size=1, max_size=4),
    st.floats(0.0, 0.1),
    st.integers(0, 100),
    st.integers(2, 4),
)
def test_whatever_the_branches_the_best_lies_below_the_first_that_loses(slower, noise, seed, seeds):
    growths = [2**i for i in range(len(slower) + 1)]
    times = dict(zip(growths, [1.0, *slower], strict=True))
    fit = fit_branching(study(growths, times.get, noise, seeds, seed))
    assert [r.global_batch for r in fit.results] == [g * BATCH for g in growths]
    assert fit.losing is None or fit.best.global_batch < fit.losing.global_batch
    assert fit.best.verdict in ("reference", "does not lose")
    assert fit.tolerance >= 0
    for r in fit.results[1:]:
        assert r.difference.low <= r.difference.value <= r.difference.high
        if r.slowdown is not None and r.slowdown.is_identified:
            assert 0.5 <= r.slowdown.low <= r.slowdown.value <= r.slowdown.high
    if fit.critical_batch is not None:
        assert fit.critical_batch.low <= fit.critical_batch.value <= fit.critical_batch.high
        assert fit.critical_at_least is None
