"""Where ranks go on a Ray cluster of several nodes: as many to a node as the cluster's file says."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaler.cluster import Cluster
from scaler.errors import ClusterFailed

_NODE = "ray.io/node-id"  # a label that Ray gives every node


@dataclass(frozen=True)
class RayNode:
    """A living node: what it has, and what of that is free."""

    node_id: str
    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]


def ray_nodes() -> list[RayNode]:
    """List the living nodes of the cluster this process is connected to."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        RayNode(n["NodeID"], n["NodeManagerAddress"], n["Resources"], free.get(n["NodeID"], {}))
        for n in ray.nodes()
        if n["Alive"]
    ]


def selectors(
    cluster: Cluster, workers: int, each: Mapping[str, float], nodes: Sequence[RayNode]
) -> list[dict[str, str]] | None:
    """Choose a node for every rank, as labels to select by; None where there is no choice.

    A worker takes `each` of its node's resources. Nodes with these free come before busy ones.

    Raises:
        ClusterFailed: the cluster's file says more nodes, or larger ones, than Ray has.
    """
    if len(nodes) < 2 or cluster.emulate is not None:
        return None
    wanted = Counter(cluster.node_of(rank) for rank in range(workers))
    left, chosen = list(nodes), dict[int, RayNode]()
    for number, count in wanted.most_common():
        roomy = [
            node
            for node in left
            if all(node.total.get(name, 0) >= count * need for name, need in each.items())
        ]
        if not roomy:
            raise _too_small(cluster, wanted, each, nodes)
        chosen[number] = max(
            roomy, key=lambda node: all(node.free.get(n, 0) >= count * need for n, need in each.items())
        )
        left.remove(chosen[number])
    return [{_NODE: chosen[cluster.node_of(rank)].node_id} for rank in range(workers)]


def _too_small(
    cluster: Cluster, wanted: Mapping[int, int], each: Mapping[str, float], nodes: Sequence[RayNode]
) -> ClusterFailed:
    asked = ", ".join(f"{count}" for count in wanted.values())
    names = " and ".join(each)
    rooms = [min(int(node.total.get(name, 0) // need) for name, need in each.items()) for node in nodes]
    has = ", ".join(f"{node.address}: {room}" for node, room in zip(nodes, rooms, strict=True))
    return ClusterFailed(
        f"{cluster.name} asks for {len(wanted)} node{'s' * (len(wanted) > 1)} with {asked} workers; by "
        f"{names} the nodes of the Ray cluster hold {has}",
        hint="set `nodes` and `workers` in the cluster file to what Ray has (`ray status`)",
    )
