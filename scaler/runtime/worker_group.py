"""One Ray Train worker group that stays alive: tasks are sent to its ranks through a mailbox actor."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray import train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from scaler.cluster import Cluster
from scaler.device import open_device
from scaler.emulation import EmulatedLink
from scaler.errors import ClusterFailed
from scaler.runtime.placement import RayNode, ray_nodes, selectors
from scaler.runtime.protocol import Probe, Rank
from scaler.runtime.ray_cluster import worker_resources
from scaler.runtime.serve import Reply, perform
from scaler.runtime.shaped_nodes import enter

_START_TIMEOUT_S = 180
_COLLECTIVE_TIMEOUT_S = 600

Message = tuple[int, Sequence[int], Probe, Any]
"""(task number, ranks of the task, probe, request)"""


class _Mailbox:
    """Queues between the driver and the ranks. An actor, since the driver cannot call Ray Train's workers."""

    def __init__(self, workers: int) -> None:
        self._inboxes: list[asyncio.Queue[Message | None]] = [asyncio.Queue() for _ in range(workers)]
        self._replies: asyncio.Queue[tuple[int, int, Reply | None]] = asyncio.Queue()

    async def send(self, ranks: Sequence[int], message: Message | None) -> None:
        for rank in ranks:
            self._inboxes[rank].put_nowait(message)

    async def receive(self, rank: int) -> Message | None:
        return await self._inboxes[rank].get()

    async def post(self, number: int, rank: int, reply: Reply | None) -> None:
        self._replies.put_nowait((number, rank, reply))

    async def next_reply(self, timeout_s: float) -> tuple[int, int, Reply | None] | None:
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._replies.get(), timeout_s)
        return None


def scaling(
    cluster: Cluster, workers: int, nodes: Sequence[RayNode] = ()
) -> tuple[ScalingConfig, TorchConfig]:
    """Choose resources, nodes and backend: NCCL with one GPU a worker on cuda, gloo on cpu and mock.

    Raises:
        ClusterFailed: Ray has not the nodes that the cluster's file says.
    """
    resources = worker_resources(cluster)
    use_gpu = cluster.kind == "cuda"
    return (
        ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            label_selector=selectors(cluster, workers, resources, nodes),
        ),
        TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
    )


class WorkerGroup:
    """`workers` ranks held by one `TorchTrainer.fit()`, which runs in a thread until `close`."""

    def __init__(
        self,
        cluster: Cluster,
        workers: int,
        subject: Any,
        storage_path: str,
        namespaces: Sequence[str] = (),
    ) -> None:
        self.workers = workers
        self._failure: BaseException | None = None
        self._mailbox = ray.remote(num_cpus=0)(_Mailbox).remote(workers)
        scaling_config, torch_config = scaling(cluster, workers, ray_nodes())
        self._trainer = TorchTrainer(
            _serve,
            train_loop_config={
                "mailbox": self._mailbox,
                "cluster": cluster,
                "subject": subject,
                "namespaces": namespaces,
            },
            scaling_config=scaling_config,
            torch_config=torch_config,
            run_config=RunConfig(
                storage_path=storage_path,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                logging_config=LoggingConfig("ERROR"),
            ),
        )
        self._thread = threading.Thread(target=self._fit, name="ray-train-fit", daemon=True)
        self._thread.start()
        for _ in range(workers):
            if self.next_reply(_START_TIMEOUT_S) is None:
                raise ClusterFailed(
                    f"{workers} workers of {cluster.name} did not start within {_START_TIMEOUT_S} s",
                    hint="`ray status` shows what the cluster waits for",
                )

    def send(self, number: int, ranks: Sequence[int], probe: Probe, request: Any) -> None:
        """Send a task to its ranks. Every rank hears of a task of several: groups are made in one order."""
        listeners = ranks if len(ranks) == 1 else range(self.workers)
        ray.get(self._mailbox.send.remote(list(listeners), (number, tuple(ranks), probe, request)))

    def next_reply(self, timeout_s: float) -> tuple[int, int, Reply | None] | None:
        """Wait for (task number, rank, reply); None after `timeout_s`.

        Raises:
            ClusterFailed: the group ended.
        """
        waited_s = 0.0
        while waited_s < timeout_s:
            reply: tuple[int, int, Reply | None] | None = ray.get(self._mailbox.next_reply.remote(0.5))
            if reply is not None:
                return reply
            if not self._thread.is_alive():
                raise _ended(self._failure) from self._failure
            waited_s += 0.5
        return None

    def close(self, wait: bool = True) -> None:
        """End the group; with `wait`, once the ranks have finished what they do."""
        if wait:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._mailbox.send.remote(list(range(self.workers)), None))
                self._thread.join(timeout=30)
        ray.kill(self._mailbox)  # ranks that still ask it end with an error

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._failure = error


