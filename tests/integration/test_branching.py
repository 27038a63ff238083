"""Branches on a real worker group: side by side, from a file that the workers read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import questions
import torch

from scaler.decide.config import BatchConfig
from scaler.records import BranchRecord
from scaler.runs import RunFolder

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def test_a_checkpoint_is_branched_on_two_workers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": questions.workload.model().state_dict(), "examples": 640}, tmp_path / "state.pt")
    workload = f"{Path(questions.__file__)}:workload"
    command = [
        sys.executable,
        "-m",
        "scaler",
        "tune",
        workload,
        "--cluster",
        str(ROOT / "cluster" / "mock-2.yaml"),
    ]
    command += ["--from-checkpoint", "state.pt", "--budget", "60s", "--seeds", "2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    config = BatchConfig.model_validate(json.loads(done.stdout))
    assert [answer.plan.workers for answer in config.answers] == [1, 2]
    assert all(answer.time_to_target_s is None for answer in config.answers)
    assert config.branching is not None and config.branching.start_examples == 640
    records = RunFolder.open(tmp_path / "RUN").records()
    branches = [record for record in records if isinstance(record, BranchRecord)]
    assert {record.plan.workers for record in branches} == {1}
    assert {record.seed for record in branches} == {1, 2}
    assert not any(record.kind in ("convergence", "confirmation") for record in records)
