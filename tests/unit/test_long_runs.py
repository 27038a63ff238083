"""tune() where no run to the target fits: from the question to the report, in this process."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import TensorDataset

from scaler import LaunchConfig, Reference, Target, Workload, recommend, tune
from scaler.answers import report
from scaler.cli import main
from scaler.cluster import Cluster
from scaler.decide.config import BatchConfig
from scaler.errors import BadInput
from scaler.records import ConvergenceRecord, Prediction
from scaler.runs import RunFolder
from scaler.runtime.replay import ReplayRuntime

ONE = Cluster(name="one", workers=1, kind="mock", device_memory_bytes=2**20)


def points(n: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return TensorDataset(x, x.sum(dim=1, keepdim=True) + torch.randn(n, 1, generator=generator))


def error(net: nn.Module, batch: Any) -> torch.Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def far(**fields: Any) -> Workload:
    """A squared error that noise keeps above 1: the target is out of reach."""
    base: dict[str, Any] = {
        "name": "far",
        "model": lambda: nn.Linear(4, 1),
        "train_data": lambda: points(2048, 0),
        "eval_data": lambda: points(128, 1),
        "loss": error,
        "optimizer": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
        "metric": error,
        "target": Target(0.1, "min", max_examples=1_024, evaluate_every=256),
        "reference": Reference(global_batch=8, learning_rate=0.003),
    }
    return Workload(**{**base, **fields})


def launch(path: Path, **fields: Any) -> LaunchConfig:
    base: dict[str, Any] = {"workload": "far", "cluster": ONE, "storage_path": str(path), "seeds": 2}
    return LaunchConfig(**{**base, "runtime": "local", **fields})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tracing takes seconds, step times need not be known well, and threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    nothing = Prediction(curves=(), confidence="low", notes=("not traced",))
    monkeypatch.setattr("scaler.probe.prediction.ask_prediction", lambda *_, **__: nothing)
    monkeypatch.setattr("scaler.measure.throughput.MOST_LAUNCHES", 4)
    monkeypatch.setattr("scaler.measure.stages._SMALLEST_POWER", 10**6)
    for measuring in ("engine.clock", "probe.throughput"):
        monkeypatch.setattr(f"scaler.{measuring}.time", Ticking())
    yield
    torch.set_num_threads(threads)


class Ticking:
    """A clock that goes on by a millisecond whenever it is read, so that every step takes as long."""

    def __init__(self) -> None:
        self._reads = itertools.count()

    def perf_counter(self) -> float:
        return next(self._reads) / 1e3


@pytest.fixture
def state(tmp_path: Path) -> str:
    torch.manual_seed(1)
    torch.save(nn.Linear(4, 1).state_dict(), tmp_path / "state.pt")
    return str(tmp_path / "state.pt")


def test_a_target_out_of_reach_gives_the_largest_batch_that_does_not_lose(tmp_path: Path) -> None:
    config = tune(launch(tmp_path / "RUN"), workload=far())
    chosen, found = config.chosen, config.branching
    assert found is not None and found.start_examples == 1_024
    assert chosen.plan.global_batch == found.best.global_batch
    assert chosen.learning_rate == found.best.learning_rate
    assert chosen.time_to_target_s is None and chosen.examples_to_target is None
    assert (chosen.relative_time is None) is (chosen.plan.global_batch == 8)
    written = yaml.safe_load((tmp_path / "RUN" / "batch-config.yaml").read_text())
    assert BatchConfig.model_validate(written) == config
    assert "time_to_target_s" not in written["answers"][0]
    assert "Which batch does not lose" in (tmp_path / "RUN" / "report.html").read_text()
    assert {p.name for p in (tmp_path / "RUN").iterdir()} == {
        "launch.yaml",
        "records.jsonl",
        "batch-config.yaml",
        "report.html",
        "checkpoint.pt",
    }
    tune(launch(tmp_path / "RUN"), workload=far(), force=True)  # a checkpoint is part of a run


def test_a_checkpoint_is_branched_and_nothing_is_trained_to_the_target(tmp_path: Path, state: str) -> None:
    asked = launch(tmp_path / "RUN", from_checkpoint=state)
    config = tune(asked, workload=far())
    records = RunFolder.open(tmp_path / "RUN").records()
    assert not any(isinstance(record, ConvergenceRecord) for record in records)
    assert config.branching is not None and config.branching.start_examples is None
    assert config.branching.rewarm_examples > 0  # Adam's state was not saved
    assert any("no optimizer state" in note for note in config.findings.notes)
    if config.chosen.bound_by != "no evidence":
        assert config.confirmation is not None and config.confirmation.reached is None
    Path(state).unlink()  # what was measured is enough
    assert tune(asked, workload=far(), runtime=ReplayRuntime([], 1), resume=True) == config
    assert recommend(tmp_path / "RUN") == config
    assert report(tmp_path / "RUN").is_file()


def test_a_resumed_run_must_agree_on_the_checkpoint(tmp_path: Path, state: str) -> None:
    tune(launch(tmp_path / "RUN", from_checkpoint=state), workload=far())
    with pytest.raises(BadInput, match="made with another from_checkpoint"):
        tune(launch(tmp_path / "RUN"), workload=far(), resume=True)


def test_batch_statistics_are_measured_with_the_micro_batch_that_will_be_used(tmp_path: Path) -> None:
    config = tune(launch(tmp_path / "RUN"), workload=far(model=normalised))
    assert "batch statistics (1)" in config.chosen.reasons["spread"]
    assert "that will be used" in config.chosen.reasons["spread"]


WORKLOAD = """
import sys
sys.path.insert(0, {folder!r})
import test_long_runs
workload = test_long_runs.far()
"""


@pytest.mark.parametrize("exists", [True, False])
def test_the_command_line_branches_a_file_of_the_current_folder(
    tmp_path: Path,
    state: str,
    exists: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.py").write_text(WORKLOAD.format(folder=str(Path(__file__).parent)), encoding="utf-8")
    (tmp_path / "c.yaml").write_text("workers: 1\nkind: cpu\n", encoding="utf-8")
    name = "state.pt" if exists else "sate.pt"
    command = f"tune w.py:workload --cluster c.yaml --local --seeds 2 --from-checkpoint {name} --budget 10m"
    code = main([*command.split(), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if not exists:
        assert code == 2 and "no such checkpoint" in err and "hint:" in err
        return
    assert code == 0, err
    assert json.loads(out)["branching"]["reference_batch"] == 8
    assert LaunchConfig.load(tmp_path / "RUN" / "launch.yaml").from_checkpoint == state
