"""Runs whose folder lies in object storage: whole tunes in this process, on servers that speak S3 and GCS."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from storage_servers import BUCKET, S3, be, gcs_server, s3_server

from scaler import BatchPlan, Cluster, LaunchConfig, Target, recommend, tune
from scaler.answers import report
from scaler.cli import main
from scaler.decide.config import BatchConfig
from scaler.engine.checkpoint import find_checkpoint, save_checkpoint
from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput, ClusterFailed, Interrupted, WorkloadError
from scaler.probe.branch import BranchRequest, probe_branch
from scaler.records import Prediction
from scaler.runs import RunFolder
from scaler.runtime.replay import ReplayRuntime

ROOT = Path(__file__).parents[2]
ONE = Cluster(name="one", workers=1, kind="mock", device_memory_bytes=2**20)
WRITTEN = {"launch.yaml", "records.jsonl", "batch-config.yaml", "report.html"}
QUESTIONS = """
import torch
from scaler import Reference, Target, Workload


def data():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True))


def loss(net, batch):
    return (net(batch[0]) - batch[1]).square().mean()


workload = Workload(
    name="plane",
    model=lambda: torch.nn.Linear(4, 1),
    train_data=data,
    eval_data=data,
    loss=loss,
    optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    metric=loss,
    target=Target(0.05, "min", max_examples=1_280, evaluate_every=32),
    reference=Reference(global_batch=8, learning_rate=0.05),
)
"""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep working copies in a folder of the test's own; trace nothing, which takes seconds."""
    be(monkeypatch)
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    monkeypatch.setattr("scaler.uploads._PAUSES_S", (0.0, 0.0))
    nothing = Prediction(curves=(), confidence="low", notes=("not traced",))
    monkeypatch.setattr("scaler.probe.prediction.ask_prediction", lambda *_, **__: nothing)
    return copies


def launch(url: str | Path, **fields: Any) -> LaunchConfig:
    """Ask about one plan only: a few records."""
    base: dict[str, Any] = {"workload": "tiny", "cluster": ONE, "storage_path": str(url), "runtime": "local"}
    return LaunchConfig(**{**base, "plan": BatchPlan.equal(8, 1, 1), "seeds": 2, **fields})


def after(calls: int, act: Callable[[], object]) -> Callable[[str, int, int], None]:
    """Do something while the run goes on: once it told of its progress so often."""
    count = 0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == calls:
            act()

    return progress


def copies(folder: Path) -> list[Path]:
    return list(folder.glob("scaler*"))


def lines(s3: S3, folder: str) -> int:
    return s3.read(folder, "records.jsonl").count(b"\n")


def test_a_run_lies_in_storage_and_nowhere_else(s3: S3, tiny: Any, elsewhere: Path) -> None:
    url = s3.url("deep/run")
    config = tune(launch(url), workload=tiny())
    assert s3.names("deep/run") == WRITTEN and copies(elsewhere) == []
    written = yaml.safe_load(s3.read("deep/run", "batch-config.yaml"))
    assert BatchConfig.model_validate(written) == config
    assert recommend(url) == config == BatchConfig.load(url)
    assert report(url) == f"s3://{BUCKET}/deep/run/report.html?{url.partition('?')[2]}"
    assert tune(launch(url), workload=tiny(), runtime=ReplayRuntime([], 1), resume=True) == config
    assert copies(elsewhere) == []


def test_a_run_in_google_storage(tiny: Any, tmp_path: Path, elsewhere: Path) -> None:
    with gcs_server(tmp_path) as options:
        url = f"gs://anonymous@{BUCKET}/run?{options}"
        config = tune(launch(url), workload=tiny())
        assert recommend(url) == config
        assert tune(launch(url), workload=tiny(), runtime=ReplayRuntime([], 1), resume=True) == config
    assert copies(elsewhere) == []


