"""What a runtime is: it carries a function to ranks and a record back, whatever the function does."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.emulation import EmulatedLink
from scaler.errors import ClusterFailed, ScalerError, WorkloadError
from scaler.records import Record


@dataclass(frozen=True)
class Rank:
    """Where a probe finds itself: its place among the ranks of its task, and its device.

    `group` is the process group of exactly these ranks; None for a single one. `nodes` has the address of
    every rank's machine, where that is known; `link` is what an emulated cluster holds collectives up with.
    """

    rank: int
    world_size: int
    device: Device
    group: Any = None
    nodes: tuple[str, ...] = ()
    link: EmulatedLink | None = None


Probe = Callable[[Rank, Any, Any], Record]
"""(rank, subject, request) -> record. Called on every rank of the task; rank 0's record is kept."""


@dataclass(frozen=True)
class Task:
    """One question: a probe, its request, and how many ranks answer it together.

    `whole_group` asks for a worker group of exactly this size: engines that take their world size from the
    default process group (DeepSpeed) cannot live in a part of one.
    """

    probe: Probe
    request: Any
    workers: int = 1
    whole_group: bool = False

    @property
    def key(self) -> str:
        """Name the question: the probe and every compared field of the request."""
        fields = {
            f.name: _plain(getattr(self.request, f.name))
            for f in dataclasses.fields(self.request)
            if f.compare
        }
        return f"{self.probe.__name__} {json.dumps({**fields, 'workers': self.workers}, sort_keys=True)}"


@dataclass(frozen=True)
class Failure:
    """Why a task gave no record."""

    kind: Literal["workload", "cluster", "out_of_memory", "fault", "peer"]
    message: str
    hint: str = ""
    trace: str = ""

    def error(self, task: Task) -> ScalerError:
        """Make the error that ends a run because of this failure."""
        if self.kind == "workload":
            return WorkloadError(self.message, self.hint)
        if self.kind == "cluster":
            return ClusterFailed(self.message, self.hint)
        if self.kind == "peer":
            return ClusterFailed(
                f"the ranks of {task.key} lost each other: {self.message}",
                hint="--resume continues the run; if it recurs, check the network between the nodes",
            )
        error = ScalerError(f"{task.key} failed: {self.message}", hint="fault.log says more")
        error.add_note(self.trace)
        return error


@dataclass(frozen=True)
class Outcome:
    """What came of a task: a record, or a failure."""

    task: Task
    record: Record | None = None
    failure: Failure | None = None


class Runtime(Protocol):
    """Carries tasks to ranks. Use as a context manager: leaving it frees the ranks."""

    workers: int
    """The most ranks a task may ask for."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Run the tasks, several at once where ranks are free; yield outcomes as they come.

        Raises:
            ClusterFailed: the ranks are lost.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BatchPlan) else value
