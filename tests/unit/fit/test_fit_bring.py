"""Measurements that a user brings in a table."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_truths import plain_s, spread

from scaler.errors import BadInput
from scaler.fit.bring import StepTimeAnswer, fit_step_time_table
from scaler.fit.step_model import StepShape

quiet = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=40,
)

ASKED_COLUMNS = ["nodes", "workers", "micro_batch", "accumulation"]
KNOWN_COLUMNS = [*ASKED_COLUMNS, "step_time_s"]
KNOWN = [(s.nodes, s.workers, s.micro_batch, s.accumulation, plain_s(s)) for s in spread(repeats=2)]
ASKED = [(1, 2, 64, 1), (1, 4, 64, 2), (1, 1, 8, 1)]


@pytest.fixture
def table(tmp_path):
    """A function that writes rows under column names into a CSV file."""

    def write(name, columns, rows):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])
        return path

    return write


@pytest.fixture
def predict(table):
    """A function that fits the known rows and gives the answer for those asked."""

    def ask(known=KNOWN, asked=ASKED, columns=KNOWN_COLUMNS, asked_columns=ASKED_COLUMNS):
        return fit_step_time_table(
            table("known.csv", columns, known), str(table("asked.csv", asked_columns, asked))
        )

    return ask


def shapes_of(answer):
    return [(p.nodes, p.workers, p.micro_batch, p.accumulation) for p in answer.predictions]


def test_what_is_asked_is_predicted_near_the_truth(predict):
    answer = predict()
    assert answer.identifiable
    assert answer.notes == ()
    assert shapes_of(answer) == ASKED
    for prediction, shape in zip(answer.predictions, ASKED, strict=True):
        assert prediction.step_time_s == pytest.approx(plain_s(StepShape(*shape)), rel=0.1)
        assert prediction.low < prediction.step_time_s < prediction.high


def test_an_answer_comes_back_from_json(predict):
    answer = predict()
    assert StepTimeAnswer.model_validate(json.loads(answer.model_dump_json())) == answer
    assert "accumulation" in answer.model


@quiet
@given(st.lists(st.sampled_from([*ASKED, (2, 8, 64, 1), (1, 100, 9999, 3)]), min_size=1, max_size=8))
def test_predictions_have_the_order_of_what_was_asked(predict, asked):
    answer = predict(asked=asked)
    assert shapes_of(answer) == asked
    found = dict(zip(asked, answer.predictions, strict=True))
    for shape, prediction in zip(asked, answer.predictions, strict=True):
        assert prediction.step_time_s == pytest.approx(found[shape].step_time_s)


def test_columns_may_stand_in_any_order(predict):
    turned = predict(known=[row[::-1] for row in KNOWN], columns=KNOWN_COLUMNS[::-1])
    assert turned == predict()


def test_the_order_of_the_known_rows_does_not_matter(predict):
    left, right = predict(), predict(known=KNOWN[::-1])
    for one, other in zip(left.predictions, right.predictions, strict=True):
        assert (one.step_time_s, one.low) == pytest.approx((other.step_time_s, other.low), rel=1e-3)


def test_the_measured_synchronisation_is_optional_in_every_row(predict):
    columns = [*KNOWN_COLUMNS, "sync_time_s"]
    known = [(*row, 0.5 * row[-1] if row[1] > 1 else "") for row in KNOWN]
    without, beside = predict(), predict(known=known, columns=columns)
    assert predict(known=[(*row, "") for row in KNOWN], columns=columns) == without
    assert beside.identifiable
    assert beside.predictions != without.predictions
    some = [(*row[:-1], row[-1] if i % 2 else "") for i, row in enumerate(known)]
    assert predict(known=some, columns=columns).identifiable


def test_no_synchronisation_at_all_is_a_measurement_too(predict):
    found = predict(known=[(*row, 0) for row in KNOWN], columns=[*KNOWN_COLUMNS, "sync_time_s"])
    assert all(0 < p.step_time_s < np.inf for p in found.predictions)


@pytest.mark.parametrize(
    ("known", "asked", "words"),
    [
        (spread((1,)), [(1, 2, 64, 1)], ["no run synchronised inside a node"]),
        (spread((1,)), [(2, 2, 64, 1)], ["no run synchronised across nodes"]),
        (spread((1,)), [(1, 4, 64, 1), (2, 2, 64, 1)], ["inside a node", "across nodes"]),
        (spread((4,)), [(1, 8, 64, 1)], ["only 4 workers were measured"]),
        (spread((1, 2)), [(2, 2, 64, 1)], ["no run synchronised across nodes"]),
        (spread((1, 2), (8,)), [(1, 2, 16, 1)], ["one micro-batch was measured (8)"]),
        ([StepShape(1, 1, 8)], [(1, 4, 16, 1)], ["one micro-batch", "no run synchronised"]),
    ],
)
def test_what_the_rows_do_not_tell_is_noted(predict, known, asked, words):
    rows = [(s.nodes, s.workers, s.micro_batch, s.accumulation, plain_s(s)) for s in known]
    answer = predict(known=rows, asked=asked)
    assert not answer.identifiable
    assert len(answer.notes) == len(words)
    assert all(any(word in note for note in answer.notes) for word in words)
    assert all(p.low < p.step_time_s < p.high for p in answer.predictions)


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        (spread((1,)), [(1, 1, 64, 3)]),
        (spread((1, 2), (8,)), [(1, 2, 8, 4), (1, 4, 8, 1)]),
        ([StepShape(1, 1, 8)], [(1, 1, 8, 1)]),
    ],
)
def test_what_is_not_asked_need_not_be_told(predict, known, asked):
    rows = [(s.nodes, s.workers, s.micro_batch, s.accumulation, plain_s(s)) for s in known]
    answer = predict(known=rows, asked=asked)
    assert answer.identifiable
    assert answer.notes == ()


def test_how_many_rows_are_far_from_what_was_measured_is_noted(predict):
    answer = predict(asked=[(1, 17, 8, 1), (1, 4, 2049, 1), (1, 16, 2048, 1)])
    assert answer.identifiable
    assert [note.split()[0] for note in answer.notes] == ["2"]


# What is refused


def refused(predict, **tables):
    with pytest.raises(BadInput) as caught:
        predict(**tables)
    assert caught.value.hint
    return caught.value.message


def test_a_missing_file_names_one_that_is_there(table, tmp_path):
    known = table("known.csv", KNOWN_COLUMNS, KNOWN)
    for left, right in ((known, tmp_path / "knwon.csv"), (tmp_path / "knwon.csv", known)):
        with pytest.raises(BadInput, match="no such file") as caught:
            fit_step_time_table(left, right)
        assert f"did you mean '{known}'?" in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize(
    ("row", "faults"),
    [
        ((1, 2, 64, 1, "nan"), ["step_time_s"]),
        ((1, 2, 64, 1, "inf"), ["step_time_s"]),
        ((1, 2, 64, 1, -0.5), ["step_time_s", "greater than 0"]),
        ((1, 2, 64, 1, 0), ["step_time_s", "greater than 0"]),
        ((1, 2, 64, 1, "fast"), ["step_time_s", "'fast'"]),
        ((1, 2, 64, 1, ""), ["step_time_s", "missing"]),
        ((1, 2, 64, 1), ["step_time_s", "missing"]),
        ((1, 2, 64, 1, 0.5, "", 7), ["more cells than columns"]),
        ((1, 2, 6.5, 1, 0.5), ["micro_batch", "'6.5'"]),
        ((0, 2, 64, 1, 0.5), ["nodes", "greater than 0"]),
        ((1, 0, 64, 1, 0.5), ["workers", "greater than 0"]),
        ((1, 2, 0, 1, 0.5), ["micro_batch", "greater than 0"]),
        ((1, 2, 64, 0, 0.5), ["accumulation", "greater than 0"]),
        ((3, 2, 64, 1, 0.5), ["nodes: 3 nodes, but 2 workers"]),
        ((1, 2, 64, 1, 0.5, 0.5), ["sync_time_s: 0.5 is not below the step's 0.5"]),
        ((1, 2, 64, 1, 0.5, 0.6), ["sync_time_s: 0.6 is not below the step's 0.5"]),
        ((1, 2, 64, 1, 0.5, -0.1), ["sync_time_s", "greater than or equal to 0"]),
        ((1, 2, 64, 1, 0.5, "nan"), ["sync_time_s"]),
        ((-1, "two", 64, 1, 0.5), ["nodes", "workers", "'two'"]),
    ],
)
def test_an_impossible_row_is_told_with_its_line(predict, row, faults):
    known = [(*KNOWN[0], ""), row, (*KNOWN[1], 0.0001)]
    message = refused(predict, known=known, columns=[*KNOWN_COLUMNS, "sync_time_s"])
    assert "known.csv" in message
    assert all(fault in message for fault in faults)
    assert {line.split(":")[0].strip() for line in message.splitlines()[1:]} == {"- line 3"}


def test_every_impossible_row_is_listed_at_once(predict):
    known = [(1, 1, 8, 1, -1), KNOWN[0], (5, 2, 8, 1, 1), (1, 1, "x", "y", 1)]
    message = refused(predict, known=known)
    places = ("line 2: step_time_s", "line 4: nodes", "line 5: micro_batch", "line 5: accumulation")
    assert all(place in message for place in ("4 faults", *places))
    assert "line 3" not in message


def test_the_rows_asked_are_held_to_the_same(predict):
    message = refused(predict, asked=[(1, 2, 64, 1), (4, 2, 64, 1), (1, 2, 64, "")])
    assert "asked.csv: 2 faults" in message
    assert "line 3: nodes: 4 nodes, but 2 workers" in message
    assert "line 4: accumulation: missing" in message


def test_columns_are_told_by_name(predict):
    columns = ["nodes", "worker", "micro_batch", "accumulation", "step_time_ms"]
    message = refused(predict, columns=columns)
    for fault in (
        "unknown column 'worker'; did you mean 'workers'?",
        "unknown column 'step_time_ms'; did you mean 'step_time_s'?",
        "column 'workers' is missing",
        "column 'step_time_s' is missing",
    ):
        assert fault in message
    assert "step_time_s" in refused(predict, known=ASKED, columns=ASKED_COLUMNS)
    assert "unknown column 'step_time_s'" in refused(predict, asked=KNOWN, asked_columns=KNOWN_COLUMNS)


@pytest.mark.parametrize("empty", ["known", "asked"])
def test_a_table_without_rows_is_refused(predict, empty):
    assert "there is no row below the column names" in refused(predict, **{empty: []})


def test_an_empty_file_is_refused(predict):
    assert "column 'nodes' is missing" in refused(predict, known=[], columns=[])


@pytest.mark.parametrize("asked", [(1, 10**400, 64, 1), (1, 2, 10**400, 1), (1, 2, 64, 10**400)])
def test_a_number_beyond_all_computing_is_refused(predict, asked):
    assert "line 2" in refused(predict, asked=[asked])


def test_a_column_may_be_there_only_once(predict):
    known = [(*row, 2 * row[-1]) for row in KNOWN]
    assert "step_time_s" in refused(predict, known=known, columns=[*KNOWN_COLUMNS, "step_time_s"])
