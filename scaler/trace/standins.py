"""Answers where a value is asked of a tensor that has none: any scalar, and the largest shape."""

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


def _scalar(x: torch.Tensor) -> Any:
    if x.dtype == torch.bool:
        return False
    return 0.5 if x.is_floating_point() else 0


STAND_INS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _scalar,
    aten.equal.default: lambda *_: True,
    aten.is_nonzero.default: lambda *_: False,
    aten.nonzero.default: lambda x: x.new_empty((x.numel(), x.dim()), dtype=torch.int64),
    aten.masked_select.default: lambda x, mask: x.new_empty(max(x.numel(), mask.numel())),
}

DATA_DEPENDENT = {aten.nonzero.default, aten.masked_select.default}
