"""Records when the storages of a training step are allocated and freed, and what they are for."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scaler.records import Regime
from scaler.trace.standins import STAND_INS, depends_on_data
from scaler.trace.workspaces import Workspaces

Phase = Regime
Category = Literal[
    "parameters", "gradients", "optimizer_state", "activations", "temporaries", "workspaces", "buffers"
]

aten = torch.ops.aten


@dataclass
class Block:
    """One allocation: its bytes as asked for, and the phase and category it belongs to."""

    bytes: int
    phase: Phase
    category: Category = "temporaries"


@dataclass
class Trace:
    """Allocations in order: event k > 0 allocates block k - 1, event k < 0 frees block -k - 1.

    Event 0 gives cached memory back to the device.
    """

    micro_batch: int
    element_bytes: int = 4
    """Bytes of a trained parameter's element."""
    notes: set[str] = field(default_factory=set)
    """What of the step was guessed."""
    blocks: list[Block] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    """The phase at each event."""
    step_ends: list[int] = field(default_factory=list)
    """Number of events before the first optimizer step, and after each."""


class Tracer(TorchDispatchMode):
    """Traces storages that operators create while active; enter it inside a FakeTensorMode.

    Values do not exist: operators that read one get a stand-in.
    """

    def __init__(self, micro_batch: int, workspaces: Workspaces | None) -> None:
        super().__init__()
        self.trace = Trace(micro_batch)
        self.optimizing = False
        self.operator = ""
        self._workspaces = workspaces
        self._live: dict[int, tuple[int, int, Any]] = {}  # storage -> block, bytes, weak reference
        self._unfilled: int | None = None

    @property
    def phase(self) -> Phase:
        """Where the step is: inside autograd's backward, between it and the step's end, or before."""
        if torch._C._current_graph_task_id() != -1:
            return "backward"
        return "optimizer" if self.optimizing else "forward"

    def end_step(self) -> None:
        """Mark the end of an optimizer step (the first mark: the end of building)."""
        self.trace.step_ends.append(len(self.trace.events))

    def count(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Count tensors that were there before, from now on."""
        tensors = list(tensors)
        for tensor in tensors:
            self._allocate(tensor.untyped_storage())
        self.label(tensors, category)

    def label(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Say what tensors are for; those that are not counted (on the host) stay so."""
        for tensor in tensors:
            known = self._live.get(tensor.untyped_storage()._cdata)
            if known is not None:
                self.trace.blocks[known[0]].category = category

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.operator = str(func)
        if self._workspaces is not None:
            for workspace in self._workspaces.of(func, args, kwargs, self.phase):
                if workspace is None:
                    self._add(0)
                else:
                    self._workspace(*workspace)
        unfilled = self._unfilled
        if unfilled is not None and func in _FILLED_IN_PLACE and args[0].untyped_storage()._cdata == unfilled:
            self._free(unfilled)  # only modes and subclasses take this detour through a copy
        stand_in = STAND_INS.get(func)
        out = stand_in(*args, **kwargs) if stand_in else func(*args, **kwargs)
        if depends_on_data(func, args):
            self.trace.notes.add(f"{func}: its result's shape depends on data; the largest was taken")
        if func in _ON_HOST:
            return out
        leaves = [out] if isinstance(out, torch.Tensor) else tree_leaves(out)
        new = [s for leaf in leaves if isinstance(leaf, torch.Tensor) for s in _storages(leaf)]
        if any(self._size(storage) != storage.nbytes() for storage in new):
            before = {
                s._cdata
                for leaf in tree_leaves((args, kwargs))
                if isinstance(leaf, torch.Tensor)
                for s in _storages(leaf)
            }
            for storage in new:
                if storage._cdata not in before or storage._cdata in self._live:
                    self._allocate(storage)
        self._unfilled = new[0]._cdata if func is aten.new_zeros.default and new else None
        return out

    def _size(self, storage: torch.UntypedStorage) -> int:
        known = self._live.get(storage._cdata)
        return known[1] if known else -1

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = storage._cdata, storage.nbytes()
        if self._size(storage) == size_bytes:
            return
        if key in self._live:
            self._free(key)  # it was resized
        block = self._block(size_bytes)
        self._live[key] = (block, size_bytes, weakref.ref(storage, lambda _: self._free(key)))

    def _block(self, size_bytes: int, category: Category = "temporaries") -> int:
        self.trace.blocks.append(Block(size_bytes, self.phase, category))
        self._add(len(self.trace.blocks))
        return len(self.trace.blocks) - 1

    def _free(self, key: int) -> None:
        if key not in self._live:
            return
        block = self._live.pop(key)[0]
        made = self.trace.blocks[block]
        if made.category == "temporaries" and made.phase == "forward" and self.phase != "forward":
            made.category = "activations"
        self._add(-block - 1)

    def _workspace(self, size_bytes: int, stays: bool) -> None:
        block = self._block(size_bytes, "workspaces")
        if not stays:
            self._add(-block - 1)

    def _add(self, event: int) -> None:
        self.trace.events.append(event)
        self.trace.phases.append(self.phase)


def _storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    if tensor.device.type == "meta":
        return []
    if tensor.layout == torch.strided:
        return [tensor.untyped_storage()]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices().untyped_storage(), tensor._values().untyped_storage()]
    return []


_ON_HOST = {aten.lift_fresh.default, aten.lift_fresh_copy.default}  # torch.tensor(3.0): Adam's step counters

_FILLED_IN_PLACE = {
    aten.scatter_add.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.index_add.default,
    aten.index_put.default,
}
