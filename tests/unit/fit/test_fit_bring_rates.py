"""`scaler fit learning-rate`: tables in, predictions out."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rate_truths import quadratic, sgd, simulate

from scaler.cli import main
from scaler.errors import BadInput
from scaler.fit.bring_rates import KnownRate, fit_learning_rate_table

RATES = (0.01, 0.02, 0.04, 0.08)


@pytest.fixture
def tables(tmp_path):
    """A function (known, asked) that writes both files and gives their paths."""

    def write(known, asked="global_batch\n64\n128\n"):
        paths = tmp_path / "known.csv", tmp_path / "asked.csv"
        for path, text in zip(paths, (known, asked), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths

    return write


def known_table(batches=(64, 256), diverged="nan"):
    lines = ["global_batch,learning_rate,loss,seed"]
    for batch in batches:
        best = 0.02 * (batch / 64) ** 0.5
        lines += [f"{batch},{rate},{2 + math.log(rate / best) ** 2},0" for rate in RATES]
        lines.append(f"{batch},0.5,{diverged},0")
    return "\n".join(lines) + "\n"


def test_predictions_come_in_the_order_asked(tables):
    answer = fit_learning_rate_table(*tables(known_table(), "global_batch\n1024\n64\n128\n64\n"))
    assert [row.global_batch for row in answer.predictions] == [1024, 64, 128, 64]
    first, last = answer.predictions[1], answer.predictions[3]
    assert first == last
    for row in answer.predictions:
        assert row.low <= row.learning_rate <= row.high
    assert first.learning_rate == pytest.approx(0.02, rel=0.2)
    assert answer.identifiable


@pytest.mark.parametrize("diverged", ["nan", "NaN", "inf", "Infinity", ""])
def test_a_diverged_run_may_be_written_in_several_ways(tables, diverged):
    answer = fit_learning_rate_table(*tables(known_table(diverged=diverged)))
    assert answer == fit_learning_rate_table(*tables(known_table()))


def test_one_batch_gives_a_prediction_that_says_what_is_a_guess(tables):
    answer = fit_learning_rate_table(*tables(known_table(batches=(64,)), "global_batch\n64\n1024\n"))
    assert not answer.identifiable
    assert answer.exponent is None
    assert answer.saturates is None
    assert "one global batch (64) only" in answer.notes[0]
    assert "1 of 2 rows lie beyond 4 x" in answer.notes[-1]


def test_one_rate_is_not_identifiable(tables):
    answer = fit_learning_rate_table(*tables("global_batch,learning_rate,loss\n64,0.1,2\n128,0.1,2.1\n"))
    assert not answer.identifiable
    assert any("64, 128" in note for note in answer.notes)


def test_a_batch_where_everything_diverged_is_named(tables):
    known = known_table() + "4096,0.1,nan,0\n4096,0.2,,0\n"
    answer = fit_learning_rate_table(*tables(known))
    assert "every run diverged at global batch 4,096" in answer.notes


def test_every_fault_of_both_tables_is_listed(tables):
    known = "global_batch,learning_rate,loss\n0,0.1,2\n64,-1,2\n64,0.1,low\n64,0.1,-inf\n"
    with pytest.raises(BadInput) as caught:
        fit_learning_rate_table(*tables(known, "global_batch\nmany\n"))
    message = caught.value.message
    for part in ("line 2: global_batch", "line 3: learning_rate", "line 4: loss", "line 5: loss", "many"):
        assert part in message


@pytest.mark.parametrize(
    "known", ["global_batch,learning_rate\n64,1\n", "global_batch,learning_rate,loss\n64,1,\n"]
)
def test_without_a_finite_loss_there_is_a_message(tables, known):
    with pytest.raises(BadInput, match="none of 1 rows has a finite loss"):
        fit_learning_rate_table(*tables(known))


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=12))
def test_any_cell_is_read_or_refused(cell):
    try:
        row = KnownRate(global_batch=64, learning_rate=0.1, loss=cell)
    except ValueError:
        return
    assert row.loss is None or math.isfinite(row.loss)


def test_json_holds_the_documented_keys(tables, capsys):
    known, asked = tables(known_table())
    assert main(["fit", "learning-rate", str(known), "--at", str(asked), "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert set(answer) == {"model", "identifiable", "exponent", "saturates", "notes", "predictions"}
    assert set(answer["exponent"]) == {"value", "low", "high"}
    assert set(answer["predictions"][0]) == {"global_batch", "learning_rate", "low", "high"}
    assert "next: scaler tune" in captured.err


def test_the_terminal_shows_rates_growth_and_what_is_not_known(tables, capsys):
    known, asked = tables(known_table(batches=(64,)))
    assert main(["fit", "learning-rate", str(known), "--at", str(asked)]) == 0
    shown = capsys.readouterr().out
    assert "growth of the best rate: not identifiable" in shown
    assert "Not known from these rows" in shown


def test_losses_of_many_orders_are_predicted_between_and_beyond(tables):
    trials, _ = simulate(sgd, quadratic, 1, deviation=0.0)
    lines = ["global_batch,learning_rate,loss"]
    lines += [f"{t.global_batch},{math.exp(t.log_rate)!r},{math.exp(t.value)!r}" for t in trials]
    answer = fit_learning_rate_table(*tables("\n".join(lines), "global_batch\n128\n1024\n"))
    for row in answer.predictions:
        assert row.low <= math.exp(sgd(row.global_batch)) <= row.high
