"""Which node every rank goes to."""

import pytest

from scaler.cluster import Cluster
from scaler.errors import ClusterFailed
from scaler.runtime.placement import RayNode, selectors

EACH = {"CPU": 1.0, "GPU": 1.0}


def node(name, gpus, free=None, cpus=64):
    total = {"CPU": float(cpus), "GPU": float(gpus)}
    left = total if free is None else {"CPU": float(cpus), "GPU": float(free)}
    return RayNode(name, f"10.0.0.{name}", total, left)


def cluster(workers, nodes):
    return Cluster(name="eight", kind="cuda", workers=workers, nodes=nodes)


def places(found):
    return [selector["ray.io/node-id"] for selector in found]


def test_as_many_to_a_node_as_the_file_says():
    found = selectors(cluster(4, 2), 4, EACH, [node("1", 4), node("2", 4), node("3", 4)])
    one, two = places(found)[0], places(found)[2]
    assert places(found) == [one, one, two, two] and one != two


def test_fewer_workers_take_as_few_nodes_as_hold_them():
    found = selectors(cluster((1, 4), 2), 2, EACH, [node("1", 2), node("2", 2)])
    assert len(set(places(found))) == 1


def test_free_nodes_come_before_busy_ones_and_large_ones_hold_what_small_ones_do_not():
    nodes = [node("1", 2, free=0), node("2", 2), node("3", 1)]
    assert places(selectors(cluster(3, 2), 3, EACH, nodes)) == ["2", "2", "3"]
    assert places(selectors(cluster(4, 2), 4, EACH, nodes)) == ["2", "2", "1", "1"]


def test_a_single_node_or_an_emulated_cluster_leaves_no_choice():
    assert selectors(cluster(4, 1), 4, EACH, [node("1", 8)]) is None
    emulated = Cluster.model_validate(
        {"kind": "mock", "workers": 4, "nodes": 2, "device_memory": "1MiB", "emulate": {"latency": "1ms"}}
    )
    assert selectors(emulated, 4, EACH, [node("1", 4), node("2", 4)]) is None


@pytest.mark.parametrize(("workers", "nodes"), [(8, 1), (9, 3), (4, 4)])
def test_what_ray_has_not_is_named(workers, nodes):
    with pytest.raises(ClusterFailed, match=r"10\.0\.0\.1: 4, 10\.0\.0\.2: 2") as caught:
        selectors(cluster(workers, nodes), workers, EACH, [node("1", 4), node("2", 2)])
    assert f"asks for {nodes} node" in str(caught.value)
    assert "`nodes` and `workers`" in caught.value.hint
