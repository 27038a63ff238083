"""The command line: what goes wrong ends in one message with a hint and a documented exit code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scaler.cli import main

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "recorded" / "digits-mock-2"
MOCK = str(ROOT / "cluster" / "mock-2.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


BAD = [
    (["tune"], "the following arguments are required: WORKLOAD"),
    (["tune", "digits"], "--cluster"),
    (["tun"], "invalid choice: 'tun'"),
    (["tune", "digit", "--cluster", MOCK], "did you mean 'digits'?"),
    (["tune", "absent.py:w", "--cluster", MOCK], "no such workload file: "),
    (["tune", "no.such.module:w", "--cluster", MOCK], "No module named"),
    (["tune", "digits", "--cluster", "absent.yaml"], "no such file: absent.yaml"),
    (["tune", "digits", "--cluster", MOCK, "--budget", "soon"], "'soon' is not a duration"),
    (["tune", "digits", "--cluster", MOCK, "--zero", "4"], "zero_stage"),
    (["tune", "digits", "--cluster", MOCK, "--seeds", "0"], "seeds"),
    (["tune", "digits", "--cluster", MOCK, "--seeds", "many"], "invalid int value"),
    (["tune", "digits", "--cluster", MOCK, "--resume", "--force"], "not allowed with argument"),
    (["tune", "digits", "--cluster", MOCK, "--resume"], "is not a run folder"),
    (["recommend", "absent"], "absent is not a run folder"),
    (["report", "absent"], "absent is not a run folder"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_exits_2_with_one_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("error: ") and "\nhint: " in err and "Traceback" not in err


def test_every_fault_of_a_cluster_file_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("worker: 2\nkind: gpu\ndevice_memory: -1\n", encoding="utf-8")
    assert main(["tune", "digits", "--cluster", "c.yaml"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'workers'?" in err and "workers: missing" in err
    assert "kind: " in err and "device_memory" in err


def test_an_out_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "thesis.tex").write_text("years", encoding="utf-8")
    for option in ([], ["--force"]):
        assert main(["tune", "digits", "--cluster", MOCK, "--out", "RUN", *option]) == 2
    assert (tmp_path / "RUN" / "thesis.tex").read_text(encoding="utf-8") == "years"
    assert "thesis.tex" in capsys.readouterr().err


def test_recommend_prints_json_to_stdout_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["recommend", "RUN", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["workload"] == "digits" and len(answer["answers"]) == 2
    assert "next: scaler report RUN" in err


def test_recommend_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["recommend", "RUN"]) == 0
    out = capsys.readouterr().out
    assert "micro-batch" in out and "\x1b" not in out


def test_report_prints_the_path_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RECORDED, tmp_path / "RUN")
    assert main(["report", "RUN"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_an_unexpected_fault_exits_1_and_keeps_its_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scaler.pipeline.recommend", lambda *_: 1 / 0)
    assert main(["recommend", "RUN"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "Traceback" not in err
    log = Path(err.split("the trace is in ")[1].split(";")[0])
    assert "1 / 0" in log.read_text(encoding="utf-8")
    log.unlink()


def test_version_and_help_need_neither_torch_nor_ray() -> None:
    code = "import sys, scaler.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "c.main(['--version']); print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "exit codes:" in done.stdout
