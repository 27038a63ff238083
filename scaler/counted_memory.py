"""Device memory on a CPU: counts the bytes of live tensor storages against a budget."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scaler.cluster import ConcealedBias

_ROUND_BYTES = 512  # what CUDA's caching allocator rounds every block to


class CountedMemory(TorchDispatchMode):
    """Counts every storage that operators create while active, until it is freed.

    Storages that existed before (a data set on the host) are not counted. A device may count more than the
    live bytes (`concealed`), as real ones do.
    """

    outside_bytes = 0  # nothing lies beside the tensors
    retries = 0  # and there is no cache to release

    def __init__(self, capacity_bytes: int | None = None, concealed: ConcealedBias | None = None) -> None:
        super().__init__()
        self.capacity_bytes = capacity_bytes
        self._counted = concealed.counted_bytes if concealed is not None else int
        self.live_bytes = 0
        self.peak_bytes = 0
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            # A view allocates nothing; an operator that resizes its input in place does.
            if storage._cdata not in before or storage._cdata in self._live:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = storage._cdata, -(-storage.nbytes() // _ROUND_BYTES) * _ROUND_BYTES
        known = self._live.get(key)
        grown = size_bytes - (known[0] if known else 0)
        if grown == 0:
            return
        used_bytes = self._counted(self.live_bytes + grown)
        if self.capacity_bytes is not None and used_bytes > self.capacity_bytes:
            # Other tools recognise this wording.
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {grown} bytes; {self._counted(self.live_bytes)} of "
                f"{self.capacity_bytes} are in use."
            )
        self.live_bytes += grown
        self.peak_bytes = max(self.peak_bytes, used_bytes)
        self._live[key] = (size_bytes, weakref.ref(storage, lambda _: self._free(key)))

    def _free(self, key: int) -> None:
        size_bytes, _ = self._live.pop(key)
        self.live_bytes -= size_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [part.untyped_storage() for tensor in tensors for part in _dense(tensor)]


def _dense(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Give the tensors that hold a tensor's bytes: a sparse gradient has its indices and values."""
    if tensor.device.type == "meta":
        return []  # DeepSpeed keeps shapes in tensors without bytes
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return []
