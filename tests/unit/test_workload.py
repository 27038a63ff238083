import dataclasses
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.errors import BadInput, ClusterFailed, WorkloadError
from scaler.workload import BUILT_IN, Reference, Target, Workload, _load, load_workload, user_code

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SOURCE = """
from scaler.workload import Reference, Target, Workload

workload = Workload(
    name="mine",
    model=lambda: "model",
    train_data=lambda: [1, 2, 3],
    eval_data=lambda: [4],
    loss=lambda model, batch: sum(batch),
    optimizer=lambda parameters, learning_rate: None,
    metric=lambda model, batch: 1.0,
    target=Target(0.9),
    reference=Reference(global_batch=2, learning_rate=0.1),
)


def make():
    return workload


def fails():
    raise RuntimeError("no data here")


def needs_one(argument):
    return workload


number = 3
nothing = None
"""


def do(*arguments):
    return None


def workload(**fields):
    defaults = {
        "name": "w",
        "model": do,
        "train_data": do,
        "eval_data": do,
        "loss": do,
        "optimizer": do,
        "metric": do,
        "target": Target(0.9),
        "reference": Reference(global_batch=64, learning_rate=0.1),
    }
    return Workload(**(defaults | fields))


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    """Leave nothing that a loaded address puts into the interpreter."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    _load.cache_clear()
    yield
    _load.cache_clear()
    for name in set(sys.modules) - before:
        if not name.startswith(("torch", "scaler", "numpy")):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "acme_models"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


# Addresses


@pytest.mark.parametrize("name", ["workload", "make"])
def test_a_file_gives_its_workload_or_what_its_function_returns(file, name):
    found = load_workload(f"{file}:{name}")
    assert isinstance(found, Workload)
    assert found.name == "mine"
    assert found.address == f"{file.resolve()}:{name}"


@pytest.mark.parametrize("name", ["workload", "make"])
def test_a_module_gives_its_workload(package, name):
    found = load_workload(f"acme_models.train:{name}")
    assert (found.name, found.address) == ("mine", f"acme_models.train:{name}")


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "acme_here.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_workload("acme_here:workload").name == "mine"


def test_a_relative_file_gets_an_absolute_address(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert load_workload("train.py:workload").address == f"{file.resolve()}:workload"


def test_a_file_imports_its_neighbours(file):
    (file.parent / "acme_neighbour.py").write_text("size = 7\n", encoding="utf-8")
    file.write_text(SOURCE.replace("global_batch=2", "global_batch=size"), encoding="utf-8")
    file.write_text("from acme_neighbour import size\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert load_workload(f"{file}:workload").reference.global_batch == 7


def test_files_of_the_same_name_are_told_apart(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(SOURCE.replace('"mine"', f'"{name}"'), encoding="utf-8")
    names = [load_workload(f"{tmp_path / name / 'train.py'}:workload").name for name in ("one", "two")]
    assert names == ["one", "two"]


def test_a_file_does_not_shadow_an_installed_module(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(SOURCE, encoding="utf-8")
    load_workload(f"{path}:workload")
    assert hasattr(sys.modules.get("json", __import__("json")), "loads")


def test_an_address_is_loaded_once(file):
    assert load_workload(f"{file}:workload") is load_workload(f"{file}:workload")


# What is not there


def test_an_unknown_built_in_names_the_nearest():
    with pytest.raises(BadInput, match="unknown workload 'digit'; did you mean 'digits'") as caught:
        load_workload("digit")
    assert all(name in caught.value.hint for name in BUILT_IN)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("address", ["", "zzzz", "train.py", "train.py:"])
def test_an_incomplete_address_is_told_its_forms(address):
    with pytest.raises(BadInput, match="unknown workload") as caught:
        load_workload(address)
    assert "file.py:name" in caught.value.hint
    assert "package.module:name" in caught.value.hint


def test_a_missing_file_names_the_nearest(file):
    with pytest.raises(BadInput, match=r"no such workload file: .*did you mean '.*train\.py'") as caught:
        load_workload(f"{file.parent / 'trian.py'}:workload")
    assert caught.value.hint


def test_a_missing_module_is_bad_input():
    with pytest.raises(BadInput, match=r"importing acme_absent\.nothing raised ModuleNotFoundError"):
        load_workload("acme_absent.nothing:workload")


def test_an_address_without_a_place_is_bad_input():
    with pytest.raises(BadInput):
        load_workload(":workload")


@pytest.mark.parametrize("as_module", [False, True])
def test_a_missing_name_names_the_nearest(file, package, as_module):
    place = "acme_models.train" if as_module else file
    with pytest.raises(BadInput, match="has no 'worklod'; did you mean 'workload'") as caught:
        load_workload(f"{place}:worklod")
    assert "workload" in caught.value.hint


def test_a_file_without_workloads_says_none(tmp_path):
    (tmp_path / "empty.py").touch()
    with pytest.raises(BadInput, match="has no 'workload'") as caught:
        load_workload(f"{tmp_path / 'empty.py'}:workload")
    assert "none" in caught.value.hint


def test_what_is_not_a_workload_is_named_by_its_type(file):
    with pytest.raises(BadInput, match="int, not a Workload") as caught:
        load_workload(f"{file}:number")
    assert caught.value.hint


def test_a_function_that_returns_something_else_is_refused(file):
    file.write_text("def make():\n    return [1]\n", encoding="utf-8")
    with pytest.raises(BadInput, match="list, not a Workload"):
        load_workload(f"{file}:make")


def test_a_function_that_raises_is_bad_input(file):
    with pytest.raises(BadInput, match="raised RuntimeError: no data here") as caught:
        load_workload(f"{file}:fails")
    assert "train.py:fails" in caught.value.message


def test_a_function_with_arguments_is_bad_input(file):
    with pytest.raises(BadInput, match="raised TypeError") as caught:
        load_workload(f"{file}:needs_one")
    assert "without arguments" in caught.value.hint


def test_a_file_that_raises_shows_its_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("a = 1\n\nb = a / 0  # here\n", encoding="utf-8")
    with pytest.raises(BadInput, match="raised ZeroDivisionError") as caught:
        load_workload(f"{path}:workload")
    assert f"{path}:3" in caught.value.message
    assert "b = a / 0" in caught.value.message


def test_a_file_that_is_not_python_is_bad_input(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def :\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"SyntaxError.*broken\.py, line 1"):
        load_workload(f"{path}:workload")


def test_a_file_with_a_missing_import_is_bad_input(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import acme_absent\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"ModuleNotFoundError.*acme_absent"):
        load_workload(f"{path}:workload")


def test_faults_of_the_workload_itself_come_through(file):
    file.write_text(SOURCE.replace("Target(0.9)", "Target(0.9, direction='up')"), encoding="utf-8")
    with pytest.raises(BadInput, match="direction is max or min"):
        load_workload(f"{file}:workload")


def test_a_failed_address_can_be_mended(file):
    good = file.read_text(encoding="utf-8")
    file.write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(BadInput):
        load_workload(f"{file}:workload")
    file.write_text(good, encoding="utf-8")
    assert load_workload(f"{file}:workload").name == "mine"


# What a workload may be


def test_every_fault_of_a_workload_is_listed():
    with pytest.raises(BadInput) as caught:
        workload(
            model="net",
            loss=None,
            precision="fp8",
            target=Target(0.9, direction="up", max_examples=0, evaluate_every=-1),
            reference=Reference(global_batch=0, learning_rate=-0.1, warmup_examples=-1),
        )
    message = caught.value.message
    for fault in (
        "model must be callable, not str",
        "loss must be callable",
        "precision",
        "fp8",
        "target.direction",
        "target.max_examples",
        "target.evaluate_every",
        "reference.global_batch",
        "reference.learning_rate",
        "reference.warmup_examples",
    ):
        assert fault in message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("direction", "value", "met"),
    [
        ("max", 0.9, True),
        ("max", 0.91, True),
        ("max", 0.89, False),
        ("min", 0.9, True),
        ("min", 0.89, True),
        ("min", 0.91, False),
        ("max", float("nan"), False),
        ("min", float("nan"), False),
    ],
)
def test_a_target_is_met_at_or_past_its_value(direction, value, met):
    assert Target(0.9, direction=direction).is_met(value) is met


def test_a_workload_is_frozen():
    with pytest.raises(AttributeError):
        workload().name = "other"


# Travelling


@pytest.mark.parametrize("name", ["workload", "make"])
def test_a_workload_of_lambdas_travels_by_its_address(file, name):
    found = load_workload(f"{file}:{name}")
    assert pickle.loads(pickle.dumps(found)) is found


def test_a_workload_of_a_module_travels_by_its_address(package):
    found = load_workload("acme_models.train:workload")
    assert pickle.loads(pickle.dumps(found)) is found


def test_a_workload_arrives_in_another_process_and_folder(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    sent = tmp_path / "sent.pickle"
    sent.write_bytes(pickle.dumps(load_workload("train.py:workload")))
    receive = f"""
        import pickle, pathlib, sys
        sys.path[:0] = {sys.path!r}
        found = pickle.loads(pathlib.Path({str(sent)!r}).read_bytes())
        print(found.name, found.loss(None, found.train_data()), found.address)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(receive)], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["mine", "6", f"{file.resolve()}:workload"]


