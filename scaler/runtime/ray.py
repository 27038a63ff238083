"""The Ray runtime: one living worker group, tasks on as many of its ranks as each needs, side by side."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Self

from scaler.cluster import Cluster
from scaler.runtime.protocol import Failure, Outcome, Task
from scaler.runtime.ray_cluster import ray_cluster
from scaler.runtime.serve import Reply, settle
from scaler.runtime.shaped_nodes import shaped_nodes


class RayRuntime:
    """Holds a worker group of the cluster's largest size, and another only where a task asks for one."""

    def __init__(
        self,
        cluster: Cluster,
        subject: Any,
        address: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.workers = cluster.max_workers
        self._cluster = cluster
        self._subject = subject
        self._connection = ray_cluster(cluster, address, env or {})
        self._elsewhere = bool(address or os.environ.get("RAY_ADDRESS"))
        self._namespaces: tuple[str, ...] = ()
        self._exit = contextlib.ExitStack()
        self._group: Any = None
        self._sent = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Run the tasks in order, each as soon as its ranks are free; yield outcomes as they come.

        A task is taken from `tasks` only when the one before it was sent.

        Raises:
            ClusterFailed: the worker group ended or does not start.
        """
        queue = iter(tasks)
        task = next(queue, None)
        running: dict[int, tuple[Task, list[int], list[Reply]]] = {}
        free: list[int] = []
        while task is not None or running:
            if not running:
                if task is not None and not self._suits(task):
                    self._regroup(task)
                free = list(range(self._group.workers))
            while task is not None and self._suits(task) and task.workers <= len(free):
                ranks, free = sorted(free[: task.workers]), free[task.workers :]
                self._sent += 1
                running[self._sent] = (task, ranks, [])
                self._group.send(self._sent, ranks, task.probe, task.request)
                task = next(queue, None)
            if running and (reply := self._group.next_reply(timeout_s=1.0)) is not None:
                number, world_rank, answer = reply
                done, ranks, answers = running[number]
                answers.insert(0 if world_rank == ranks[0] else len(answers), answer)
                free.append(world_rank)
                if len(answers) == len(ranks):
                    del running[number]
                    yield _outcome(done, settle(answers))

    def _suits(self, task: Task) -> bool:
        if self._group is None:
            return False
        size: int = self._group.workers
        return size == task.workers if task.whole_group else size >= task.workers

    def _regroup(self, task: Task) -> None:
        if self._group is not None:
            self._group.close()
        else:  # a run that is already complete needs no Ray at all
            self._exit.enter_context(self._connection)
            if not self._elsewhere:
                self._namespaces = self._exit.enter_context(shaped_nodes(self._cluster))
        from scaler.runtime.worker_group import WorkerGroup

        workers = task.workers if task.whole_group else self.workers
        path = self._exit.enter_context(tempfile.TemporaryDirectory(prefix="scaler-"))
        self._group = WorkerGroup(self._cluster, workers, self._subject, path, self._namespaces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._group is not None:
            self._group.close(wait=error[0] is None)  # after an error ranks may be stuck in a task
        self._exit.close()


def _outcome(task: Task, reply: Reply) -> Outcome:
    if isinstance(reply, Failure):
        return Outcome(task, failure=reply)
    return Outcome(task, record=reply)
