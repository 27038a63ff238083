"""Device memory that libraries take beside tensors: cuBLAS, cuDNN, flash attention."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

aten = torch.ops.aten

_MIB = 2**20
_TENSOR_CORES = {torch.float16: 7.0, torch.bfloat16: 8.0}
_HOPPER = 9.0

_GEMMS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


class Workspaces:
    """What each operator's library takes, on a device of `compute_capability`."""

    def __init__(self, compute_capability: float) -> None:
        self._compute_capability = compute_capability
        # getChosenWorkspaceSize in ATen/cuda/CublasHandlePool.cpp
        self._cublas_bytes = 32 * _MIB if compute_capability >= _HOPPER else 8 * _MIB + 128 * 1024
        self._handles: set[str] = set()
        self._searched: set[Any] = set()

    def of(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],  # noqa: ARG002
        phase: str,
    ) -> Iterator[tuple[int, bool] | None]:
        """Yield (bytes, whether they stay) for one operator call: as many at every size, 0 bytes for none.

        None stands for a release of cached memory.
        """
        if func in _GEMMS:
            # A handle for each thread: autograd's backward has its own.
            thread = "backward" if phase == "backward" else "main"
            if thread not in self._handles:
                self._handles.add(thread)
                yield self._cublas_bytes, True
        elif func is aten.convolution.default:
            x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
            out = _output_numel(x, weight, stride, padding, dilation, transposed, output_padding, groups)
            yield from self._search("forward", x, weight, stride, padding, dilation, groups)
            yield self._cudnn_bytes(x, weight, out, groups), False
        elif func is aten.convolution_backward.default:
            out_grad, x, weight, _, stride, padding, dilation, _, _, groups, wanted = args
            size_bytes = self._cudnn_bytes(x, weight, out_grad.numel(), groups)
            for gradient, is_wanted in zip(("input", "weight"), wanted, strict=False):
                if is_wanted:
                    yield from self._search(gradient, x, weight, stride, padding, dilation, groups)
                yield size_bytes if is_wanted else 0, False
        elif func in _TRANSIENT:
            yield _TRANSIENT[func](args), False

    def _search(self, what: str, x: torch.Tensor, weight: torch.Tensor, *how: Any) -> Iterator[None]:
        """Release cached memory once for each convolution where `torch.backends.cudnn.benchmark` is set.

        All algorithms are then tried out, in whatever memory is left, and what that cached is given back
        (run_single_conv in ATen/native/cudnn/Conv_v8.cpp).
        """
        key = (what, x.shape, x.dtype, weight.shape, str(how))
        if torch.backends.cudnn.benchmark and key not in self._searched:
            self._searched.add(key)
            yield None

    def _cudnn_bytes(self, x: torch.Tensor, weight: torch.Tensor, output_numel: int, groups: int) -> int:
        """Give the workspace of one convolution, or of one of its gradients.

        cuDNN's 16-bit tensor-core kernels want channels last. For other tensors it converts: copies of
        input, weight and output lie in the workspace (NVIDIA, Convolutional Layers User's Guide, "Tensor
        Layout"; nchwToNhwcKernel and back in profiles: instanseg/instanseg#144). Float32 kernels come for
        both layouts (tensorflow/tensorflow#56744), and a depthwise convolution has kernels of its own.
        """
        if self._compute_capability < _TENSOR_CORES.get(x.dtype, float("inf")) or _is_depthwise(x, groups):
            return 0
        if any(t.dim() == 4 and suggest_memory_format(t) == torch.channels_last for t in (x, weight)):
            return 0  # cudnn_conv_suggest_memory_format in ATen/native/ConvUtils.h
        return int(x.itemsize * (x.numel() + weight.numel() + output_numel))


def _is_depthwise(x: torch.Tensor, groups: int) -> bool:
    return groups > 1 and groups == x.size(1)


def _output_numel(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> int:
    """Count the elements of a convolution's result, as its documentation gives them."""
    sizes, kernels = x.shape[2:], weight.shape[2:]
    # One number may stand for all dimensions.
    stride, padding, dilation, output_padding = (
        [*given] * (len(sizes) // len(given)) for given in (stride, padding, dilation, output_padding)
    )
    total = int(x.size(0)) * (weight.size(1) * groups if transposed else weight.size(0))
    for i, (size, kernel) in enumerate(zip(sizes, kernels, strict=True)):
        reach = dilation[i] * (kernel - 1)
        if transposed:
            total *= (size - 1) * stride[i] - 2 * padding[i] + reach + output_padding[i] + 1
        else:
            total *= (size + 2 * padding[i] - reach - 1) // stride[i] + 1
    return int(total)


def _flash_backward_bytes(args: Sequence[Any]) -> int:
    """Float32 dQ and row sums, padded (flash_api.cpp: rounds the length to 128 and the head to 32)."""
    batch, heads, length, head_dim = args[1].shape
    return int(batch * heads * _round_up(length, 128) * (_round_up(head_dim, 32) + 1) * 4)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


_TRANSIENT: dict[Any, Callable[[Sequence[Any]], int]] = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward_bytes,
}
