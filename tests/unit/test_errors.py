import pickle

import pytest

from scaler.errors import (
    BadInput,
    ClusterFailed,
    Interrupted,
    NothingFeasible,
    ScalerError,
    WorkloadError,
    nearest,
)

ALL = [ScalerError, BadInput, WorkloadError, NothingFeasible, Interrupted, ClusterFailed]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ScalerError, 1),
        (BadInput, 2),
        (WorkloadError, 2),
        (NothingFeasible, 3),
        (Interrupted, 4),
        (ClusterFailed, 5),
    ],
)
def test_every_error_has_its_exit_code(kind, code):
    assert kind.exit_code == code
    assert kind("what").exit_code == code


@pytest.mark.parametrize("kind", ALL)
def test_one_handler_catches_every_error(kind):
    with pytest.raises(ScalerError):
        raise kind("what")


def test_a_workload_error_is_bad_input():
    assert issubclass(WorkloadError, BadInput)


@pytest.mark.parametrize("kind", ALL)
def test_the_hint_follows_the_message(kind):
    error = kind("what happened", hint="what to do")
    assert (error.message, error.hint) == ("what happened", "what to do")
    text = str(error)
    assert text.startswith("what happened")
    assert text.endswith("hint: what to do")


def test_without_a_hint_only_the_message_is_shown():
    assert str(BadInput("what happened")) == "what happened"


@pytest.mark.parametrize("kind", ALL)
def test_an_error_travels_between_processes_whole(kind):
    error = pickle.loads(pickle.dumps(kind("what happened", hint="what to do")))
    assert type(error) is kind
    assert (error.message, error.hint) == ("what happened", "what to do")


def test_the_nearest_name_is_proposed():
    assert nearest("digit", ["chars", "digits", "mnist"]) == "; did you mean 'digits'?"


@pytest.mark.parametrize(
    ("name", "valid"), [("resnet50", ["chars", "digits"]), ("digits", []), ("", ["digits"])]
)
def test_no_name_is_proposed_when_none_is_near(name, valid):
    assert nearest(name, valid) == ""


def test_valid_names_may_come_from_an_iterator():
    assert "digits" in nearest("digit", iter(["digits"]))
