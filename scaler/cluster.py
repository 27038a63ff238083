"""Cluster: where the training runs, as read from cluster/*.yaml."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from scaler.schema import Strict, parse, read_yaml
from scaler.units import parse_seconds

DeviceKind = Literal["cuda", "cpu", "mock"]


def _range(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _seconds(value: Any) -> Any:
    return parse_seconds(value) if isinstance(value, str) else value


Memory = Annotated[ByteSize, Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]


class ConcealedBias(Strict):
    """What a mock device counts beyond the bytes of live tensors: a truth that no prediction shares."""

    share: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    """Counted beyond the live bytes, as a share of them."""
    step_at_bytes: Annotated[Memory | None, Field(alias="step_at")] = None
    """From this many live bytes on, `step_share` is counted too."""
    step_share: Annotated[float, Field(ge=0, le=0.1)] = 0.0

    def counted_bytes(self, live_bytes: int) -> int:
        """Give what the device counts for so many live bytes."""
        stepped = self.step_at_bytes is not None and live_bytes >= self.step_at_bytes
        return int(live_bytes * (1 + self.share + (self.step_share if stepped else 0.0)))


class Emulation(Strict):
    """What a mock cluster pretends to be: slower devices, links between its nodes. The time is slept."""

    flops_per_s: Annotated[PositiveFloat | None, Field(alias="speed")] = None
    """Floating-point operations per second of one device. Default: as fast as this CPU."""
    overhead_s: Annotated[Seconds, Field(alias="overhead")] = 0.0
    """Fixed time of one forward and backward pass."""
    bandwidth_bytes: Annotated[Memory | None, Field(alias="bandwidth")] = None
    """Of each node's link, per second. Default: as fast as this machine's loopback."""
    latency_s: Annotated[Seconds, Field(alias="latency")] = 0.0
    """Of one message between nodes."""


class DeviceGroup(Strict):
    """Workers with the same device, in a cluster whose devices are unequal."""

    device: str
    workers: PositiveInt
    device_memory_bytes: Annotated[Memory, Field(alias="device_memory")]
    speed: PositiveFloat = 1.0
    """Relative to the other groups, until it is measured: passes are divided so that they end together."""
    emulate: Emulation | None = None
    """Mock devices only: instead of the cluster's."""


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
    devices: tuple[DeviceGroup, ...] = ()
    """Unequal devices, in the order of ranks, instead of `device_memory`."""
    device: str | None = None
    """The device's model, such as `NVIDIA L4`."""
    compute_capability: Annotated[float, Field(ge=5)] = 8.0
    """Decides which attention kernels and library workspaces a CUDA device uses."""
    context_bytes: Annotated[ByteSize | None, Field(alias="context")] = None
    """Device memory that CUDA takes before the first tensor. Default: an estimate by compute capability."""
    communicator_bytes: Annotated[ByteSize | None, Field(alias="communicator")] = None
    """Device memory of one NCCL group. Default: an estimate."""
    device_flops_per_s: Annotated[PositiveFloat | None, Field(alias="flops")] = None
    """Dense floating-point operations per second of one device, in the precision that is trained in."""
    device_bandwidth_bytes: Annotated[Memory | None, Field(alias="memory_bandwidth")] = None
    """Of one device's memory, per second."""
    link_bandwidth_bytes: Annotated[Memory | None, Field(alias="link_bandwidth")] = None
    """Of one device's or node's link to other nodes, per second."""
    local_bandwidth_bytes: Annotated[Memory | None, Field(alias="local_bandwidth")] = None
    """Of one device's link to others of its node, per second."""
    expandable_segments: bool = False
    """The allocator option of that name (PYTORCH_CUDA_ALLOC_CONF), in predictions and on the workers."""
    emulate: Emulation | None = None
    """Mock devices only: how fast they and the links between nodes are."""
    concealed: ConcealedBias | None = None
    """Mock devices only: bytes counted beyond the live ones, to test predictions against."""
    host_memory_bytes: Annotated[Memory | None, Field(alias="host_memory")] = None
    """Per node."""
    interconnect: str | None = None
    source: str | None = None
    """Where the device's figures were read."""
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

    @property
    def flops_per_s(self) -> float | None:
        """Floating-point operations per second of one device: as stated, else as equal ones are emulated."""
        emulated = self.emulate.flops_per_s if self.emulate and not self.devices else None
        return self.device_flops_per_s or emulated

    @property
    def link_bytes_per_s(self) -> int | None:
        """Bandwidth of a link between nodes: as stated, else as emulated."""
        emulated = self.emulate.bandwidth_bytes if self.emulate else None
        return self.link_bandwidth_bytes or emulated

    @property
    def workers_per_node(self) -> int:
        """The most workers that a node takes."""
        return -(-self.max_workers // self.nodes)

    def nodes_of(self, workers: int) -> int:
        """Count the nodes that so many workers are placed on: as few as hold them."""
        return self.node_of(workers - 1) + 1

    def node_of(self, rank: int) -> int:
        """Tell which node a rank is placed on, from 0: as many to a node as it takes."""
        return rank // self.workers_per_node

    def capacity_bytes(self, rank: int | None = None) -> int | None:
        """Give the memory of one device; None where only the device itself knows (cuda).

        Where devices are unequal: of `rank`'s, or of the smallest.
        """
        if self.devices:
            if rank is None:
                return min(group.device_memory_bytes for group in self.devices)
            return self.group_of(rank).device_memory_bytes
        if self.device_memory_bytes is not None or self.kind != "cpu":
            return self.device_memory_bytes
        return (self.host_memory_bytes or _host_memory_bytes()) // self.workers_per_node

    def group_of(self, rank: int) -> DeviceGroup:
        """Give the devices that a rank is one of, where devices are unequal."""
        return [group for group in self.devices for _ in range(group.workers)][rank]

    def emulation(self, rank: int | None = None) -> Emulation | None:
        """Give what a rank's device pretends to be, if anything."""
        own = self.group_of(rank).emulate if self.devices and rank is not None else None
        return own or self.emulate

    def fits(self, peak_bytes: float, capacity_bytes: int) -> bool:
        """Whether a predicted peak leaves the margin and the reserve on a device of `capacity_bytes`."""
        return self.needed_bytes(peak_bytes) <= capacity_bytes

    def needed_bytes(self, peak_bytes: float) -> float:
        """Give the device memory that a predicted peak asks for, with the margin and the reserve."""
        return peak_bytes * (1 + self.margin) + self.reserve_bytes

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
        if self.devices and self.device_memory_bytes is not None:
            faults.append("devices: each has its own device_memory; leave out the cluster's")
        if self.devices and sum(group.workers for group in self.devices) != self.max_workers:
            faults.append(f"devices: their workers do not add up to the cluster's {self.max_workers}")
        if self.devices and self.min_workers != self.max_workers:
            faults.append("workers: with unequal devices give one count, of all of them")
        emulated = self.emulate is not None or any(group.emulate for group in self.devices)
        if emulated and self.kind != "mock":
            faults.append(f"emulate: only mock devices are emulated, not kind: {self.kind}")
        if self.concealed is not None and self.kind != "mock":
            faults.append(f"concealed: only a mock device conceals bytes, not kind: {self.kind}")
        if self.concealed is not None and self.concealed.share + self.concealed.step_share > 0.1:
            faults.append("concealed: share and step_share together are at most 0.1")
        if self.kind == "mock" and self.capacity_bytes() is None:
            faults.append("device_memory: a mock device needs it, such as 64MiB")
        smallest = self.device_memory_bytes or (self.capacity_bytes() if self.devices else None)
        if smallest is not None and self.reserve_bytes >= smallest:
            faults.append("reserve: leaves no device memory")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
