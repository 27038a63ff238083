"""Devices: cuda, cpu and mock behind the same three calls - place a batch, wait, measure memory."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_map_only

from scaler.cluster import Cluster, ConcealedBias, DeviceKind
from scaler.counted_memory import CountedMemory
from scaler.emulation import EmulatedCompute
from scaler.errors import ClusterFailed


class MemoryMeter(Protocol):
    """What `Device.memory` yields; read it after the block, also after one that ran out of memory."""

    peak_bytes: int
    """The most that was in use: what nvidia-smi shows."""
    outside_bytes: int
    """Of it, what lies outside the allocator: context and communicator."""
    retries: int
    """Times that cached memory had to be released for a request."""


@dataclass
class CudaMeter:
    """What a CUDA device shows after a block."""

    peak_bytes: int = 0
    outside_bytes: int = 0
    retries: int = 0


class Device:
    """A CPU, or a mock accelerator whose memory is a byte budget on the CPU."""

    def __init__(
        self, kind: DeviceKind, capacity_bytes: int | None, concealed: ConcealedBias | None = None
    ) -> None:
        self.kind = kind
        self.capacity_bytes = capacity_bytes
        self._concealed = concealed
        self.emulated: EmulatedCompute | None = None
        self.compute_capability: float | None = None
        self.torch_device = torch.device("cpu")
        self.name: str = kind

    def put(self, batch: Any) -> Any:
        """Move a batch (any nesting of tensors) to the device. A mock device really copies, as a GPU does."""
        return tree_map_only(torch.Tensor, torch.clone, batch) if self.kind == "mock" else batch

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Compute in the block at the device's speed: a mock device may be slower than its CPU."""
        if self.emulated is None:
            return contextlib.nullcontext()
        self.emulated.begin_pass()
        return self.emulated

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.emulated is not None:
            self.emulated.finish()

    @contextlib.contextmanager
    def memory(self) -> Iterator[MemoryMeter]:
        """Measure the peak of device memory over the block.

        Raises:
            torch.OutOfMemoryError: inside the block, when a mock or cpu device exceeds its capacity.
        """
        with CountedMemory(self.capacity_bytes, self._concealed) as counted:
            yield counted


class CudaDevice(Device):
    """One NVIDIA GPU."""

    def __init__(self, index: int, capacity_bytes: int | None) -> None:
        super().__init__("cuda", capacity_bytes or torch.cuda.get_device_properties(index).total_memory)
        self.torch_device = torch.device("cuda", index)
        self.name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        self.compute_capability = major + minor / 10
        torch.cuda.set_device(index)

    def put(self, batch: Any) -> Any:
        """Move a batch (any nesting of tensors) to the device."""
        return tree_map_only(torch.Tensor, lambda t: t.to(self.torch_device, non_blocking=True), batch)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        torch.cuda.synchronize(self.torch_device)

    @contextlib.contextmanager
    def memory(self) -> Iterator[MemoryMeter]:
        """Measure peak reserved bytes plus the context, as nvidia-smi shows them on a GPU of one's own."""
        meter = CudaMeter()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        retries = self._retries()
        try:
            yield meter
        finally:
            free, total = torch.cuda.mem_get_info(self.torch_device)
            meter.outside_bytes = total - free - torch.cuda.memory_reserved(self.torch_device)
            meter.peak_bytes = torch.cuda.max_memory_reserved(self.torch_device) + meter.outside_bytes
            meter.retries = self._retries() - retries
            torch.cuda.empty_cache()

    def _retries(self) -> int:
        return int(torch.cuda.memory_stats(self.torch_device).get("num_alloc_retries", 0))


def open_device(cluster: Cluster, rank: int | None = None, index: int = 0) -> Device:
    """Open the device of a worker: `rank` in the cluster, CUDA device `index` of its node.

    Raises:
        ClusterFailed: a CUDA device was asked for and torch sees none.
    """
    if cluster.expandable_segments:
        # Read when the allocator is first used.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    capacity_bytes = cluster.capacity_bytes(rank)
    if cluster.kind != "cuda":
        device = Device(cluster.kind, capacity_bytes, cluster.concealed)
        if (emulation := cluster.emulation(rank)) is not None:
            device.emulated = EmulatedCompute(emulation)
        return device
    if not torch.cuda.is_available():
        raise ClusterFailed(
            "the cluster says kind: cuda, but torch sees no CUDA device in this process",
            hint="install a CUDA build of torch on the workers, or use kind: cpu or mock",
        )
    return CudaDevice(index, capacity_bytes)
