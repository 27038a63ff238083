"""The largest micro-batch found on real worker groups, against devices that take more than is predicted."""

from pathlib import Path

import pytest

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.fit.memory import MemoryFits
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence, plan_task
from scaler.measure.memory import measure_memory
from scaler.measure.stages import ask_sizes
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.records import MemoryRecord
from scaler.runs import RunFolder
from scaler.runtime.ray import RayRuntime
from scaler.workload import load_workload

pytestmark = pytest.mark.integration

KIB = 2**10


def too_large(evidence: Evidence, plan: BatchPlan) -> bool:
    (record,) = evidence.ask("truth", [plan_task(probe_memory, MemoryRequest(plan))])
    assert isinstance(record, MemoryRecord)
    return record.too_large


def measured(evidence: Evidence, cluster: Cluster) -> MemoryFits:
    launch = LaunchConfig(workload="digits", cluster=cluster)
    return measure_memory(evidence, launch, ask_sizes(evidence), list(cluster.worker_counts), [32, 1024])


def probes(evidence: Evidence, workers: int) -> list[MemoryRecord]:
    memory = [r for r in evidence.records if isinstance(r, MemoryRecord)]
    return [r for r in memory if r.plan.workers == workers and r.plan.accumulation == 1]


def test_what_is_found_fits_a_biased_device_and_one_more_does_not(tmp_path: Path) -> None:
    concealed = {"share": 0.06, "step_at": 200 * KIB, "step_share": 0.03}
    cluster = Cluster(workers=(1, 2), kind="mock", device_memory=700 * KIB, margin=0.0, concealed=concealed)
    with RayRuntime(cluster, load_workload("digits")) as runtime:
        evidence = Evidence(runtime, RunFolder.create(str(tmp_path / "RUN"), force=False), None)
        fits = measured(evidence, cluster)
        for workers in (1, 2):
            taken = probes(evidence, workers)
            found = fits[0, workers].max_micro_batch(cluster)
            assert len(taken) <= 3 and not any(record.out_of_memory for record in taken)
            assert not too_large(evidence, BatchPlan.equal(found, 1, workers))
            assert too_large(evidence, BatchPlan.equal(found + 1, 1, workers))


@pytest.mark.slow
def test_unequal_devices_each_get_what_fits_them(tmp_path: Path) -> None:
    devices = [
        {"device": "small", "workers": 1, "device_memory": 400 * KIB},
        {"device": "large", "workers": 1, "device_memory": 800 * KIB},
    ]
    cluster = Cluster(workers=2, kind="mock", devices=devices, margin=0.0)
    with RayRuntime(cluster, load_workload("digits")) as runtime:
        evidence = Evidence(runtime, RunFolder.create(str(tmp_path / "RUN"), force=False), None)
        fit = measured(evidence, cluster)[0, 2]
        small, large = (fit.max_micro_batch(cluster, 1, cluster.capacity_bytes(rank)) for rank in (0, 1))
        assert large > 2 * small
        assert not too_large(evidence, BatchPlan(micro_batches=(small, large)))
        assert too_large(evidence, BatchPlan(micro_batches=(small + 1, large)))
        assert too_large(evidence, BatchPlan(micro_batches=(small, large + 1)))
