"""Answers where a value is asked of a tensor that has none: any scalar, and the largest shape."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def _scalar(x: torch.Tensor) -> Any:
    if x.dtype == torch.bool:
        return False
    return 0.5 if x.is_floating_point() else 0


def _index(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Index where a mask picks every element."""
    picked: list[torch.Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in _MASKS:
            picked.append(index)
        else:
            picked += [index.new_zeros(index.numel(), dtype=torch.int64)] * index.dim()
    out: torch.Tensor = aten.index.Tensor(x, picked)
    return out


_MASKS = (torch.bool, torch.uint8)

STAND_INS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _scalar,
    aten.equal.default: lambda *_: True,
    aten.is_nonzero.default: lambda *_: False,
    aten.nonzero.default: lambda x: x.new_empty((x.numel(), x.dim()), dtype=torch.int64),
    aten.masked_select.default: lambda x, mask: x.new_empty(max(x.numel(), mask.numel())),
    aten.index.Tensor: _index,
}

DATA_DEPENDENT = {aten.nonzero.default, aten.masked_select.default}


def depends_on_data(func: Any, args: Sequence[Any]) -> bool:
    """Whether the shape of an operator's result depends on values."""
    masks = func is aten.index.Tensor and any(i is not None and i.dtype in _MASKS for i in args[1])
    return masks or func in DATA_DEPENDENT
