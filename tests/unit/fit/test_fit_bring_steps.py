"""Runs to the target that a user brings in a table."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.cli import main
from scaler.errors import BadInput
from scaler.fit.bring_steps import StepsAnswer, fit_steps_table

quiet = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=25,
)

COLUMNS = ["global_batch", "seed", "examples"]


def truth(batch):
    return 1000.0 * (1 + batch / 200)


KNOWN = [(b, seed, truth(b) * f) for b in (32, 64, 128, 256, 512, 1024) for seed, f in ((0, 0.97), (1, 1.03))]


@pytest.fixture
def tables(tmp_path):
    """A function that writes KNOWN and ASKED and gives their paths."""

    def write(known=KNOWN, asked=((256,), (2048,)), columns=COLUMNS, asked_columns=("global_batch",)):
        paths = tmp_path / "known.csv", tmp_path / "asked.csv"
        for path, names, rows in zip(paths, (columns, asked_columns), (known, asked), strict=True):
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([names, *rows])
        return paths

    return write


def test_what_is_asked_is_predicted_near_the_truth(tables):
    answer = fit_steps_table(*tables())
    assert answer.identifiable and answer.notes == ()
    assert answer.critical_batch.low < 200 < answer.critical_batch.high
    for row, batch in zip(answer.predictions, (256, 2048), strict=True):
        assert (row.global_batch, row.n_seeds) == (batch, 1)
        assert row.low < truth(batch) < row.high
        assert row.examples == pytest.approx(truth(batch), rel=0.1)


@quiet
@given(
    st.lists(st.tuples(st.sampled_from([8, 100.5, 256, 9999]), st.integers(1, 20)), min_size=1, max_size=6),
    st.floats(1e-3, 1e6),
)
def test_predictions_have_the_order_asked_and_any_unit(tables, asked, unit):
    known = [(b, seed, e * unit) for b, seed, e in KNOWN]
    answer = fit_steps_table(*tables(known, asked, asked_columns=("global_batch", "n_seeds")))
    plain = fit_steps_table(*tables(KNOWN, asked, asked_columns=("global_batch", "n_seeds")))
    assert [(p.global_batch, p.n_seeds) for p in answer.predictions] == asked
    for here, there in zip(answer.predictions, plain.predictions, strict=True):
        assert (here.low, here.examples, here.high) == pytest.approx(
            [unit * there.low, unit * there.examples, unit * there.high]
        )


def test_runs_that_did_not_arrive_are_lower_bounds(tables):
    columns = [*COLUMNS, "reached"]
    known = [(*row, 1) for row in KNOWN]
    far = 3 * truth(2048)
    moved = fit_steps_table(*tables([*known, (2048, 0, far, 0), (2048, 1, far, 0)], columns=columns))
    early = fit_steps_table(*tables([*known, (2048, 0, 10, 0)], columns=columns))
    plain = fit_steps_table(*tables(known, columns=columns))
    assert any("batch 2048" in note for note in moved.notes)
    assert moved.predictions[1].examples > 1.3 * plain.predictions[1].examples
    assert early.predictions[1].examples == pytest.approx(plain.predictions[1].examples, rel=0.05)


@pytest.mark.parametrize(
    ("known", "note"),
    [
        ([row for row in KNOWN if row[0] == 64], "one batch was run"),
        ([(b, s, 1000.0) for b, s, _ in KNOWN], "not bent"),
        ([row for row in KNOWN if row[1] == 0], "how far seeds differ is a guess"),
        ([row for row in KNOWN if row[0] < 512], "1 of 2 rows lie beyond 4 x"),
    ],
)
def test_what_the_runs_do_not_tell_is_said(tables, known, note):
    answer = fit_steps_table(*tables(known))
    assert any(note in found for found in answer.notes)
    assert answer.identifiable is (answer.critical_batch is not None)


@pytest.mark.parametrize(
    ("known", "columns", "fault"),
    [
        ([(64, 0, "nan")], COLUMNS, "examples"),
        ([(64, 0, -5)], COLUMNS, "examples"),
        ([(0, 0, 5)], COLUMNS, "global_batch"),
        ([("x", 0, 5)], COLUMNS, "global_batch"),
        ([(64, 0, 5, "perhaps")], [*COLUMNS, "reached"], "reached"),
        ([(64, 0, 5)], ["global_batch", "seed", "epochs"], "unknown column 'epochs'"),
        ([(64, 5)], ["global_batch", "examples"], "column 'seed' is missing"),
        ([(64, 0, 5, 0), (64, 1, 7, 0)], [*COLUMNS, "reached"], "none of 2 runs reached the target"),
        ([], COLUMNS, "no row"),
    ],
)
def test_bad_tables_are_refused(tables, known, columns, fault):
    with pytest.raises(BadInput) as raised:
        fit_steps_table(*tables(known, columns=columns))
    assert fault in raised.value.message and raised.value.hint


def test_every_fault_of_both_tables_is_listed(tables):
    with pytest.raises(BadInput) as raised:
        fit_steps_table(*tables([(64, 0, -1), (-2, 0, 5)], asked=[(0,)]))
    assert raised.value.message.count("line ") == 3


def test_the_command_prints_a_table_or_json(tables, capsys):
    known, asked = map(str, tables())
    assert main(["fit", "steps", known, "--at", asked, "--json"]) == 0
    out, err = capsys.readouterr()
    assert StepsAnswer.model_validate(json.loads(out)) == fit_steps_table(known, asked)
    assert "next: scaler tune" in err
    assert main(["fit", "steps", known, "--at", asked]) == 0
    assert "critical batch: " in capsys.readouterr().out


def test_without_a_bend_the_critical_batch_is_absent(tables, capsys):
    known, asked = map(str, tables([(b, s, 1000.0) for b, s, _ in KNOWN]))
    assert main(["fit", "steps", known, "--at", asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["critical_batch"] is None and found["identifiable"] is False
    assert np.isfinite([p["examples"] for p in found["predictions"]]).all()
    assert main(["fit", "steps", known, "--at", asked]) == 0
    assert "critical batch: not identifiable" in capsys.readouterr().out