def test_a_workload_without_an_address_travels_by_value():
    sent = workload(target=Target(0.5, direction="min"), precision="bf16")
    assert pickle.loads(pickle.dumps(sent)) == sent


def test_a_changed_copy_of_a_loaded_workload_travels_by_value(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE, encoding="utf-8")
    loaded = load_workload(f"{tmp_path / 'mine.py'}:workload")
    assert loaded.address is not None
    assert dataclasses.replace(loaded, precision="bf16").address is None


# The user's code


def user_line():
    raise ZeroDivisionError("by zero")  # the user's line


def test_what_the_users_function_raises_names_the_function_and_the_line():
    with pytest.raises(WorkloadError) as caught, user_code(workload(name="mine"), "loss"):
        user_line()
    message = caught.value.message
    assert "workload 'mine': loss() raised ZeroDivisionError: by zero" in message
    assert f"{__file__}:{user_line.__code__.co_firstlineno + 1}" in message
    assert "the user's line" in message
    assert "loss" in caught.value.hint
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.exit_code == 2


def test_the_line_is_the_users_when_a_package_raises():
    with pytest.raises(WorkloadError) as caught, user_code(workload(), "model"):
        torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(1, 3))  # in the user's file
    assert __file__ in caught.value.message
    assert "in the user's file" in caught.value.message


