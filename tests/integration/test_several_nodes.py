"""A Ray cluster of several nodes on this machine runs the whole tune; where its ranks were is recorded."""

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from scaler.cluster import Cluster
from scaler.decide.config import BatchConfig
from scaler.errors import ClusterFailed
from scaler.launch import Budget, LaunchConfig
from scaler.pipeline import tune
from scaler.records import NoiseRecord, ThroughputRecord
from scaler.runs import RunFolder
from scaler.runtime.protocol import Task
from scaler.runtime.ray import RayRuntime
from scaler.runtime.ray_cluster import MOCK_RESOURCE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NODES = ("127.0.0.3", "127.0.0.4")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A head without devices and two nodes with two each."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GLOO_SOCKET_IFNAME", "lo")
    head = {"num_cpus": 1, "num_gpus": 0, "node_ip_address": "127.0.0.5", "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    for own in NODES:
        nodes.add_node(num_cpus=3, num_gpus=0, resources={MOCK_RESOURCE: 2}, node_ip_address=own)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()
    patch.undo()


def cluster(workers, nodes):
    return Cluster(name="nodes", workers=workers, nodes=nodes, kind="mock", device_memory_bytes=2**21)


def test_the_whole_tune_runs_across_nodes(address, tmp_path):
    launch = LaunchConfig(
        workload="digits",
        cluster=cluster((1, 4), 2),
        storage_path=str(tmp_path / "RUN"),
        budget=Budget(seconds=60),
        seeds=1,
        address=address,
    )
    config = tune(launch)
    assert isinstance(config, BatchConfig) and config.chosen.plan.workers in range(1, 5)
    records = RunFolder.open(tmp_path / "RUN").records()
    places = {
        record.plan.workers: record.environment.nodes
        for record in records
        if isinstance(record, ThroughputRecord | NoiseRecord)
    }
    assert len(set(places[1])) == 1 and set(places[4]) == set(NODES)
    assert places[4][0] == places[4][1] != places[4][2] == places[4][3]
    nodes = {r.plan.workers: r.nodes for r in records if isinstance(r, ThroughputRecord)}
    assert (nodes[1], nodes[4]) == (1, 2)


def test_a_cluster_of_more_nodes_than_ray_has_is_refused(address):
    from questions import Question, ask

    with (
        pytest.raises(ClusterFailed, match="asks for 4 nodes") as caught,
        RayRuntime(cluster(4, 4), None, address) as runtime,
    ):
        list(runtime.run([Task(ask, Question(1), workers=4)]))
    assert all(own in str(caught.value) for own in NODES)
