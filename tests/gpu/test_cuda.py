"""In one process on one CUDA device: `pytest -m gpu`."""

from pathlib import Path

import pytest
import torch

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.device import open_device
from scaler.launch import LaunchConfig
from scaler.pipeline import tune
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.runtime.protocol import Rank
from scaler.workload import load_workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("micro_batch", [64, 1437])
def test_the_peak_holds_what_the_allocator_reserved_and_the_context(micro_batch: int) -> None:
    rank = Rank(0, 1, open_device(Cluster(workers=1, kind="cuda")))
    record = probe_memory(rank, load_workload("digits"), MemoryRequest(BatchPlan.equal(micro_batch, 1, 1)))
    reserved_bytes = torch.cuda.max_memory_reserved()
    assert record.peak_bytes is not None and record.capacity_bytes is not None
    assert reserved_bytes < record.peak_bytes < record.capacity_bytes


def test_digits_is_tuned_on_one_device(tmp_path: Path) -> None:
    launch = LaunchConfig(
        workload="digits",
        cluster=Cluster(name="one-gpu", workers=1, kind="cuda"),
        storage_path=str(tmp_path / "RUN"),
        runtime="local",
    )
    config = tune(launch)
    assert config.confirmation is not None and config.confirmation.reached
