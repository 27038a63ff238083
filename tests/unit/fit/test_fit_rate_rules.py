import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rate_truths import power, simulate, valley

from scaler.fit.rate_fit import fit_examples
from scaler.fit.rate_rules import Optimizer, rate_rules

SGD, ADAM, UNKNOWN = Optimizer("SGD"), Optimizer("AdamW", (0.9, 0.999)), Optimizer("")
BATCHES = (32, 64, 256, 512)
FIT = fit_examples(simulate(power, valley, 1, deviation=0.0)[0])


def said(optimizer=SGD, noise_scale=100.0, batches=BATCHES, reference=(64, 0.05)):
    """(rule, origin) -> what it says, batch by batch."""
    rules = rate_rules(FIT, batches, reference, optimizer, noise_scale)
    return {(rule.rule, rule.origin): rule for rule in rules}


def rates(rule):
    return [ruled.learning_rate for ruled in rule.rates]


def test_every_rule_starts_at_the_reference_and_at_the_measured_best():
    rules = said()
    assert {name for name, _ in rules} == {
        "linear", "square root", "AdaScale", "Adam square root", "token half-life"
    }  # fmt: skip
    for (_, origin), rule in rules.items():
        expected = 0.05 if origin == "reference" else FIT.best_rate(64).value
        assert (rule.from_batch, rule.from_rate) == (64, expected)
        assert [ruled.global_batch for ruled in rule.rates] == list(BATCHES)


@given(st.floats(1e-6, 10), st.integers(1, 4096))
def test_linear_and_square_root_are_powers_of_the_batch(rate, batch):
    rules = said(batches=(batch,), reference=(64, rate))
    assert rates(rules["linear", "reference"]) == pytest.approx([rate * batch / 64])
    assert rates(rules["square root", "reference"]) == pytest.approx([rate * math.sqrt(batch / 64)])


def test_adascale_goes_from_linear_to_no_growth_with_the_noise():
    noisy = rates(said(noise_scale=1e9)["AdaScale", "reference"])
    quiet = rates(said(noise_scale=1e-9)["AdaScale", "reference"])
    assert noisy[1:] == pytest.approx([0.05, 0.2, 0.4], rel=1e-4)
    assert quiet[1:] == pytest.approx([0.05, 0.05, 0.05], rel=1e-4)
    # s2 / |g|^2 = 128 / 64 = 2, S = 4: (2 + 1) / (2 / 4 + 1) = 2
    assert rates(said(noise_scale=128.0)["AdaScale", "reference"])[2] == pytest.approx(0.1)


def test_adascale_outside_its_domain_is_not_applicable():
    assert said()["AdaScale", "reference"].rates[0].not_applicable == "for larger batches only"
    assert "noise scale" in said(noise_scale=None)["AdaScale", "reference"].rates[2].not_applicable
    assert all("not AdamW" in ruled.not_applicable for ruled in said(ADAM)["AdaScale", "reference"].rates)


def test_adams_square_root_takes_the_betas_along():
    rule = said(ADAM)["Adam square root", "reference"]
    four = rule.rates[2]
    assert four.learning_rate == pytest.approx(0.1)
    assert four.betas == pytest.approx((0.6, 0.996))


@pytest.mark.parametrize(
    ("optimizer", "batch", "reason"),
    [
        (SGD, 256, "not SGD"),
        (UNKNOWN, 256, "not recorded"),
        (ADAM, 640, "factor of 10"),
        (ADAM, 6, "factor of 10"),
        (Optimizer("Adam", (0.8, 0.999)), 320, "beta"),  # 5 x 0.2 = 1
    ],
)
def test_adams_square_root_outside_its_domain_is_not_applicable(optimizer, batch, reason):
    (ruled,) = said(optimizer, batches=(batch,))["Adam square root", "reference"].rates
    assert reason in ruled.not_applicable
    assert (ruled.learning_rate, ruled.inside, ruled.cost) == (None, None, None)


def test_adams_square_root_holds_just_below_ten_times_the_batch():
    (ruled,) = said(Optimizer("Adam", (0.95, 0.999)), batches=(639,))["Adam square root", "reference"].rates
    assert ruled.not_applicable is None


def test_the_token_half_life_keeps_the_rate_and_the_half_life_in_examples():
    rule = said(ADAM)["token half-life", "reference"]
    assert rates(rule) == [0.05] * 4
    for ruled in rule.rates:
        half_life = math.log(0.5) / math.log(ruled.betas[1]) * ruled.global_batch
        assert half_life == pytest.approx(math.log(0.5) / math.log(0.999) * 64)
    assert all(ruled.not_applicable for ruled in said(SGD)["token half-life", "reference"].rates)


def test_what_a_rule_costs_is_the_measured_curve():
    """The truth grows as batch^0.6: from its best at 64, square root stays near it and linear does not."""
    rules = said()
    root, linear = (rules[name, "measured best"].rates[-1] for name in ("square root", "linear"))
    assert root.cost.value < 1.1
    assert not linear.inside
    assert linear.cost.low > root.cost.value
    assert linear.cost.low <= linear.cost.value <= linear.cost.high
