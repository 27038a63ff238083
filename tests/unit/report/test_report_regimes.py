"""Regimes in figures, words, on a page and in a terminal."""

import io
import json

import numpy as np
import pytest
from regime_cases import DATA, noisy, regime, regimes_record, tutorial
from rich.console import Console

from scaler.fit.regimes import fit_regimes
from scaler.report.drawing import draw
from scaler.report.regime_answer import print_regimes, regimes_data, render_regimes
from scaler.report.regime_words import how_sentences, regime_rows, regime_sentences
from scaler.report.regimes import regime_figures


def figures(record):
    return {figure.name: figure for figure in regime_figures(record, fit_regimes(record))}


def words(record) -> str:
    return " ".join(regime_sentences(fit_regimes(record)))


@pytest.fixture(scope="module")
def shown():
    return figures(tutorial())


def test_cost_is_shown_against_steps_epochs_and_seconds(shown):
    assert list(shown) == ["steps", "epochs", "seconds", "paths"]
    ends = {
        name: [s.points[-1].x for s in shown[name].series if s.kind == "noisy"] for name in list(shown)[:3]
    }
    assert ends["steps"] == [400, 400, 200, 100]
    assert ends["epochs"] == pytest.approx([400 / DATA, 400 / DATA, 50, 100])
    assert ends["seconds"] == pytest.approx([0.4, 0.4, 0.4, 0.4])


def test_each_regime_has_a_faint_curve_with_every_step_and_a_strong_smoothed_one(shown):
    series = shown["steps"].series
    assert [s.kind for s in series] == ["noisy", "curve"] * 4
    assert [s.label for s in series if s.label] == [
        "batch 1",
        "batch 1 at 0.1 x rate",
        "batch 64",
        "batch 256 (full batch)",
    ]
    faint, strong = series[0].points, series[1].points
    assert len(faint) == 400 and len(strong) <= 40
    jumps = [
        np.abs(np.diff([p.y for p in own[-count:]])).mean() for own, count in ((faint, 100), (strong, 5))
    ]
    assert jumps[1] < 0.5 * jumps[0]


def test_the_caption_says_the_finding_the_method_and_the_count(shown):
    caption = shown["steps"].caption
    assert "goes up on 0% of its steps" in caption and "4 regimes of one seed, 1,100 steps" in caption


def test_paths_share_a_start_and_lie_over_the_contour(shown):
    figure = shown["paths"]
    assert [s.kind for s in figure.series] == ["path"] * 4 + ["start"]
    assert figure.surface is not None
    assert "70% of the variance" in figure.x.label and "90% of the variance" in figure.caption


def test_a_path_that_leaves_the_plane_is_cut_and_marked():
    wild = regime(64, np.geomspace(1, 1e30, 700), stop="diverged", spans_plane=False)  # x up to 14
    series = figures(regimes_record(wild, regime(DATA, noisy(100, 0))))["paths"].series
    assert series[0].label == "batch 64, leaves" and series[0].kind == "trace"
    assert max(p.x for p in series[0].points) <= 9.0
    assert series[1].kind == "failed" and series[1].points == series[0].points[-1:]


def test_a_diverged_cost_does_not_flatten_the_others():
    wild = regime(64, np.geomspace(1, 1e30, 100), stop="diverged", spans_plane=False)
    figure = figures(regimes_record(wild, regime(DATA, noisy(100, 0))))["steps"]
    assert figure.series[1].label == "batch 64 DIVERGED"
    assert max(p.y for s in figure.series for p in s.points) == pytest.approx(20, rel=0.1)


def test_costs_below_zero_have_a_linear_axis():
    figure = figures(regimes_record(regime(64, -noisy(100, 0.1)), regime(DATA, -noisy(100, 0))))["steps"]
    assert not figure.y.log
    assert draw(figure).startswith("<svg")


@pytest.mark.parametrize("name", ["steps", "epochs", "seconds", "paths"])
def test_figures_are_drawn(shown, name):
    svg = draw(shown[name])
    assert svg.startswith("<svg") and "batch 256 (full batch)" in svg
    assert draw(shown[name]) == svg


@pytest.mark.parametrize(
    "heights", [((1, 1), (1, 1)), ((None, None), (None, None)), ((-1, 0), (2, None)), ((0, 0), (0, 5))]
)
def test_any_surface_is_drawn(shown, heights):
    import dataclasses

    from scaler.report.figure import Surface

    figure = dataclasses.replace(shown["paths"], surface=Surface((-1, 9), (-1, 9), heights))
    assert draw(figure).startswith("<svg")


def test_without_curves_there_is_no_figure():
    assert figures(regimes_record(regime(1, stop="undefined", reason="x"), contour=None)) == {}


def test_the_sentences_hold_the_records_own_figures():
    text = words(tutorial())
    assert "An epoch takes 256 ms at batch 1, 8 ms at batch 64 and 4 ms at batch 256." in text
    assert "The paths start at a cost of" in text
    assert "0% of the steps went up" in text
    assert "At size 1 a learning rate of 0.00125 instead of 0.0125" in text and "times less" in text


def test_what_could_not_be_measured_is_named():
    record = regimes_record(
        regime(1, stop="undefined", reason="batch statistics of one example are undefined"),
        regime(64, np.geomspace(1, 1e30, 50), stop="diverged", spans_plane=False),
        regime(128, np.full(100, 2.0), spans_plane=False),
        regime(DATA, noisy(100, 0)),
        batch_statistics=("norm1", "norm2"),
    )
    text = words(record)
    assert "Batch 1 is not measurable: batch statistics of one example are undefined." in text
    assert "Batch 64 diverged after 50 steps at learning rate 0.1" in text
    assert "Batch 128 made no real progress" in text and "from a cost of 2 to 2 in 100 steps" in text
    assert "2 modules: norm1, norm2" in " ".join(how_sentences(fit_regimes(record)))
    assert [row[-1][0] for row in regime_rows(fit_regimes(record))] == [
        "not measurable",
        "DIVERGED",
        "plan",
        "plan",
    ]


def test_cut_data_and_a_sample_are_said():
    record = regimes_record(
        regime(DATA, noisy(100, 0)), train_examples=60_000, data_examples=DATA, sample_examples=64
    )
    text = " ".join(how_sentences(fit_regimes(record)))
    assert "256 of 60,000 examples, drawn at random: more full batches would not fit into 1m00s" in text
    assert "64 of 256 examples, dropout off" in text


def test_the_page_stands_alone_and_escapes_what_is_given():
    page = render_regimes(tutorial().model_copy(update={"name": "<script>alert(1)</script>"}))
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<svg") == 4 and "src=" not in page.replace("img-src", "")
    assert "The regimes" in page and "<style>" in page


def test_the_terminal_has_the_table_and_the_sentences():
    stream = io.StringIO()
    print_regimes(fit_regimes(tutorial()), Console(file=stream, width=100, color_system=None))
    text = stream.getvalue()
    assert "1 at 0.1 x rate" in text and "What it shows" in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_data_is_json_with_the_sentences():
    data = json.loads(json.dumps(regimes_data(fit_regimes(tutorial()))))
    assert data["workload"] == "digits" and len(data["regimes"]) == 4
    assert data["findings"] and data["method"]
    assert data["regimes"][0]["noise"]["low"] < data["regimes"][0]["noise"]["high"]
