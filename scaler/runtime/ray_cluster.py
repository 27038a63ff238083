"""Connect to the Ray cluster that is there, or start one on this machine's loopback."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from scaler.cluster import Cluster
from scaler.errors import ClusterFailed

MOCK_RESOURCE = "scaler_mock"
"""Custom resource that a mock worker takes, so that it never occupies a real GPU."""

_QUIET_AND_QUICK = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Without a cluster across machines Ray binds every server to 127.0.0.1; read when ray is imported.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}


def worker_resources(cluster: Cluster) -> dict[str, float]:
    """Give the Ray resources that one worker takes."""
    if cluster.kind == "cuda":
        return {"CPU": 1, "GPU": 1}
    return {"CPU": 1, MOCK_RESOURCE: 1} if cluster.kind == "mock" else {"CPU": 1}


@contextlib.contextmanager
def ray_cluster(cluster: Cluster, address: str | None, env: dict[str, str]) -> Iterator[None]:
    """Be connected to Ray within the block.

    Uses the connection this process already has; else the cluster at `address` or RAY_ADDRESS; else starts
    one on the loopback, sized for `cluster`, and stops it afterwards.

    Raises:
        ClusterFailed: nothing answers at the address, or the cluster is smaller than `cluster` says.
    """
    for name, value in _QUIET_AND_QUICK.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    runtime_env = {"env_vars": env} if env else None
    with _environ({} if address else {**_LOOPBACK_ONLY, "PYTHONPATH": _import_path()}):
        import ray

        mine = not ray.is_initialized()
        if mine:
            try:
                _connect(address, runtime_env) if address else _start(cluster, runtime_env)
            except Exception as error:
                raise ClusterFailed(
                    f"cannot {f'reach Ray at {address}' if address else 'start Ray here'}: {error}",
                    hint="`ray status` checks a cluster; unset RAY_ADDRESS to start one here",
                ) from error
        try:
            _check_size(cluster, address)
            yield
        finally:
            if mine:
                ray.shutdown()


def _import_path() -> str:
    """Where this process imports from: workers started here find the user's modules there too."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)


@contextlib.contextmanager
def _environ(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _connect(address: str, runtime_env: dict[str, dict[str, str]] | None) -> None:
    import ray

    ray.init(address=address, runtime_env=runtime_env, logging_level="ERROR", log_to_driver=False)


def _start(cluster: Cluster, runtime_env: dict[str, dict[str, str]] | None) -> None:
    import ray
    from ray._private import ray_constants

    ray.init(
        address="local",
        num_cpus=cluster.max_workers + 1,
        resources={MOCK_RESOURCE: cluster.max_workers} if cluster.kind == "mock" else None,
        num_gpus=None if cluster.kind == "cuda" else 0,
        include_dashboard=False,
        # Where ray was imported before, 127.0.0.1 would be rewritten to the interface's address.
        _node_ip_address="127.0.0.2" if ray_constants.ENABLE_RAY_CLUSTER else "127.0.0.1",
        object_store_memory=128 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env=runtime_env,
    )


def _check_size(cluster: Cluster, address: str | None) -> None:
    import ray

    total = ray.cluster_resources()
    short = [
        f"{need * cluster.max_workers:g} {name} (it has {total.get(name, 0):g})"
        for name, need in worker_resources(cluster).items()
        if total.get(name, 0) < need * cluster.max_workers
    ]
    if short:
        where = f"the Ray cluster at {address}" if address else "this machine"
        hint = f"lower the maximum of workers in the cluster file from {cluster.max_workers}"
        if cluster.kind == "mock":
            hint += f", or start nodes with --resources '{{\"{MOCK_RESOURCE}\": N}}'"
        raise ClusterFailed(f"{cluster.name} asks {where} for {', '.join(short)}", hint=hint)
