import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scaler.trace import semantics
from scaler.trace.semantics import cuda_semantics

HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run, and the dtypes of their results."""

    def __init__(self):
        super().__init__()
        self.dtypes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        self.dtypes[func.overloadpacket.__name__] = getattr(first, "dtype", None)
        return out


def under_autocast(compute, dtype=HALF):
    with cuda_semantics(8.0), FakeTensorMode(), torch.autocast("cpu", dtype=dtype), Operators() as seen:
        out = compute(torch.empty(4, 8, dtype=dtype, requires_grad=True))
    return out.dtype, seen.dtypes


LABELS = lambda: torch.empty(4, dtype=torch.int64)  # noqa: E731


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize(
    ("name", "compute", "wide"),
    [
        ("cross_entropy", lambda x: F.cross_entropy(x, LABELS()), True),
        ("mse_loss", lambda x: F.mse_loss(x, torch.empty(4, 8)), True),
        ("layer_norm", lambda x: F.layer_norm(x, (8,)), True),
        ("softmax", lambda x: x.softmax(1), True),
        ("log_softmax", lambda x: x.log_softmax(1), True),
        ("sum", lambda x: x.sum(), True),
        ("pow", lambda x: x**2, True),
        ("a dtype that is asked for", lambda x: x.softmax(1, dtype=x.dtype), False),
        ("linear", lambda x: F.linear(x.float(), torch.empty(3, 8)), False),
        ("conv1d", lambda x: F.conv1d(x.float()[None], torch.empty(3, 4, 3)), False),
        ("einsum", lambda x: torch.einsum("ij,kj->ik", x.float(), torch.empty(3, 8)), False),
        ("relu", F.relu, False),
        ("gelu", F.gelu, False),
        ("mean", lambda x: x.mean(), False),
        ("cat of halves", lambda x: torch.cat([x, x]), False),
        ("cat with float32", lambda x: torch.cat([x, x.float()]), True),
        ("grid_sample of halves", lambda x: F.grid_sample(x[None, None], x.new_empty(1, 2, 2, 2)), False),
        ("grid_sample", lambda x: F.grid_sample(x[None, None], torch.empty(1, 2, 2, 2)), True),
        ("addcmul", lambda x: torch.addcmul(x, x, x.float()), True),
        ("batch_norm", lambda x: nn.BatchNorm1d(8)(x), False),
    ],
)
def test_results_have_the_dtypes_that_cuda_s_autocast_gives(name, compute, wide, dtype):
    assert under_autocast(compute, dtype)[0] == (FP32 if wide else dtype), name


def test_softmax_converts_half_within_its_kernel_and_bfloat16_before():
    for dtype, copies in ((HALF, False), (BF16, True)):
        _, seen = under_autocast(lambda x: x.softmax(1), dtype)
        assert seen["_softmax"] == FP32
        assert ("_to_copy" in seen) is copies


@pytest.mark.parametrize("dtype", [HALF, BF16])
def test_cross_entropy_converts_after_log_softmax(dtype):
    _, seen = under_autocast(lambda x: F.cross_entropy(x, LABELS()), dtype)
    assert (seen["_log_softmax"], seen["_to_copy"], seen["nll_loss_forward"]) == (dtype, FP32, FP32)


def test_the_lists_are_those_of_the_installed_torch():
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    if not header.exists():
        pytest.skip("this torch has no headers")
    text = header.read_text(encoding="utf-8")
    ours = {
        "LOWER_PRECISION_FP": semantics._LOWER_PRECISION,
        "FP32": semantics._FP32,
        "FP32_SET_OPT_DTYPE": semantics._FP32_UNLESS_TOLD,
        "PROMOTE": semantics._WIDEST,
    }
    for macro, mine in ours.items():
        found = re.search(rf"#define AT_FORALL_{macro}\(_\)(.*?)(?=\n#define|\n\n|\n//)", text, re.DOTALL)
        assert found, macro
        theirs = {re.sub(r",\s*", ".", entry) for entry in re.findall(r"_\(([^)]*)\)", found[1])}
        theirs.discard("_scaled_dot_product_flash_attention")  # which is chosen after the conversion
        missing, beyond = theirs - set(mine.split()), set(mine.split()) - theirs
        assert not missing, macro
        assert beyond <= {"norm.Scalar", "norm.ScalarOpt_dim"}, macro  # float32 too, by another macro


def attend(capability, dtype, head_dim=64, grad=True, lengths=(16, 16), masked=None, dims=4, **options):
    query = (2, 4, lengths[0], head_dim)[4 - dims :]
    keys = (2, 4, lengths[1], head_dim)[4 - dims :]
    with cuda_semantics(capability), FakeTensorMode(), Operators() as seen:
        q, k, v = (torch.empty(size, dtype=dtype, requires_grad=grad) for size in (query, keys, keys))
        mask = None if masked is None else torch.empty(lengths, dtype=masked)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
        if grad:
            out.sum().backward()
    assert out.shape == query
    if "_scaled_dot_product_flash_attention" in seen.dtypes:
        return "flash"
    return "efficient" if "_scaled_dot_product_efficient_attention" in seen.dtypes else "math"


@pytest.mark.parametrize(
    ("kernel", "case"),
    [
        ("flash", (8.0, HALF)),
        ("flash", (9.0, BF16)),
        ("flash", (8.0, HALF, 20)),  # it pads
        ("flash", (8.0, HALF, 256)),
        ("efficient", (8.0, FP32)),
        ("efficient", (7.5, HALF)),
        ("efficient", (8.0, HALF, 264)),
        ("efficient", (8.6, HALF, 200)),
        ("flash", (8.6, HALF, 200, False)),
        ("efficient", (8.9, HALF, 200)),
        ("flash", (9.0, HALF, 200)),
        ("math", (7.5, BF16)),
        ("math", (7.5, HALF, 20)),
        ("math", (8.0, FP32, 66)),
    ],
)
def test_attention_takes_the_kernel_that_cuda_would(kernel, case):
    assert attend(*case) == kernel


def test_a_mask_a_crooked_triangle_and_three_dimensions_rule_flash_out():
    assert attend(8.0, HALF, masked=torch.bool) == "efficient"
    assert attend(8.0, HALF, masked=HALF) == "efficient"
    assert attend(8.0, HALF, lengths=(8, 16), is_causal=True) == "efficient"
    assert attend(8.0, HALF, lengths=(8, 16)) == "flash"
    assert attend(8.0, HALF, dims=3) == "math"


def test_kernels_that_the_user_turned_off_are_not_taken():
    with nn.attention.sdpa_kernel(
        [nn.attention.SDPBackend.EFFICIENT_ATTENTION, nn.attention.SDPBackend.MATH]
    ):
        assert attend(8.0, HALF) == "efficient"
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        assert attend(8.0, HALF) == "math"


def test_dropout_keeps_a_mask_of_one_byte_an_element():
    with cuda_semantics(8.0), FakeTensorMode():
        y = F.dropout(torch.empty(4, 8, requires_grad=True), 0.1)
        mask = y.grad_fn._saved_result1
        assert (mask.dtype, mask.shape) == (torch.bool, y.shape)
        x = torch.empty(4)
        assert F.dropout(x, 0.1, training=False) is x


def test_optimizers_take_all_parameters_together_unless_told_otherwise():
    for foreach, together in ((None, True), (False, False), (True, True)):
        with cuda_semantics(8.0), FakeTensorMode(), Operators() as seen:
            layer = nn.Linear(4, 4)
            layer(torch.empty(2, 4)).sum().backward()
            torch.optim.AdamW(layer.parameters(), foreach=foreach).step()
        assert any(name.startswith("_foreach") for name in seen.dtypes) is together


def test_everything_is_as_before_after_the_block():
    def observe():
        with FakeTensorMode(), torch.autocast("cpu", dtype=BF16), Operators() as seen:
            x = torch.empty(2, 2, 4, 8, dtype=BF16, requires_grad=True)
            dtypes = [f(x).dtype for f in (F.relu, torch.exp, lambda x: x.softmax(-1), torch.sum, F.dropout)]
            F.scaled_dot_product_attention(x, x, x)
            layer = nn.Linear(8, 8)
            layer(x).sum().backward()
            torch.optim.SGD(layer.parameters(), 0.1).step()
        return dtypes, sorted(seen.dtypes), torch.is_autocast_enabled("cpu")

    before = observe()
    with cuda_semantics(8.0):
        assert observe() != before
    assert observe() == before
    with pytest.raises(ValueError, match="stop"), cuda_semantics(8.0):
        raise ValueError("stop")
    assert observe() == before
