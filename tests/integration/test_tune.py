"""`scaler tune` as a user runs it: their own file, a real Ray cluster, an interruption, a continuation."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scaler.decide.config import BatchConfig
from scaler.records import ConvergenceRecord
from scaler.runs import RunFolder

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
WORKLOAD = f"{Path(__file__).parent / 'questions.py'}:workload"
TUNE = [sys.executable, "-m", "scaler", "tune", WORKLOAD, "--cluster", str(ROOT / "cluster" / "mock-2.yaml")]
OPTIONS = ["--out", "RUN", "--seeds", "2"]


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


def test_an_interrupted_run_keeps_its_records(folder: Path) -> None:
    process = subprocess.Popen(
        [*TUNE, *OPTIONS],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    records = folder / "RUN" / "records.jsonl"
    deadline = time.monotonic() + 200
    while not records.exists() or records.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    assert "error: interrupted" in stderr and "--resume" in stderr and "Traceback" not in stderr
    assert len(RunFolder.open(folder / "RUN").records()) >= 5


def test_it_resumes_to_an_answer(folder: Path) -> None:
    before = RunFolder.open(folder / "RUN").records()
    done = run([*TUNE, *OPTIONS, "--resume", "--json"], folder)
    assert done.returncode == 0, done.stderr
    config = BatchConfig.model_validate(json.loads(done.stdout))
    assert [a.plan.workers for a in config.answers] == [1, 2]
    assert config.confirmation is not None and config.confirmation.reached
    assert yaml.safe_load((folder / "RUN" / "batch-config.yaml").read_text()) == json.loads(done.stdout)
    records = RunFolder.open(folder / "RUN").records()
    assert records[: len(before)] == before
    assert len({r.task for r in records}) == len(records)
    assert {r.kind for r in records} == {
        "workload",
        "prediction",
        "memory",
        "throughput",
        "powers",
        "noise",
        "convergence",
        "warmup",
        "confirmation",
    }
    assert all(r.plan.workers == 1 for r in records if type(r) is ConvergenceRecord)
    last = [line for line in done.stderr.splitlines() if line]
    assert last[-1].startswith("next: scaler ") and "report.html" in last[-3]


def test_a_complete_run_resumes_without_starting_ray(folder: Path) -> None:
    before = (folder / "RUN" / "records.jsonl").read_bytes()
    done = run([*TUNE, *OPTIONS, "--resume"], folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "RUN" / "records.jsonl").read_bytes() == before


def test_a_function_that_raises_on_a_worker_exits_2(folder: Path) -> None:
    bad = folder / "bad.py"
    bad.write_text(
        "import dataclasses, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import questions\n"
        "def loss(net, batch):\n"
        "    return batch['pixels']\n"
        "workload = dataclasses.replace(questions.workload, loss=loss)\n",
        encoding="utf-8",
    )
    command = [*TUNE[:4], "bad.py:workload", *TUNE[5:], "--out", "BAD"]
    done = run(command, folder)
    assert done.returncode == 2, done.stderr
    assert "loss() raised TypeError" in done.stderr and "bad.py:5" in done.stderr
    assert "hint: " in done.stderr and "Traceback" not in done.stderr
    assert RunFolder.open(folder / "BAD").records(), "the sizes were measured before and are kept"


def test_the_launch_entry_runs_a_launch_file(folder: Path) -> None:
    (folder / "launch.yaml").write_text(
        f"workload: {WORKLOAD}\ncluster: {ROOT / 'cluster' / 'mock-2.yaml'}\nstorage_path: LAUNCHED\n"
        "seeds: 1\nzero_stage: 1\nplan: {micro_batch: 16, workers: 2, zero_stage: 1}\n",
        encoding="utf-8",
    )
    entry = [sys.executable, str(ROOT / "launch" / "tune.py"), "--launch", "launch.yaml", "--json"]
    done = subprocess.run(
        entry, cwd=folder, capture_output=True, text=True, timeout=280, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stderr
    config = BatchConfig.model_validate(json.loads(done.stdout))
    assert config.chosen.plan.zero_stage == 1 and config.chosen.plan.workers == 2
    assert config.confirmation is not None and config.confirmation.reached
