"""The in-process runtime: one rank, no Ray, for notebooks and unit tests."""

from collections.abc import Iterable, Iterator
from typing import Any, Self

from scaler.cluster import Cluster
from scaler.device import open_device
from scaler.errors import BadInput
from scaler.runtime.protocol import Failure, Outcome, Rank, Task
from scaler.runtime.serve import perform


class LocalRuntime:
    """Runs tasks one after another in this process, on one device.

    Raises:
        BadInput: the cluster needs more than one worker.
    """

    workers = 1

    def __init__(self, cluster: Cluster, subject: Any) -> None:
        if cluster.min_workers > 1:
            raise BadInput(
                f"{cluster.name} has at least {cluster.min_workers} workers; in-process there is one",
                hint="use runtime: ray, or a cluster with workers: 1",
            )
        self._subject = subject
        self._rank = Rank(0, 1, open_device(cluster))

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Run the tasks in order; yield each outcome."""
        for task in tasks:
            if task.workers > self.workers:
                raise BadInput(
                    f"{task.key} needs {task.workers} workers; in-process there is one",
                    hint="use runtime: ray",
                )
            reply = perform(self._rank, task.probe, self._subject, task.request)
            if isinstance(reply, Failure):
                yield Outcome(task, failure=reply)
            else:
                yield Outcome(task, record=reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass
