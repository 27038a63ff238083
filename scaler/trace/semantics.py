"""Makes fake CPU tensors allocate as CUDA tensors would: autocast, attention, dropout, foreach optimizers.

Fake CUDA tensors need a CUDA build of torch; fake CPU tensors run anywhere, but pick CPU kernels.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
optim: Any = optimizer  # of whose private functions one is replaced

# The lists of torch/include/ATen/autocast_mode.h, which CUDA uses and the CPU does not.
_LOWER_PRECISION = """_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv
linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
_thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell scaled_dot_product_attention"""
_FP32 = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim
nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d
hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp norm.Scalar norm.ScalarOpt_dim
upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d
upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa
upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa"""
_FP32_UNLESS_TOLD = """prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm
linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList"""
_WIDEST = """addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot
scatter_add"""

_HALF = (torch.float16, torch.bfloat16)
_VOLTA, _AMPERE = 7.0, 8.0
_SMALL_CHIPS = ((8.6, 8.9), (12.0, 12.1))  # with less shared memory
_FLASH_HEAD_DIM = 256


@contextlib.contextmanager
def cuda_semantics(compute_capability: float) -> Iterator[None]:
    """Follow CUDA's choices on CPU tensors, inside the block, for a device of `compute_capability`."""
    devices, types = optim._get_foreach_kernels_supported_devices, optim._foreach_supported_types
    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each replaced kernel is announced
        _replace_autocast(library)
        library.impl("dropout", _dropout, "AutogradCPU")
        attention = functools.partial(_attention, compute_capability)
        library.impl("scaled_dot_product_attention", attention, "AutogradCPU")
        # On CUDA an optimizer takes all parameters at once unless told otherwise: more temporaries.
        optim._get_foreach_kernels_supported_devices = lambda: [*devices(), "cpu"]
        optim._foreach_supported_types = [*types, FakeTensor]
        try:
            yield
        finally:
            optim._get_foreach_kernels_supported_devices = devices
            optim._foreach_supported_types = types


def _replace_autocast(library: torch.library.Library) -> None:
    theirs = " ".join((_LOWER_PRECISION, _FP32, _FP32_UNLESS_TOLD, _WIDEST)).split()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for full_name in torch._C._dispatch_get_all_op_names():
        name = full_name.removeprefix("aten::")
        if full_name.startswith("aten::") and name not in theirs and has_kernel(full_name, "AutocastCPU"):
            library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")
    for name in _LOWER_PRECISION.split():
        if name != "scaled_dot_product_attention" and not has_kernel(f"aten::{name}", "AutocastCPU"):
            _cast(library, name, _to_lower)
    for name in _FP32.split():
        _cast(library, name, _to_fp32)
    for name in _WIDEST.split():
        _cast(library, name, _to_widest)
    for name in _FP32_UNLESS_TOLD.split():
        library.impl(name, functools.partial(_fp32_unless_told, _operator(name)), "AutocastCPU")


def _cast(library: torch.library.Library, name: str, convert: Callable[[Any], Any]) -> None:
    operator = _operator(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = convert((args, kwargs))
        with _no_autocast():
            return operator(*args, **kwargs)

    library.impl(name, kernel, "AutocastCPU")


def _fp32_unless_told(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Ask for float32 output where the caller names no dtype: CUDA converts within the kernel."""
    position = [argument.name for argument in operator._schema.arguments].index("dtype")
    told = args[position] if len(args) > position else kwargs.get("dtype")
    with _no_autocast():
        if told is not None or args[0].dtype not in _HALF:
            return operator(*args, **kwargs)
        if "softmax" in operator.name() and args[0].dtype == torch.float16:
            fused = aten._log_softmax if "log_" in operator.name() else aten._softmax
            return fused(args[0], args[1] if len(args) > 1 else kwargs["dim"], True)
        if len(args) > position:
            return operator(*args[:position], torch.float32, *args[position + 1 :], **kwargs)
        return operator(*args, **{**kwargs, "dtype": torch.float32})


def _dropout(x: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """Keep a mask of one byte an element, as CUDA's fused kernel does."""
    return aten.native_dropout(x, p, True)[0] if train and p > 0 else x


def _attention(
    compute_capability: float,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Choose among CUDA's kernels as torch's sdp_utils.cpp does: flash, memory-efficient, plain math."""
    out: torch.Tensor
    if attn_mask is None and _flash_takes(compute_capability, query, key, value, dropout_p, is_causal):
        out, *_ = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
        return out
    if not _efficient_takes(compute_capability, query, value):
        out, _ = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )
        return out
    if enable_gqa:
        repeats = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
        attn_mask = attn_mask.expand(query.size(0), query.size(1), query.size(2), key.size(2))
    with_logsumexp = torch.is_grad_enabled() and query.requires_grad
    out, *_ = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, with_logsumexp, dropout_p, is_causal, scale=scale
    )
    return out


def _flash_takes(
    compute_capability: float,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
) -> bool:
    head_dim = query.size(-1)
    # check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120
    small = query.requires_grad and any(low <= compute_capability <= high for low, high in _SMALL_CHIPS)
    no_backward = small and head_dim > 192 and (head_dim <= 224 or dropout_p > 0)
    return (
        torch.backends.cuda.flash_sdp_enabled()
        and query.dtype in _HALF
        and compute_capability >= _AMPERE
        and query.dim() == 4
        and head_dim == value.size(-1)
        and head_dim <= _FLASH_HEAD_DIM
        and not no_backward
        and not (is_causal and query.size(-2) != key.size(-2))
    )


def _efficient_takes(compute_capability: float, query: torch.Tensor, value: torch.Tensor) -> bool:
    if query.dtype in _HALF:
        alignment = 8 if compute_capability >= _VOLTA else 1
    else:
        alignment = 4 if compute_capability >= _AMPERE else 1  # both: minimum_gemm_alignment
    return (
        torch.backends.cuda.mem_efficient_sdp_enabled()
        and query.dim() == 4
        and query.size(-1) % alignment == 0
        and value.size(-1) % alignment == 0
        and (query.dtype != torch.bfloat16 or compute_capability >= _AMPERE)
    )


def _to_fp32(tree: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.float() if t.dtype in _HALF else t, tree)


def _to_widest(tree: Any) -> Any:
    dtypes = {leaf.dtype for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
    return _to_fp32(tree) if torch.float32 in dtypes else tree


def _to_lower(tree: Any) -> Any:
    dtype = torch.get_autocast_dtype("cpu")
    return tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    enabled = torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("cpu", False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cpu", enabled)


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")
