"""Workloads from other libraries take the same steps however a batch is spread, and tune end to end."""

import pytest
import torch
from rank_processes import run_ranks, saved_by_ranks

from scaler import BatchPlan, Cluster, LaunchConfig, tune
from scaler.device import Device
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.workload import WorkloadRequest, probe_workload
from scaler.records import Prediction
from scaler.runtime.protocol import Rank
from scaler.trace.ask import ask_prediction
from scaler.trace.shape import Shape
from scaler.workload import load_workload

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

import library_cases  # noqa: E402

WORKLOADS = {"lightning": library_cases.points, "hugging face": library_cases.counting}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ended = run_ranks(library_cases.__file__, folder, 2, timeout_s=180)
    return saved_by_ranks(folder, [rank.output for rank in ended])


def whole(name):
    alone = Rank(0, 1, Device("cpu", None))
    return library_cases.train(WORKLOADS[name](), BatchPlan.equal(16, 1, 1), alone)


@pytest.mark.parametrize("name", WORKLOADS)
def test_accumulating_is_the_same_step(name):
    found = library_cases.train(WORKLOADS[name](), BatchPlan.equal(2, 8, 1), Rank(0, 1, Device("cpu", None)))
    assert torch.allclose(found, whole(name), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WORKLOADS)
def test_two_ranks_with_unequal_entries_are_the_same_step(ranks, name):
    for rank in ranks:
        assert torch.allclose(rank[name, "unequal"], whole(name), rtol=0, atol=1e-5)


FILE = """
from library_cases import counting, points

workload = {make}()
"""


@pytest.fixture
def address(tmp_path):
    """A function that writes a file with a workload in it, and gives the workload's address."""

    def write(make):
        (tmp_path / "train.py").write_text(FILE.format(make=make), encoding="utf-8")
        return f"{tmp_path / 'train.py'}:workload"

    return write


def test_tune_from_a_file(tmp_path, monkeypatch, address):
    nothing = Prediction(curves=(), confidence="low", notes=("not traced",))
    monkeypatch.setattr("scaler.probe.prediction.ask_prediction", lambda *_, **__: nothing)
    here = Cluster(name="one", workers=1, kind="mock", device_memory_bytes=2**24)
    plan = BatchPlan.equal(8, 2, 1)
    launch = LaunchConfig(
        workload=address("points"),
        cluster=here,
        storage_path=str(tmp_path / "RUN"),
        runtime="local",
        plan=plan,
        seeds=1,
    )
    config = tune(launch)
    assert config.chosen.plan == plan
    assert config.confirmation is not None and config.confirmation.reached


def test_a_file_answers_every_probe(address, ask, cluster, monkeypatch):
    workload, plan = load_workload(address("counting")), BatchPlan.equal(4, 2, 1)
    sizes = ask(workload, probe_workload, WorkloadRequest())
    assert (sizes.train_examples, sizes.optimizer) == (64, "AdamW")
    monkeypatch.setenv("WORLD_SIZE", "2")  # a worker's: TrainingArguments would wait for the other rank
    monkeypatch.setenv("RANK", "0")
    where = cluster(kind="mock", device_memory_bytes=2**24)
    predicted = ask_prediction(workload, where, [Shape(1, 0, accumulating=True)], [4])
    monkeypatch.undo()
    assert (predicted.confidence, predicted.notes) == ("high", ())
    measured = ask(workload, probe_memory, MemoryRequest(plan), kind="mock", device_memory_bytes=2**24)
    assert predicted.curves[0].bills[0].peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)
    trained = ask(workload, probe_convergence, ConvergenceRequest(plan, 0.01, 24, 80, seed=3))
    assert trained.stop == "reached"
