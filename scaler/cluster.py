"""Cluster: where the training runs, as read from cluster/*.yaml."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, NonNegativeFloat, PositiveInt, model_validator

from scaler.schema import Strict, parse, read_yaml

DeviceKind = Literal["cuda", "cpu", "mock"]


def _range(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


Memory = Annotated[ByteSize, Field(gt=0)]


class Cluster(Strict):
    """Devices, memory, links and price. Sizes are read as `80GiB` or a number of bytes.

    A plan fits when peak_bytes x (1 + margin) + reserve <= device_memory.
    """

    name: str = "cluster"
    workers: Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_range)]
    """One count, or [min, max]: an answer is given for every count in it."""
    nodes: PositiveInt = 1
    kind: DeviceKind
    device_memory_bytes: Annotated[Memory | None, Field(alias="device_memory")] = None
    """Per device. Required for mock; for cuda the device is asked; for cpu its share of the host's."""
    host_memory_bytes: Annotated[Memory | None, Field(alias="host_memory")] = None
    """Per node."""
    interconnect: str | None = None
    price_per_device_hour: NonNegativeFloat | None = None
    reserve_bytes: Annotated[ByteSize, Field(alias="reserve", ge=0)] = ByteSize(0)
    """Device memory left to others."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share added to a predicted peak: fragmentation and unusual batches."""

    @property
    def min_workers(self) -> int:
        """The fewest data-parallel ranks to answer for."""
        return self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most data-parallel ranks to answer for."""
        return self.workers[1]

    @property
    def worker_counts(self) -> range:
        """Every worker count to answer for, smallest first."""
        return range(self.min_workers, self.max_workers + 1)

    def capacity_bytes(self) -> int | None:
        """Give the memory of one device; None where only the device itself knows (cuda)."""
        if self.device_memory_bytes is not None or self.kind != "cpu":
            return self.device_memory_bytes
        per_node = -(-self.max_workers // self.nodes)
        return (self.host_memory_bytes or _host_memory_bytes()) // per_node

    def fits(self, peak_bytes: float, capacity_bytes: int) -> bool:
        """Whether a predicted peak leaves the margin and the reserve on a device of `capacity_bytes`."""
        return peak_bytes * (1 + self.margin) + self.reserve_bytes <= capacity_bytes

    @classmethod
    def load(cls, path: str | Path) -> "Cluster":
        """Read a cluster file.

        Raises:
            BadInput: the file is absent or not YAML, or keys are unknown, missing or impossible (all listed).
        """
        path = Path(path)
        data = read_yaml(path)
        if isinstance(data, dict):
            data = {"name": path.stem, **data}
        return parse(cls, data, str(path))

    @model_validator(mode="after")
    def _consistent(self) -> "Cluster":
        faults = []
        if self.min_workers > self.max_workers:
            faults.append(f"workers: the minimum {self.min_workers} is above the maximum {self.max_workers}")
        if self.nodes > self.max_workers:
            faults.append(f"nodes: {self.nodes} nodes for at most {self.max_workers} workers")
        if self.kind == "mock" and self.device_memory_bytes is None:
            faults.append("device_memory: a mock device needs it, such as 64MiB")
        if self.device_memory_bytes is not None and self.reserve_bytes >= self.device_memory_bytes:
            faults.append("reserve: leaves no device memory")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
