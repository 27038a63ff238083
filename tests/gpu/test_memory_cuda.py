"""Predicted device memory against what one CUDA device shows: `pytest -m gpu`. Prints the figures."""

import dataclasses

import pytest
import torch

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.device import open_device
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.runtime.protocol import Rank
from scaler.trace.predict import Predictor
from scaler.trace.shape import Shape
from scaler.workload import Workload, load_workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

# Tracing replaces kernels of the CPU only, so that it runs beside real CUDA work in one process.
CASES = [
    ("gpt2", "bf16", 4),
    ("gpt2", "bf16", 16),
    ("gpt2", "fp32", 4),
    ("resnet50", "bf16", 64),
    ("resnet50", "fp16", 128),
    ("resnet50", "fp32", 64),
]


def device_cluster(rank: Rank, **changes) -> Cluster:
    assert rank.device.compute_capability is not None
    return Cluster(
        workers=1,
        kind="cuda",
        device_memory=rank.device.capacity_bytes,
        compute_capability=rank.device.compute_capability,
        **changes,
    )


def measured(rank: Rank, workload: Workload, micro_batch: int, zero_stage: int = 0):
    plan = BatchPlan.equal(micro_batch, 1, 1, zero_stage)
    return probe_memory(rank, workload, MemoryRequest(plan))


@pytest.fixture
def rank() -> Rank:
    return Rank(0, 1, open_device(Cluster(workers=1, kind="cuda")))


@pytest.mark.parametrize(("name", "precision", "micro_batch"), CASES)
def test_the_predicted_peak_is_near_what_the_device_reserves(rank, name, precision, micro_batch, capsys):
    workload = dataclasses.replace(load_workload(name), precision=precision)
    seen = measured(rank, workload, micro_batch)
    predicted = Predictor(workload, device_cluster(rank)).peak(Shape(workers=1), micro_batch)
    reserved_bytes = seen.peak_bytes - seen.outside_bytes
    with capsys.disabled():
        print(
            f"\n{rank.device.name}, torch {torch.__version__}, {name} {precision} micro-batch {micro_batch}: "
            f"reserved {reserved_bytes / 2**20:.0f} MiB, "
            f"predicted {predicted.reserved_bytes / 2**20:.0f} MiB "
            f"({predicted.reserved_bytes / reserved_bytes - 1:+.1%}); context "
            f"{seen.outside_bytes / 2**20:.0f} MiB, predicted {predicted.items['context'] / 2**20:.0f} MiB"
        )
    assert predicted.reserved_bytes == pytest.approx(reserved_bytes, rel=0.10)


@pytest.mark.parametrize(("name", "memory_gib"), [("gpt2", 16), ("resnet50", 8)])
def test_the_found_micro_batch_is_that_of_exhaustive_search(rank, name, memory_gib, capsys):
    workload = load_workload(name)
    cluster = device_cluster(rank).model_copy(update={"device_memory_bytes": memory_gib * 2**30})
    found = Predictor(workload, cluster).max_micro_batch(Shape(workers=1))

    def fits(micro_batch: int) -> bool:
        peak = measured(rank, workload, micro_batch).peak_bytes
        return peak is not None and cluster.fits(peak, memory_gib * 2**30)

    truth = found
    while not fits(truth):
        truth -= 1
    while fits(truth + 1):
        truth += 1
    with capsys.disabled():
        print(f"\n{name} in {memory_gib} GiB: predicted {found}, exhaustive {truth}")
    assert found == pytest.approx(truth, rel=0.06)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_zero_stage_on_one_rank_is_near_its_prediction(rank, zero_stage, capsys, tmp_path):
    pytest.importorskip("deepspeed")
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        workload = load_workload("gpt2")
        seen = measured(rank, workload, 4, zero_stage)
        predicted = Predictor(workload, device_cluster(rank)).peak(Shape(1, zero_stage), 4)
    finally:
        torch.distributed.destroy_process_group()
    reserved_bytes = seen.peak_bytes - seen.outside_bytes
    with capsys.disabled():
        print(
            f"\ngpt2 bf16 micro-batch 4, ZeRO {zero_stage}, one rank: reserved {reserved_bytes / 2**20:.0f} "
            f"MiB, predicted {predicted.reserved_bytes / 2**20:.0f} MiB"
        )
    assert predicted.reserved_bytes == pytest.approx(reserved_bytes, rel=0.15)
