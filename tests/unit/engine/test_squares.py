"""Squared gradients by group, and as an optimizer with a second moment scales them."""

import pytest
import torch
from torch import nn

from scaler.engine.squares import GroupSquares, parameter_groups

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, betas=(0.9, 0.7), eps=1e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, betas=(0.9, 0.7), eps=1e-3, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, betas=(0.9, 0.7), eps=1e-3),
    "adamax": lambda p: torch.optim.Adamax(p, betas=(0.9, 0.7), eps=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, alpha=0.7, eps=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, eps=1e-3),
}


def by_hand(name, gradients):
    """P of a parameter after its gradients, from the definition of each optimizer's divisor."""
    v = largest = torch.zeros_like(gradients[0])
    for g in gradients:
        if name == "adamax":
            v = torch.maximum(0.7 * v, g.abs() + 1e-3)
        elif name == "adagrad":
            v = v + g**2
        else:
            v = 0.7 * v + 0.3 * g**2
        largest = torch.maximum(largest, v)
    if name == "adamax":
        return 1 / v
    v = largest if name == "amsgrad" else v
    corrected = v if name in ("rmsprop", "adagrad") else v / (1 - 0.7 ** len(gradients))
    return 1 / (corrected.sqrt() + 1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_scaled_as_the_optimizer_would(name):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(5))]
    optimizer = OPTIMIZERS[name](parameters)
    squares = GroupSquares(nn.ParameterList(parameters), optimizer)
    past = [[torch.randn_like(p) for p in parameters] for _ in range(4)]
    for gradients in past:
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
        squares.next_step()
    new = [torch.randn_like(p) for p in parameters]
    expected = sum(
        float((by_hand(name, [step[n] for step in past]) * g).square().sum()) for n, g in enumerate(new)
    )
    assert float(squares.preconditioned(parameters, new)) == pytest.approx(expected, rel=1e-4)


def test_an_element_without_a_past_does_not_outweigh_the_others():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight])
    squares = GroupSquares(nn.ParameterList([weight]), optimizer)
    assert float(squares.preconditioned([weight], [torch.ones(2)])) == 0  # no step yet, no v
    weight.grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    assert float(squares.preconditioned([weight], [torch.ones(2)])) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.SGD(p, momentum=0.9), lambda p: torch.optim.RMSprop(p, centered=True)],
    ids=["sgd", "centred rmsprop"],
)
def test_without_such_a_moment_there_is_nothing(make):
    weight = nn.Parameter(torch.ones(2))
    optimizer = make([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    squares = GroupSquares(nn.ParameterList([weight]), optimizer)
    assert float(squares.preconditioned([weight], [torch.ones(2)])) == 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.head.weight = self.words.weight
        self.scale = nn.Parameter(torch.ones(1))
        self.spare = nn.Linear(2, 2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_modules_at_the_top_are_groups_each_parameter_in_one(wrapped):
    net = Tied()
    trained = [p for name, p in net.named_parameters() if not name.startswith("spare")]
    module = nn.Sequential(net) if wrapped else net
    groups = parameter_groups(module, torch.optim.SGD(trained, lr=0.1))
    assert {name: [id(p) for p in own] for name, own in groups.items()} == {
        "words (Embedding)": [id(net.words.weight)],
        "head (Linear)": [id(net.head.bias)],
        "Tied": [id(net.scale)],
    }


def test_squares_add_up_by_group_without_what_is_not_trained():
    net = Tied()
    trained = [net.words.weight, net.head.bias]
    squares = GroupSquares(net, torch.optim.SGD(trained, lr=0.1))
    assert not squares.whole
    parameters = [net.scale, net.head.bias, net.words.weight]
    norms = squares.norms([torch.full_like(p, 2.0) for p in parameters])
    assert squares.by_group(parameters, norms).tolist() == pytest.approx([4 * 20, 4 * 5])


def test_sparse_and_16_bit_gradients_are_squared_in_full():
    net = nn.Linear(2, 1)
    squares = GroupSquares(net, torch.optim.SGD(net.parameters(), lr=0.1))
    twice = torch.sparse_coo_tensor([[1, 1]], [1.0, 2.0], (4,), check_invariants=True)
    assert squares.norms([twice]).tolist() == [3.0]
    assert squares.norms([torch.full((10_000,), 300.0, dtype=torch.float16)])[0] == pytest.approx(3e4)
    assert squares.norms([torch.ones(70_000, dtype=torch.bfloat16)])[0] == pytest.approx(70_000**0.5)
