"""`scaler regimes`, from the command line to the page."""

import json
from pathlib import Path

import pytest

from scaler.cli import main
from scaler.records import RegimesRecord
from scaler.runs import RunFolder

WORKLOAD = """
import torch
from scaler import Reference, Target, Workload

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 4, generator=generator)
    noise = torch.randn(70, 1, generator=generator)
    return torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True) + noise)

def loss(net, batch):
    return torch.nn.functional.mse_loss(net(batch[0]), batch[1])

workload = Workload(
    name="line", model=lambda: torch.nn.Linear(4, 1), train_data=data, eval_data=data, loss=loss, metric=loss,
    optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    target=Target(1.5, "min"), reference=Reference(64, 0.1),
)
"""
COMMAND = ["regimes", "line.py:workload", "--budget", "10m"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the workload and a finished run in REGIMES."""
    path = tmp_path_factory.mktemp("regimes")
    (path / "line.py").write_text(WORKLOAD, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(COMMAND) == 0
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_the_run_folder_holds_the_record_and_the_page(folder: Path) -> None:
    (record,) = RunFolder.open(folder / "REGIMES").records()
    assert isinstance(record, RegimesRecord)
    assert [r.plan.global_batch for r in record.regimes] == [1, 1, 64, 70]
    page = (folder / "REGIMES" / "regimes.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 4 and "batch 70 (full batch)" in page


def test_resuming_asks_nothing_again_and_prints_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = RunFolder.open("REGIMES").records()
    assert main([*COMMAND, "--resume", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert [(r["batch"], r["rate_factor"]) for r in data["regimes"]] == [(1, 1), (1, 0.1), (64, 1), (70, 1)]
    assert RunFolder.open("REGIMES").records() == before
    report, following = err.strip().splitlines()[-2:]
    assert report.endswith("regimes.html") and following.startswith("next: scaler tune line.py:workload")


def test_report_writes_the_page_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "REGIMES" / "regimes.html"
    text = page.read_text(encoding="utf-8")
    page.unlink()
    assert main(["report", "REGIMES"]) == 0
    assert Path(capsys.readouterr().out.strip()) == page
    assert page.read_text(encoding="utf-8") == text


def test_an_earlier_run_is_kept_unless_forced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMAND) == 2
    assert "--force" in capsys.readouterr().err
    assert len(RunFolder.open("REGIMES").records()) == 1


def test_there_is_no_recommendation_from_regimes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "REGIMES"]) == 2
    assert "hint: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digit"], "did you mean 'digits'?"),
        (["digits", "--budget", "soon"], "'soon' is not a duration"),
        (["line.py:workload", "--budget", "1us"], "too short"),
        (["digits", "--cluster", "absent.yaml"], "no such file: absent.yaml"),
        (["digits", "--resume", "--out", "NOWHERE"], "is not a run folder"),
    ],
)
def test_bad_input_exits_2_with_a_hint(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "RUN")]
    assert main(["regimes", *arguments, *out]) == 2
    printed, err = capsys.readouterr()
    assert printed == "" and says in err and "\nhint: " in err


def test_a_cluster_file_is_used_without_ray_if_local(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.yaml").write_text("workers: 1\nkind: mock\ndevice_memory: 64MiB\n", encoding="utf-8")
    command = [*COMMAND, "--cluster", str(tmp_path / "one.yaml"), "--local", "--out", str(tmp_path / "RUN")]
    assert main(command) == 0
    (record,) = RunFolder.open(tmp_path / "RUN").records()
    assert record.environment.device == "mock"
    assert f"--cluster {tmp_path / 'one.yaml'}" in capsys.readouterr().err


def test_a_fault_leaves_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler.probe.regimes.regime_sizes", lambda examples: 1 / 0)
    assert main([*COMMAND, "--out", str(tmp_path / "RUN")]) == 1
    assert "ZeroDivisionError" in (tmp_path / "RUN" / "fault.log").read_text(encoding="utf-8")
