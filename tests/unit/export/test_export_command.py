"""`scaler export`: what it reads, what it writes and where."""

import json
from pathlib import Path

import pytest
from export_cases import UNEQUAL, config_of

from scaler.batch import BatchPlan
from scaler.cli import main
from scaler.decide.config import BatchConfig
from scaler.export.targets import TARGETS
from scaler.launch import LaunchConfig
from scaler.runs import RunFolder

PAGE = Path(__file__).parents[3] / "docs" / "export.md"
CONFIG = config_of(BatchPlan.equal(64, 2, 2), BatchPlan.equal(128, 2, 1), workers=2)


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    return write("RUN", CONFIG)


def write(path: str, config: BatchConfig) -> RunFolder:
    folder = RunFolder.create(path)
    launch = LaunchConfig(workload="mine/train.py:workload", cluster=config.cluster)
    folder.launch.write_text(launch.to_yaml(), encoding="utf-8")
    folder.batch_config.write_text(config.to_yaml(), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_printed_and_says_how_it_is_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "RUN", "--to", name]) == 0
    out, err = capsys.readouterr()
    assert "64" in out and err.startswith("\nnext: ")


def test_help_and_the_page_name_every_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # no name is broken at its hyphen
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in TARGETS if name not in words or f"`{name}`" not in page] == []


def test_the_answer_of_another_worker_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "RUN", "--to", "deepspeed", "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["train_micro_batch_size_per_gpu"] == 128


def test_a_file_of_the_run_does_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for source in ("RUN", "RUN/batch-config.yaml"):
        assert main(["export", source, "--to", "ray"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and 'load_workload("mine/train.py:workload")' in texts[0]


def test_it_is_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.sh").write_text("an older one", encoding="utf-8")
    arguments = ["export", "RUN", "--to", "torchrun", "--script", "mine.py", "--out", "job.sh"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == "" and err == "\nnext: sh job.sh\n"
    assert 'mine.py "$@"' in (tmp_path / "job.sh").read_text(encoding="utf-8")


BAD = [
    (["RUN", "--to", "deepsped"], "no export named 'deepsped'; did you mean 'deepspeed'?"),
    (["RUN"], "--to"),
    (["absent", "--to", "ray"], "absent is not a run folder"),
    (["RUN", "--to", "ray", "--workers", "7"], "there is no answer for 7 workers"),
    (["RUN", "--to", "ray", "--workers", "0"], "there is no answer for 0 workers"),
    (["RUN", "--to", "ray", "--out", "no/such/folder.py"], "cannot write no/such/folder.py"),
    (["RUN", "--to", "ray", "--out", "RUN"], "cannot write RUN"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_exits_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and "\nhint: " in err and "Traceback" not in err


def test_nothing_is_written_where_the_tool_has_no_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("ODD", config_of(UNEQUAL, workers=2))
    assert main(["export", "ODD", "--to", "deepspeed", "--out", "ds.json"]) == 2
    assert "micro_batches: 719, 718" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ODD", "RUN"]


CHANGES = [
    ("global_batch: 256", "global_batch: 255", "global_batch = 255, but"),
    ("accumulation: 2", "accumulations: 2", "accumulations"),
    ("chosen_workers: 2", "chosen_workers: 3", "there is no answer for 3 workers"),
    ("  - 2\n", "  - 1\n", "the answer is for 2, and cluster 'here' has at most 1"),
]


@pytest.mark.parametrize(("old", "new", "says"), CHANGES)
def test_a_file_that_breaks_the_identity_is_refused(
    run: RunFolder, old: str, new: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run.batch_config.read_text(encoding="utf-8")
    assert old in text
    run.batch_config.write_text(text.replace(old, new), encoding="utf-8")
    assert main(["export", "RUN", "--to", "ray"]) == 2
    assert says in capsys.readouterr().err
