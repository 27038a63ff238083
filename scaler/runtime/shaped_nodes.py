"""Nodes of an emulated cluster: network namespaces here, joined by links as narrow as the cluster says."""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from scaler.cluster import Cluster
from scaler.errors import ClusterFailed

_NAMESPACES = Path("/var/run/netns")
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SUBNET = "198.18"  # set aside for benchmarks (RFC 2544)
_LEAST_BURST_BYTES = 16 * 1024
_BURST_S = 0.004  # of the link's rate, what it may send at once
INTERFACE = "eth0"
"""Name of a namespace's interface."""


@contextlib.contextmanager
def shaped_nodes(cluster: Cluster) -> Iterator[tuple[str, ...]]:
    """Make a namespace for each node, with a token bucket on its link, and remove them after the block.

    Gives their names; none where the cluster states no bandwidth, or this machine does not allow it (it takes
    Linux, root's rights and the commands `ip` and `tc`).
    """
    narrow = cluster.emulate is not None and cluster.emulate.bandwidth_bytes is not None
    if not narrow or cluster.nodes == 1 or not (shutil.which("ip") and shutil.which("tc")):
        yield ()
        return
    _remove_stale()
    bridge = f"scaler{os.getpid()}"
    names = tuple(f"{bridge}n{node}" for node in range(cluster.nodes))
    try:
        for command in _commands(cluster, bridge, names):
            subprocess.run(command.split(), check=True, capture_output=True)
    except subprocess.CalledProcessError:
        _remove(bridge, names)
        yield ()
        return
    try:
        yield names
    finally:
        _remove(bridge, names)


def enter(namespace: str) -> None:
    """Move this thread, and those that it will start, into a node's network.

    Raises:
        ClusterFailed: the namespace is gone, or this process may not enter it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    with (_NAMESPACES / namespace).open() as file:
        if library.setns(file.fileno(), _NEW_NETWORK):
            raise ClusterFailed(
                f"cannot enter the network of {namespace}: {os.strerror(ctypes.get_errno())}",
                hint="leave `bandwidth` out of the cluster's `emulate`",
            )
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE  # read when a process group is made


def _commands(cluster: Cluster, bridge: str, names: tuple[str, ...]) -> Iterator[str]:
    assert cluster.emulate is not None and cluster.emulate.bandwidth_bytes is not None
    rate = int(cluster.emulate.bandwidth_bytes)
    burst = max(_LEAST_BURST_BYTES, int(rate * _BURST_S))
    yield f"ip link add {bridge} type bridge"
    yield f"ip link set {bridge} up"
    for node, name in enumerate(names):
        outside = f"s{os.getpid()}v{node}"
        yield f"ip netns add {name}"
        yield f"ip link add {outside} type veth peer name {INTERFACE} netns {name}"
        yield f"ip link set {outside} master {bridge}"
        yield f"ip link set {outside} up"
        yield f"ip -n {name} addr add {_SUBNET}.{os.getpid() % 250}.{node + 1}/24 dev {INTERFACE}"
        yield f"ip -n {name} link set {INTERFACE} up"
        yield f"ip -n {name} link set lo up"
        yield f"tc -n {name} qdisc add dev {INTERFACE} root tbf rate {8 * rate}bit burst {burst} latency 1s"


def _remove(bridge: str, names: tuple[str, ...]) -> None:
    for command in [*(f"ip netns del {name}" for name in names), f"ip link del {bridge}"]:
        subprocess.run(command.split(), check=False, capture_output=True)


def _remove_stale() -> None:
    """Remove what runs left behind that were killed."""
    left = [path.name for path in _NAMESPACES.glob("scaler*n*")] if _NAMESPACES.is_dir() else []
    for bridge in {name.rpartition("n")[0] for name in left}:
        process = bridge.removeprefix("scaler")
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            _remove(bridge, tuple(name for name in left if name.startswith(f"{bridge}n")))
