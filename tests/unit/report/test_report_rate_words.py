"""Which learning-rate rule holds, in words."""

import pytest

from scaler.fit.rate_curve import Trial
from scaler.fit.rate_fit import fit_examples
from scaler.fit.rate_rules import Optimizer, rate_rules
from scaler.report.html import render
from scaler.report.rate_words import rule_headers, rule_lines, rule_notes, rule_sentence
from scaler.report.terminal import answer_table, make_console


@pytest.fixture(scope="module")
def fit():
    """Linear growth, exactly: from 0.1 at 64."""
    trials = [
        Trial(batch, float(x), 6.0 + 0.5 * (x - best) ** 2)
        for batch in (64, 128, 256)
        for best in [-2.3 + 0.693 * (batch // 64).bit_length() - 0.693]
        for x in (best - 1, best - 0.5, best, best + 0.5, best + 1)
    ]
    return fit_examples(trials)


@pytest.fixture
def ruled(config, fit):
    """A function (optimizer) that puts the rules into a configuration."""

    def put(optimizer):
        rules = rate_rules(fit, (64, 128, 256), (64, 0.1), optimizer, 50.0)
        findings = config.findings.model_copy(update={"learning_rate_rules": rules})
        return config.model_copy(update={"findings": findings})

    return put


def test_each_rule_has_a_cell_for_every_batch(ruled):
    config = ruled(Optimizer("SGD"))
    headers, lines = rule_headers(config), rule_lines(config)
    assert headers == ("rule", "from rate", "64", "128", "256")
    assert all(len(line) == len(headers) for line in lines)
    linear = next(line for line in lines if line[:2] == [("linear", ""), ("0.1, reference", "")])
    assert [value.split()[0].rstrip("*") for value, _ in linear[2:]] == ["0.1", "0.2", "0.4"]
    assert all(value.endswith(("+0%", "+1%", "+2%")) for value, _ in linear[2:])
    assert all(" to +" in bounds for _, bounds in linear[2:])
    root = next(line for line in lines if line[:2] == [("square root", ""), ("0.1, reference", "")])
    assert root[4][0].startswith("0.2* +")


def test_a_rule_outside_its_domain_prints_not_applicable_and_why(ruled):
    config = ruled(Optimizer("SGD"))
    assert ["token half-life", "not applicable", "", "", ""] in [
        [value for value, _ in line] for line in rule_lines(config)
    ]
    assert any(
        note.startswith("token half-life:") and "not applicable: for Adam-like optimizers, not SGD" in note
        for note in rule_notes(config)
    )
    adam = ruled(Optimizer("AdamW", (0.7, 0.999)))  # at 4 x the batch 4 x 0.3 > 1
    line = next(line for line in rule_lines(adam) if line[0][0] == "Adam square root")
    assert line[4][0] == "not applicable"
    assert line[3][0] != "not applicable"


def test_the_nearest_and_the_dearest_rule_are_named(ruled):
    sentence = rule_sentence(ruled(Optimizer("SGD")))
    assert sentence.startswith("From the measured best rate, linear scaling stays nearest over 3 batches")


def test_the_terminal_and_the_page_show_it(ruled):
    config = ruled(Optimizer("SGD"))
    console = make_console()
    with console.capture() as capture:
        console.print(answer_table(config))
    for text in (capture.get(), render(config, [])):
        assert "Which learning-rate rule holds here" in text
        assert "not applicable" in text


def test_without_rules_nothing_is_shown(config):
    findings = config.findings.model_copy(update={"learning_rate_rules": ()})
    bare = config.model_copy(update={"findings": findings})
    assert (rule_headers(bare), rule_lines(bare), rule_notes(bare), rule_sentence(bare)) == ((), [], [], "")
    assert "Which learning-rate rule" not in render(bare, [])
