import itertools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from scaler.trace.workspaces import Workspaces

MIB = 2**20
HALF = torch.float16


class Asking(TorchDispatchMode):
    """Collects what the operators of a computation yield, by operator."""

    def __init__(self, compute_capability=8.6):
        super().__init__()
        self.workspaces = Workspaces(compute_capability)
        self.found = []
        self.released = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        phase = "backward" if torch._C._current_graph_task_id() != -1 else "forward"
        of = self.workspaces.of(func, args, kwargs or {}, phase)
        for item in of:
            if item is None:
                self.released.append(func.overloadpacket.__name__)
            else:
                self.found.append((func.overloadpacket.__name__, *item))
        return func(*args, **(kwargs or {}))


def convolve(make, batch=2, channels=32, image=16, capability=8.6, dtype=HALF, layout=None, grad=True):
    with FakeTensorMode(), Asking(capability) as asking:
        layer = make(dtype=dtype)
        x = torch.empty(batch, channels, *[image] * (layer.weight.dim() - 2), dtype=dtype, requires_grad=grad)
        y = layer(x.to(memory_format=layout) if layout else x)
        y.sum().backward()
    return (
        [(size, stays) for name, size, stays in asking.found if name.startswith("convolution")],
        x,
        layer,
        y,
    )


def test_a_half_precision_convolution_copies_its_tensors_for_each_of_its_passes():
    found, x, layer, y = convolve(lambda **to: nn.Conv2d(32, 64, 3, stride=2, padding=1, **to))
    tensors_bytes = 2 * (x.numel() + layer.weight.numel() + y.numel())
    assert len(found) == 3  # forward, gradient of the input, gradient of the weight
    for size_bytes, stays in found:
        assert not stays
        assert size_bytes == tensors_bytes


def test_the_gradient_of_an_image_is_not_computed():
    found, *_ = convolve(lambda **to: nn.Conv2d(32, 64, 3, **to), grad=False)
    assert [size_bytes > 0 for size_bytes, _ in found] == [True, False, True]


@pytest.mark.parametrize(
    "layer",
    [
        lambda **to: nn.Conv1d(32, 48, 5, padding=2, dilation=2, **to),
        lambda **to: nn.Conv2d(32, 48, (3, 1), stride=(2, 1), padding="valid", groups=4, **to),
        lambda **to: nn.Conv3d(32, 16, 3, stride=2, **to),
        lambda **to: nn.ConvTranspose2d(32, 48, 3, stride=2, padding=1, output_padding=1, groups=2, **to),
        lambda **to: nn.ConvTranspose1d(32, 8, 4, dilation=2, **to),
    ],
)
def test_forward_and_backward_agree_on_every_shape(layer):
    found, *_ = convolve(layer, channels=32)
    assert len({size_bytes for size_bytes, _ in found}) == 1  # only the forward computes the output's size
    assert found[0][0] > 0


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("channels last", {"layout": torch.channels_last}),
        ("float32", {"dtype": torch.float32}),
        ("no tensor cores", {"capability": 6.1}),
        ("no tensor cores for bfloat16", {"capability": 7.5, "dtype": torch.bfloat16}),
    ],
)
def test_a_convolution_needs_no_copies_with(why, options):
    found, *_ = convolve(lambda **to: nn.Conv2d(32, 64, 3, **to), **options)
    assert [size_bytes for size_bytes, _ in found] == [0, 0, 0], why


def test_weights_in_channels_last_decide_as_well():
    def make(dtype):
        layer = nn.Conv2d(32, 64, 3, dtype=dtype)
        layer.weight.data = torch.empty(64, 32, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        return layer

    found, *_ = convolve(make)
    assert [size_bytes for size_bytes, _ in found] == [0, 0, 0]


def test_a_depthwise_convolution_needs_none_and_a_grouped_one_less_than_a_dense_one():
    dense, grouped, depthwise = (
        convolve(lambda groups=groups, **to: nn.Conv2d(32, 32, 3, groups=groups, **to))[0][0][0]
        for groups in (1, 4, 32)
    )
    assert dense > grouped > depthwise == 0


def test_sizes_lie_on_a_line_in_the_batch_and_their_number_does_not_change():
    for options in ({}, {"layout": torch.channels_last}, {"grad": False}):
        runs = [
            convolve(lambda **to: nn.Conv2d(32, 64, 3, stride=2, padding=1, **to), batch=batch, **options)[0]
            for batch in (2, 3, 50)
        ]
        for small, larger, largest in zip(*runs, strict=True):
            assert largest[0] == small[0] + 48 * (larger[0] - small[0])


@pytest.mark.parametrize(("benchmark", "releases"), [(True, 1), (False, 0)])
def test_cached_memory_is_released_once_for_each_convolution_that_is_searched(
    monkeypatch, benchmark, releases
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    with FakeTensorMode(), Asking() as asking:
        layers = [nn.Conv2d(8, 8, 3, dtype=HALF), nn.Conv2d(8, 8, 3, dtype=HALF)]
        for _ in range(2):  # neither a second layer of the same shapes nor a second step is searched
            for layer in layers:
                layer(torch.empty(2, 8, 6, 6, dtype=HALF, requires_grad=True)).sum().backward()
    assert asking.released == ["convolution", "convolution_backward", "convolution_backward"] * releases


@pytest.mark.parametrize(("capability", "size_bytes"), [(8.0, 8 * MIB + 128 * 1024), (9.0, 32 * MIB)])
def test_cublas_keeps_a_workspace_for_each_thread_that_multiplies(capability, size_bytes):
    with FakeTensorMode(), Asking(capability) as asking:
        layer = nn.Linear(8, 8)
        for _ in range(2):
            layer(torch.empty(4, 8)).sum().backward()
    assert [(size, stays) for _, size, stays in asking.found] == [(size_bytes, True)] * 2


def test_flash_attention_s_backward_accumulates_in_float32():
    sizes = []
    for batch, length, head_dim in itertools.product((1, 3), (128, 129), (32, 33)):
        shape = (batch, 2, length, head_dim)
        with FakeTensorMode(), Asking() as asking:
            q, k, v = (torch.empty(shape, dtype=HALF, requires_grad=True) for _ in range(3))
            out, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
            out.sum().backward()
        ((name, size_bytes, stays),) = asking.found
        assert name == "_scaled_dot_product_flash_attention_backward"
        assert size_bytes >= 4 * q.numel()
        assert not stays
        sizes.append(size_bytes)
    assert sizes[4:] == [3 * size_bytes for size_bytes in sizes[:4]]
    assert sizes[0] < sizes[1]
    assert sizes[0] < sizes[2]
