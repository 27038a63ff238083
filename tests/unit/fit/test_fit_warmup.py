"""Lengths of warm-up, compared seed by seed."""

import pytest
from fit_records import trial

from scaler.fit.warmup import fit_warmup
from scaler.records import WarmupRecord


def tried(length, *examples, stop="reached", rate=0.1, batch=64):
    """Runs with a length of warm-up, one a seed."""
    fields = {"kind": "warmup", "warmup_examples": length}
    return [
        WarmupRecord(**trial(batch, rate, each, stop, seed).model_dump() | fields)
        for seed, each in enumerate(examples)
    ]


USUAL = [trial(64, 0.1, each, "reached", seed) for seed, each in enumerate((1000, 1100, 900))]


def test_a_length_that_clearly_needs_fewer_examples_is_chosen():
    fit = fit_warmup([*USUAL, *tried(50, 800, 890, 710), *tried(200, 950)], 64, 0.1, 0)
    assert fit.chosen_examples == 50
    short, long = fit.lengths
    assert short.ratio.value == pytest.approx(0.8, abs=0.02)
    assert short.ratio.high < 1
    assert (long.ratio.samples, long.ratio.high) == (1, None)


def test_one_seed_or_noise_changes_nothing():
    assert fit_warmup([*USUAL, *tried(50, 500)], 64, 0.1, 0).chosen_examples == 0
    assert fit_warmup([*USUAL, *tried(50, 500, 1300, 880)], 64, 0.1, 0).chosen_examples == 0


@pytest.mark.parametrize("stop", ["limit", "diverged"])
def test_a_length_that_misses_the_target_has_no_ratio(stop):
    fit = fit_warmup([*USUAL, *tried(50, 1250, stop=stop)], 64, 0.1, 0)
    assert fit.lengths[0].ratio is None
    assert fit.chosen_examples == 0


def test_other_batches_and_rates_and_cut_runs_say_nothing():
    others = [*tried(50, 800, batch=128), *tried(50, 800, rate=0.2), *tried(50, 800, stop="deadline")]
    assert fit_warmup([*USUAL, *others], 64, 0.1, 0) is None
    assert fit_warmup(USUAL, 64, 0.1, 0) is None
