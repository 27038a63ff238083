"""What branches came to, in the terminal and on the page."""

import datetime
import io

import numpy as np
import pytest
from rich.console import Console

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer, BatchConfig, Confirmation, Findings
from scaler.fit.branching import fit_branching
from scaler.records import BranchRecord, Environment
from scaler.report.branches import BRANCH_HEADERS, branch_lines, branch_sentence, branches_figure
from scaler.report.html import render
from scaler.report.terminal import answer_table
from scaler.stats import Estimate

EXAMPLES, POINTS = 16_384, 32
SLOWDOWNS = {1: 1.0, 2: 1.05, 4: 2.0}


def branch(growth, slowdown, seed, **fields):
    losses = 2.0 - np.arange(POINTS) / POINTS / slowdown + 0.003 * np.sin(seed * growth) + 0.02 * seed
    base = {
        "task": f"{growth}-{seed}",
        "seed": seed,
        "taken_at": datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC),
        "environment": Environment(device="cpu", world_size=1, machine="m", cpu_count=1, versions={}),
        "plan": BatchPlan.equal(64 * growth, 1, 1),
        "reference_batch": 64,
        "learning_rate": 0.1 * growth,
        "rate_rule": "linear",
        "start_examples": 5_000,
        "examples": EXAMPLES,
        "points": POINTS,
        "losses": tuple(losses),
        "held_out_examples": 512,
        "held_out_loss": float(losses[-1]),
    }
    return BranchRecord(**base | fields)


RECORDS = [branch(growth, slow, seed) for growth, slow in SLOWDOWNS.items() for seed in (1, 2, 3)]


def config_of(records, **fields) -> BatchConfig:
    fit = fit_branching(records)
    estimate = Estimate(value=0.01, low=0.009, high=0.011, samples=4, method="by hand")
    answer = Answer(
        plan=BatchPlan.equal(fit.best.global_batch, 1, 1),
        learning_rate=fit.best.learning_rate,
        warmup_examples=0,
        warmup_steps=0,
        step_time_s=estimate,
        samples_per_s=estimate.scaled(1e6),
        relative_time=Estimate(value=0.61, low=0.5, high=0.75, samples=3, method="by hand"),
        bound_by="critical batch",
        reasons={"time_to_target": "no run to the target fits the budget"},
    )
    base = {
        "workload": "long",
        "cluster": Cluster(name="one", workers=1, kind="cpu"),
        "chosen_workers": 1,
        "choice": {"objective": "the most samples/s", "feasible_plans": 1},
        "answers": (answer,),
        "findings": Findings(train_examples=50_000, parameters=10),
        "branching": fit,
        "confirmation": Confirmation(comparisons=()),
        "records": len(records),
        "versions": {},
    }
    return BatchConfig(**base | fields)


CONFIG = config_of(RECORDS)


def terminal(config) -> str:
    console = Console(width=100, color_system=None, record=True, file=io.StringIO())
    console.print(answer_table(config))
    return console.export_text()


def test_every_batch_has_a_line_and_the_reference_no_difference():
    lines = branch_lines(CONFIG)
    assert [line[0] for line in lines] == ["64", "128", "256"]
    assert all(len(line) == len(BRANCH_HEADERS) for line in lines)
    assert lines[0][2] == "" and lines[0][-1] == "reference"
    assert [line[-1] for line in lines[1:]] == ["does not lose", "loses"]
    assert " x (" in lines[1][3] and lines[1][2].startswith(("+", "-"))
    assert branch_lines(CONFIG.model_copy(update={"branching": None})) == []


def test_a_batch_that_diverged_is_no_number():
    gone = [
        branch(4, 1.0, seed, losses=(2.0, None), held_out_loss=None)
        if growth == 4
        else branch(growth, 1.0, seed)
        for growth in (1, 2, 4)
        for seed in (1, 2, 3)
    ]
    config = config_of(gone)
    assert branch_lines(config)[-1][2] == "diverged"
    assert "diverged" in terminal(config) and "nan" not in terminal(config)
    assert branches_figure(gone, config.branching).series


def test_the_sentence_says_where_how_long_and_what_is_tolerated():
    text = branch_sentence(CONFIG.branching)
    assert "5,000 examples into training" in text
    assert "16,384 more examples" in text and "3 orders" in text
    assert "The critical batch, where examples double, is" in text
    assert "the checkpoint" in branch_sentence(CONFIG.branching.model_copy(update={"start_examples": None}))


@pytest.mark.parametrize(("least", "says"), [(900.0, "is at least 900."), (None, "is not identifiable.")])
def test_a_critical_batch_without_an_upper_end_is_no_number(least, says):
    found = CONFIG.branching.model_copy(update={"critical_batch": None, "critical_at_least": least})
    assert branch_sentence(found).endswith(says)


def test_the_figure_has_a_line_per_batch_of_mean_losses():
    figure = branches_figure(RECORDS, CONFIG.branching)
    assert [series.label for series in figure.series] == ["64 (rate 0.1)", "128 (rate 0.2)", "256 (rate 0.4)"]
    assert all(len(series.points) == POINTS for series in figure.series)
    first = figure.series[0].points[0]
    assert first.y == pytest.approx(np.mean([r.losses[0] for r in RECORDS[:3]]))
    assert first.x == EXAMPLES / POINTS / 2
    assert "128 is the largest that does not lose" in figure.caption


def test_branches_of_another_length_stay_out_of_the_figure():
    others = [r.model_copy(update={"examples": 64, "losses": (9.0,) * POINTS}) for r in RECORDS]
    assert branches_figure([*others, *RECORDS], CONFIG.branching) == branches_figure(
        RECORDS, CONFIG.branching
    )


def test_the_terminal_says_how_much_time_and_that_none_to_the_target_is_known():
    text = " ".join(terminal(CONFIG).split())
    assert "0.61 x the time that a global batch of 64 takes (90% interval 0.50 x to 0.75 x)" in text
    assert "No run to the target fits the budget: its time is not known." in text
    assert "Which batch does not lose" in text
    assert "relative time 0.61 x" in text
    assert "launched, not trained" in text


def test_the_page_shows_the_same():
    page = render(CONFIG, RECORDS, (0.95, "max"))
    assert "Which batch does not lose" in page and 'id="branches"' in page
    assert "0.61 x" in page and "does not lose" in page
    without = render(CONFIG.model_copy(update={"branching": None}), RECORDS, (0.95, "max"))
    assert "Which batch does not lose" not in without and 'id="branches"' not in without