def _serve(config: dict[str, Any]) -> None:
    """Run on every rank: answer tasks until told to stop."""
    mailbox, cluster = config["mailbox"], config["cluster"]
    world_rank = train.get_context().get_world_rank()
    index = train.torch.get_device().index if cluster.kind == "cuda" else 0
    device = open_device(cluster, world_rank if cluster.devices else None, index)
    nodes = _nodes(cluster, world_rank, config["namespaces"])
    ray.get(mailbox.post.remote(-1, world_rank, None))
    while (message := ray.get(mailbox.receive.remote(world_rank))) is not None:
        number, ranks, probe, request = message
        group = _new_group(ranks)
        if world_rank not in ranks:
            continue
        link = _link(cluster, ranks, bool(config["namespaces"]))
        where = tuple(nodes[number] for number in ranks)
        rank = Rank(ranks.index(world_rank), len(ranks), device, group, where, link)
        reply = perform(rank, probe, config["subject"], request)
        if link is not None:
            link.close()
        if group is not None:
            # Dropping the last reference frees peers that still wait in a collective.
            del rank
            dist.destroy_process_group(group)
            del group
            gc.collect()
        ray.get(mailbox.post.remote(number, world_rank, reply))


def _nodes(cluster: Cluster, world_rank: int, namespaces: Sequence[str]) -> list[str]:
    """Give the address of every rank's machine.

    A rank of an emulated cluster first moves to its node's network, if that is made.
    """
    world_size = train.get_context().get_world_size()
    if cluster.emulate is not None:
        if namespaces:
            enter(namespaces[cluster.node_of(world_rank)])
        return [f"emulated node {cluster.node_of(rank)}" for rank in range(world_size)]
    found = [ray.util.get_node_ip_address()] * world_size
    if world_size > 1:
        dist.all_gather_object(found, found[0])
    return found


def _link(cluster: Cluster, ranks: Sequence[int], shaped: bool) -> EmulatedLink | None:
    nodes = {cluster.node_of(rank) for rank in ranks}
    if cluster.emulate is None or len(nodes) == 1:
        return None
    return EmulatedLink(cluster.emulate, len(ranks), len(nodes), shaped)


def _new_group(ranks: Sequence[int]) -> Any:
    """Make a group of a task's own: a failure in it leaves the default group whole."""
    if len(ranks) == 1:
        return None
    return dist.new_group(list(ranks), timeout=timedelta(seconds=_COLLECTIVE_TIMEOUT_S))


def _ended(error: BaseException | None) -> ClusterFailed:
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error or "it stopped without an error").strip().splitlines()
    cause = lines[-1] if lines else type(error).__name__
    hint = "--resume continues the run without asking again what is already measured"
    if cause.startswith("ModuleNotFoundError"):
        hint = (
            "workers need your modules: `ray job submit --working-dir .`, or PYTHONPATH in the launch's env"
        )
    return ClusterFailed(f"the worker group ended: {cause}", hint=hint)