def test_every_command_takes_a_url(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plane.py").write_text(QUESTIONS, encoding="utf-8")
    Path("one.yaml").write_text("name: one\nworkers: 1\nkind: cpu\n", encoding="utf-8")
    Path("other.yaml").write_text("name: an other\nworkers: 1\nkind: cpu\n", encoding="utf-8")
    url = s3.url("told")

    def said(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return "".join(capsys.readouterr())

    told = said("tune", "plane.py:workload", "--cluster", "one.yaml", "--local", "--seeds", "1", "--out", url)
    page = f"s3://{BUCKET}/told/report.html?"
    assert f"report: {page}" in told and f"next: scaler explain '{url}'" in told
    assert f"recommend '{url}'" in said("explain", url)
    told = said("recommend", url, "--cluster", "other.yaml")
    assert "told/batch-config-an-other.yaml" in told
    assert s3.names("told") == {*WRITTEN, "batch-config-an-other.yaml"}
    assert page in said("report", url)
    assert "torchrun" in said("export", url, "--to", "torchrun")
    regimes = ["regimes", "plane.py:workload", "--budget", "2s", "--out", s3.url("regimes")]
    assert f"s3://{BUCKET}/regimes/regimes.html" in said(*regimes)
    assert s3.names("regimes") == {"launch.yaml", "records.jsonl", "regimes.html"}
    assert "s3:" not in {path.name for path in tmp_path.iterdir()}


def test_records_go_up_as_they_come(s3: S3, tiny: Any, elsewhere: Path) -> None:
    def seen() -> None:
        (copy,) = copies(elsewhere)
        taken = (copy / "records.jsonl").read_bytes()
        for _ in range(600):
            if s3.read("growing", "records.jsonl") == taken:
                return
            time.sleep(0.1)
        raise AssertionError("what was taken does not lie in storage")

    tune(launch(s3.url("growing")), workload=tiny(), progress=after(8, seen))


def test_an_interrupted_run_is_resumed_from_storage(s3: S3, tiny: Any, elsewhere: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        tune(launch(s3.url("cut")), workload=tiny(), progress=after(4, stop))
    kept = s3.read("cut", "records.jsonl")
    assert kept.count(b"\n") >= 2 and copies(elsewhere) == []
    s3.put("cut", "records.jsonl", kept + b'{"kind": "mem')  # as a machine that died leaves it
    tune(launch(s3.url("cut")), workload=tiny(), resume=True)
    assert s3.names("cut") == WRITTEN
    assert s3.read("cut", "records.jsonl").startswith(kept)
    assert len(RunFolder.open(s3.url("cut")).records()) == lines(s3, "cut")


def test_a_run_in_storage_is_overwritten_only_by_force(s3: S3, elsewhere: Path) -> None:
    for name in (*WRITTEN, "checkpoint.pt"):
        s3.put("old", name, b"old")
    with pytest.raises(BadInput, match="not empty"):
        RunFolder.create(s3.url("old"))
    RunFolder.create(s3.url("old"), force=True)
    assert s3.names("old") == set()
    s3.put("old", "launch.yaml", b"old")
    s3.put("old", "thesis.tex", b"years")
    with pytest.raises(BadInput, match=r"not of a run: thesis\.tex"):
        RunFolder.create(s3.url("old"), force=True)
    assert s3.names("old") == {"launch.yaml", "thesis.tex"}
    with pytest.raises(BadInput, match="is not a run folder"):
        RunFolder.open(s3.url("absent"))


def test_storage_without_permission_is_found_before_anything_is_measured(
    s3: S3, tiny: Any, elsewhere: Path
) -> None:
    def measured() -> None:
        raise AssertionError

    def refused() -> BadInput:
        with pytest.raises(BadInput, match="no permission for s3://") as raised:
            tune(launch(s3.url("theirs")), workload=tiny(), progress=after(1, measured))
        assert copies(elsewhere) == []
        return raised.value

    s3.deny_writing("theirs")
    assert "may list, read, write and delete" in refused().hint
    s3.allow_all()
    with s3.letting_nobody_in():
        refused()


def test_resuming_without_permission_to_write(s3: S3, tiny: Any, elsewhere: Path) -> None:
    tune(launch(s3.url("readable")), workload=tiny())
    config = recommend(s3.url("readable"))
    s3.deny_writing("readable")
    with pytest.raises(BadInput, match="no permission"):
        tune(launch(s3.url("readable")), workload=tiny(), resume=True)
    assert copies(elsewhere) == []
    assert recommend(s3.url("readable")) == config, "reading is enough to decide again"
    s3.allow_all()


def test_storage_that_fails_meanwhile_loses_nothing(s3: S3, tiny: Any, elsewhere: Path) -> None:
    said: list[str] = []
    with pytest.raises(BadInput, match="no permission") as raised:
        tune(
            launch(s3.url("closed")),
            workload=tiny(),
            progress=after(3, lambda: s3.deny_writing("closed")),
            notice=said.append,
        )
    s3.allow_all()
    (copy,) = copies(elsewhere)
    assert str(copy) in raised.value.message and f"--out {copy} --resume" in raised.value.hint
    assert {path.name for path in copy.iterdir()} == WRITTEN
    assert any(str(copy) in line and "no permission" in line for line in said)
    config = tune(launch(copy), workload=tiny(), runtime=ReplayRuntime([], 1), resume=True)
    assert config == recommend(copy) and config.confirmation is not None


def test_storage_that_comes_back_gets_everything(s3: S3, tiny: Any, elsewhere: Path) -> None:
    deny, allow = after(2, lambda: s3.deny_writing("back")), after(5, s3.allow_all)

    def progress(phase: str, done: int, total: int) -> None:
        deny(phase, done, total)
        allow(phase, done, total)

    config = tune(launch(s3.url("back")), workload=tiny(), progress=progress)
    assert recommend(s3.url("back")) == config
    assert s3.names("back") == WRITTEN and copies(elsewhere) == []


def test_a_server_that_is_lost_meanwhile(
    tiny: Any, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler.storage._ATTEMPTS", 1)
    with s3_server(tmp_path) as lost, pytest.raises(ClusterFailed, match="does not answer") as raised:
        tune(launch(lost.url("run")), workload=tiny(), progress=after(3, lost.child.terminate))
    assert raised.value.exit_code == 5
    (copy,) = copies(elsewhere)
    assert recommend(copy).confirmation is not None


def test_the_failure_of_a_run_comes_before_that_of_its_storage(s3: S3, elsewhere: Path) -> None:
    run = RunFolder.create(s3.url("both"))
    s3.deny_writing("both")
    with (
        pytest.raises(WorkloadError, match=r"^loss raised\nno permission for (.|\n)* is kept in") as raised,
        run,
    ):
        run.write(run.fault_log, "where")
        raise WorkloadError("loss raised", hint="mend it")
    s3.allow_all()
    assert raised.value.hint == "mend it" and run.fault_log.read_text(encoding="utf-8") == "where"


def test_workers_keep_a_state_in_storage(s3: S3, tiny: Any, rank: Any) -> None:
    engine = TorchEngine(tiny(), BatchPlan.equal(8, 1, 1), rank, 0.1, 0)
    url = s3.url("state/checkpoint.pt")
    assert find_checkpoint(url) is None
    save_checkpoint(engine, url, 40)
    found = find_checkpoint(url)
    assert found is not None and found.examples == 40 and found.path == url
    assert all(torch.equal(found.model[key], value) for key, value in engine.module.state_dict().items())
    save_checkpoint(engine, s3.url("state/checkpoint.pt", bucket="absent"), 40)  # branches train it again
    assert s3.names("state") == {"checkpoint.pt"}


def test_a_reference_leaves_its_state_in_storage_and_branches_find_it(s3: S3, tiny: Any, ask: Any) -> None:
    far = tiny(target=Target(-1.0, "min", max_examples=256, evaluate_every=64))
    tune(launch(s3.url("far"), plan=None, budget="20s"), workload=far)
    assert s3.names("far") == {*WRITTEN, "checkpoint.pt"}

    def branch(url: str) -> Any:
        plan, reference = BatchPlan.equal(16, 1, 1), far.reference
        request = BranchRequest(
            plan=plan,
            learning_rate=0.05,
            rate_rule="linear",
            reference_batch=reference.global_batch,
            reference_rate=reference.learning_rate,
            examples=64,
            points=4,
            held_out_examples=16,
            rewarm_examples=0,
            start_examples=256,
            seed=1,
            checkpoint=url,
        )
        return ask(far, probe_branch, request)

    found = branch(s3.url("far/checkpoint.pt"))
    again = branch(s3.url("far/checkpoint.pt", bucket="absent"))  # trained again
    assert found.losses == again.losses
