"""What cannot be traced and how that is said, and that torch is left as it was."""

import contextlib
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import _default_to_fused_or_foreach
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from trace_cases import (
    CLASSES,
    FEATURES,
    Attention,
    Transformer,
    convolutions,
    images,
    mlp,
    sentences,
    traced,
    workload,
)

from scaler.errors import BadInput, WorkloadError
from scaler.trace.step import Untraceable

# What cannot be traced


class Holder(nn.Module):
    """A network with a part of the given name."""

    def __init__(self, part):
        super().__init__()
        self.encoder, self.head = part, nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x))


class Cutting(nn.Module):
    """Cuts its input where a value says: with values, nowhere."""

    def forward(self, x):
        return x[:, : 100 * int(x.abs().sum() == 0)]


class ThroughNumpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy()) * 2


@torch.library.custom_op("scaler_tests::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return x * 3


class Custom(nn.Module):
    def forward(self, x):
        return triple(x)


compiling = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports


@compiling
@pytest.mark.parametrize(
    ("part", "named"),
    [
        (Cutting, r"head \(Linear\): .*must have same reduction dim"),
        (ThroughNumpy, r"encoder \(ThroughNumpy\): .*numpy"),
        (Custom, r"encoder \(Custom\): There was no fake impl registered.*triple"),
        (lambda: torch.compile(nn.Linear(FEATURES, FEATURES)), "encoder: it is compiled"),
    ],
)
def test_what_needs_values_is_named(part, named):
    case = workload(model=lambda: Holder(part()))
    with pytest.raises(Untraceable, match=named):
        traced(case, 2)


@compiling
def test_a_model_compiled_in_place_is_named_too():
    def model():
        net = mlp()
        net.compile()
        return net

    with pytest.raises(Untraceable, match="the model: it is compiled"):
        traced(workload(model=model), 2)


def attribute(net, batch):
    return net(batch[0]).no_such_method()


def index(net, batch):
    return net(batch[2])


@pytest.mark.parametrize(
    ("loss", "said"), [(attribute, "no_such_method"), (index, "tuple index out of range")]
)
def test_a_plain_fault_in_the_loss_is_said(loss, said):
    with pytest.raises(Untraceable, match=said):
        traced(workload(loss=loss), 2)


def test_a_fault_after_the_model_is_the_losses():
    with pytest.raises(Untraceable, match=r"^the loss: "):
        traced(workload(loss=attribute), 2)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"loss": lambda net, batch: net(batch[0])}, BadInput, r"loss\(\) returned a tensor of shape"),
        ({"loss": lambda net, batch: 1.0}, BadInput, r"loss\(\) returned 1\.0"),
        ({"model": lambda: 3}, BadInput, r"model\(\) returned int"),
        ({"model": lambda: mlp().requires_grad_(False)}, BadInput, "no parameter .* requires a gradient"),
        ({"optimizer": lambda parameters, rate: None}, BadInput, r"optimizer\(\) returned NoneType"),
        ({"model": lambda: 1 // 0}, WorkloadError, r"model\(\) raised ZeroDivisionError"),
        ({"optimizer": lambda parameters, rate: 1 // 0}, WorkloadError, r"optimizer\(\) raised Zero"),
        ({"train_data": lambda: 1 // 0}, WorkloadError, r"train_data\(\) raised ZeroDivisionError"),
        ({"train_data": list}, BadInput, r"train_data\(\) returned list, without items"),
        ({"collate": lambda examples: 1 // 0}, WorkloadError, r"collate\(\) raised ZeroDivisionError"),
        ({"worst_case": lambda size: 1 // 0}, WorkloadError, r"worst_case\(\) raised ZeroDivisionError"),
    ],
)
def test_a_wrong_workload_is_bad_input(fields, error, said):
    with pytest.raises(error, match=said):
        traced(workload(**({"train_data": lambda: [(torch.zeros(FEATURES), 1)]} | fields)), 2)


# Torch afterwards


def autocast_dtypes():
    """What a few operators give under autocast on this CPU."""
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = x.bfloat16()
        results = [
            F.linear(x, x),
            half.softmax(1),
            half.sum(),
            F.layer_norm(half, (4,)),
            half.exp(),
            half.float().prod(),
            F.mse_loss(half, half),
            torch.cat([half, x]),
        ]
    return [result.dtype for result in results]


def state_of_torch():
    parameter = nn.Parameter(torch.ones(1))
    x = torch.ones(2, 2, 4, 8, requires_grad=True)
    modules = nn.modules.module
    return {
        "autocast": autocast_dtypes(),
        "dropout": type(F.dropout(x, 0.5).grad_fn).__name__,
        "attention": type(F.scaled_dot_product_attention(x, x, x).grad_fn).__name__,
        "foreach": _default_to_fused_or_foreach([parameter], differentiable=False, use_fused=False),
        "collecting": gc.isenabled(),
        "modes": len(_get_current_dispatch_mode_stack()),
        "hooks": [len(hooks) for name, hooks in vars(modules).items() if name.endswith("_hooks") and hooks],
        "types": type(torch.ones(1) + 1),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("kind", ["mock", "cuda"])
@pytest.mark.parametrize(
    "case",
    [
        workload(model=convolutions, train_data=images, precision="bf16"),
        workload(model=Transformer, train_data=sentences, precision="fp16"),
        workload(model=lambda: Holder(Custom())),  # ends in an error
        workload(loss=attribute),
    ],
    ids=["convolutions", "transformer", "untraceable", "faulty"],
)
def test_torch_is_as_it_was(case, kind):
    before = state_of_torch()
    with contextlib.suppress(Untraceable):
        traced(case, 2, kind=kind)
    assert state_of_torch() == before
    assert type(case.model()) is not FakeTensor


def test_garbage_stays_uncollected_where_it_was():
    gc.disable()
    try:
        traced(workload(), 2)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_real_model_trains_after_tracing_its_like():
    case = workload(
        model=lambda: nn.Sequential(nn.Embedding(50, 16), Attention(), nn.Dropout(0.1), nn.Linear(16, 4))
    )
    traced(workload(model=Transformer, train_data=sentences, precision="bf16"), 2, kind="cuda")
    torch.manual_seed(0)
    net = case.model()
    steps = torch.optim.AdamW(net.parameters(), lr=0.02)
    x, y = torch.randint(0, 50, (16, 10)), torch.randint(0, 4, (16, 10))
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
