"""What a worker takes and how it talks, on a Ray cluster with faked GPUs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import questions
import ray
from questions import Question, ask

from scaler.cluster import Cluster
from scaler.errors import ClusterFailed
from scaler.runtime.protocol import Task
from scaler.runtime.ray import RayRuntime
from scaler.runtime.ray_cluster import MOCK_RESOURCE, ray_cluster
from scaler.runtime.worker_group import scaling

pytestmark = pytest.mark.integration

MOCK = Cluster(name="mock", workers=2, kind="mock", device_memory_bytes=2**26)
CUDA = Cluster(name="cuda", workers=2, kind="cuda")


@pytest.fixture(scope="module", autouse=True)
def faked_gpus() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=4,
        resources={MOCK_RESOURCE: 2},
        include_dashboard=False,
        _node_ip_address="127.0.0.2",
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    yield
    ray.shutdown()


def test_cuda_takes_one_gpu_a_worker_and_nccl() -> None:
    resources, torch_config = scaling(CUDA, 2)
    assert resources.use_gpu and resources.total_resources["GPU"] == 2
    assert torch_config.backend == "nccl"


def test_mock_and_cpu_take_no_gpu_and_gloo() -> None:
    for cluster in (MOCK, Cluster(name="cpu", workers=2, kind="cpu")):
        resources, torch_config = scaling(cluster, 2)
        assert not resources.use_gpu and "GPU" not in resources.total_resources
        assert torch_config.backend == "gloo"


def test_mock_workers_leave_every_gpu_free() -> None:
    with RayRuntime(MOCK, questions.workload) as runtime:
        (outcome,) = runtime.run([Task(ask, Question(1), workers=2)])
        assert outcome.record is not None
        free = ray.available_resources()
        assert free["GPU"] == 4
        assert free.get(MOCK_RESOURCE, 0) == 0
    assert ray.is_initialized(), "a connection of someone else's was closed"


def test_a_cluster_that_is_too_small_is_named_before_anything_hangs() -> None:
    big = Cluster(name="big", workers=(1, 8), kind="cuda")
    with pytest.raises(ClusterFailed, match=r"8 GPU \(it has 4\)"), ray_cluster(big, None, {}):
        pass