def test_the_line_is_the_users_when_the_standard_library_raises():
    import json

    with pytest.raises(WorkloadError) as caught, user_code(workload(), "train_data"):
        json.loads("{")  # in the user's file
    assert __file__ in caught.value.message
    assert "in the user's file" in caught.value.message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("no memory"),
        ClusterFailed("a worker was lost"),
        BadInput("wrong"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_are_not_the_users_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, user_code(workload(), "loss"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("name", ["DistBackendError", "DistNetworkError"])
def test_a_lost_peer_is_not_the_users_fault(name):
    kind = getattr(torch.distributed, name)
    with pytest.raises(kind), user_code(workload(), "loss"):
        raise kind("peer closed")


def test_code_that_does_not_raise_is_left_alone():
    with user_code(workload(), "loss"):
        result = 3
    assert result == 3


# Learning rate


@quiet
@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_the_default_schedule_warms_up_then_stays(progress, warmup):
    factor = workload().learning_rate_factor(progress, warmup)
    assert 0 < factor <= 1
    assert factor == (1 if progress >= warmup else progress / warmup)


@pytest.mark.parametrize(
    ("progress", "warmup", "factor"),
    [(0, 0, 1), (64, 0, 1), (0, 128, 0), (64, 128, 0.5), (128, 128, 1), (256, 128, 1)],
)
def test_known_learning_rate_factors(progress, warmup, factor):
    assert workload().learning_rate_factor(progress, warmup) == factor


def test_a_schedule_replaces_the_warm_up():
    scheduled = workload(schedule=lambda progress: 1 / (1 + progress))
    assert scheduled.learning_rate_factor(3, 1000) == 0.25


def test_a_schedule_may_give_a_tensor():
    factor = workload(schedule=lambda progress: torch.tensor(0.5)).learning_rate_factor(3, 0)
    assert (factor, type(factor)) == (0.5, float)


@pytest.mark.parametrize("schedule", [lambda progress: 1 / 0, lambda progress: "half"])
def test_a_schedule_that_fails_is_the_workloads_error(schedule):
    with pytest.raises(WorkloadError, match=r"schedule\(\) raised"):
        workload(schedule=schedule).learning_rate_factor(3, 0)
