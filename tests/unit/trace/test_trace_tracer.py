"""What the tracer counts, and which models it can build."""

import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from trace_cases import (
    CLASSES,
    FEATURES,
    classify,
    mlp,
    program,
    real_peak,
    traced,
    workload,
)

from scaler.counted_memory import CountedMemory
from scaler.trace.tracer import Tracer

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
GIB = 2**30


def live_bytes(trace):
    return sum(trace.blocks[abs(event) - 1].bytes * (1 if event > 0 else -1) for event in trace.events)


def tracing(action):
    """What an action on fake tensors allocates."""
    with FakeTensorMode(), Tracer(1, None) as tracer:
        kept = action()
        held = live_bytes(tracer.trace)
    del kept
    return tracer.trace, held


# What is counted


@quiet
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), max_size=30))
def test_the_trace_is_what_lives(moves):
    lives = []
    with FakeTensorMode(), Tracer(1, None) as tracer:
        for allocate, number in moves:
            if allocate:
                lives.append(torch.empty(number))
            elif lives:
                del lives[number % len(lives)]
            assert live_bytes(tracer.trace) == sum(4 * t.numel() for t in lives)
        lives.clear()
        assert live_bytes(tracer.trace) == 0


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (lambda: torch.zeros(10, 10).t()[2:].reshape(-1), [400, 320]),
        (lambda: torch.zeros(100).view(10, 10), [400]),
        (lambda: torch.zeros(100).add_(1).detach(), [400]),
        (lambda: torch.zeros(10).resize_(50), [40, 200]),
        (lambda: torch.ones(3).expand(1000, 3), [12]),
        (lambda: torch.ones(1000).split(10), [4000]),
        (lambda: torch.stack([torch.ones(5), torch.ones(5)]), [20, 20, 40]),
        (lambda: torch.arange(10).to(torch.float16), [80, 20]),
    ],
)
def test_views_are_free_and_new_storages_are_not(make, blocks):
    trace, held = tracing(make)
    assert [block.bytes for block in trace.blocks] == blocks
    assert 0 < held <= sum(blocks)
    assert live_bytes(trace) == 0
    with CountedMemory() as counted:
        kept = make()
        assert counted.live_bytes == -(-held // 512) * 512
    del kept


def test_what_was_there_before_is_counted_when_told():
    with FakeTensorMode():
        weight = torch.ones(100, requires_grad=True)
        with Tracer(1, None) as tracer:
            weight.detach().mul_(2)
            assert tracer.trace.blocks == []
            tracer.count([weight, weight.detach()], "parameters")
            loss = (weight * 3).sum()
            loss.backward()
            tracer.label([weight.grad], "gradients")
    held = [(block.bytes, block.category, block.phase) for block in tracer.trace.blocks]
    assert (400, "parameters", "forward") in held
    assert (400, "gradients", "backward") in held
    assert [category for _, category, _ in held].count("parameters") == 1


def test_what_backward_needs_is_an_activation():
    trace, _ = tracing(lambda: (torch.ones(100, requires_grad=True) * 2).exp().sum().backward())
    kept = [block.bytes for block in trace.blocks if block.category == "activations"]
    assert 400 in kept  # exp keeps its result
    assert {block.phase for block in trace.blocks} == {"forward", "backward"}


def test_values_that_do_not_exist_have_stand_ins_and_the_guess_is_noted():
    def loss(net, batch):
        x, y = batch
        chosen = y.nonzero()[:, 0]
        if y.max().item() < 0 or torch.equal(y, y + 1):
            return classify(net, batch)
        return F.cross_entropy(net(x)[chosen], y[chosen]) / (1 + x.std().item())

    (note,) = traced(workload(loss=loss), 3).notes
    assert "nonzero" in note and "the largest was taken" in note
    assert traced(workload(), 3).notes == set()


def everything(net, batch):
    """A loss over the examples that a mask picks: here, all."""
    x, y = batch
    return F.cross_entropy(net(x)[y >= 0], y[y >= 0])


def test_a_mask_picks_everything():
    case = workload(loss=everything)
    assert traced(case, 2).notes
    assert program(case).count(9).allocated_bytes == real_peak(case, 9)


# Models


def test_a_large_model_takes_nothing_of_the_host():
    def model():
        layers = [nn.Linear(2**14, 2**14, bias=False) for _ in range(40)]  # 1 GiB each
        return nn.Sequential(nn.Linear(FEATURES, 2**14), *layers, nn.Linear(2**14, CLASSES))

    before = psutil.Process().memory_info().rss
    found = program(workload(model=model))
    assert found.held_bytes("parameters") > 40 * GIB
    assert psutil.Process().memory_info().rss - before < GIB


def test_a_model_that_reads_its_parameters_as_it_is_built_is_traced():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.scale = float(self.inner[0].weight.abs().max()) + len(self.inner[0].bias.tolist())
            nn.init.orthogonal_(self.inner[2].weight)
            self.register_buffer("start", self.inner[0].weight.detach().clone())

        def forward(self, x):
            return self.inner(x) * self.scale

    case = workload(model=Reading)
    assert program(case).count(5).allocated_bytes == real_peak(case, 5)


def test_an_optimizer_that_reads_its_parameters_as_it_is_made_is_traced():
    def optimizer(parameters, rate):
        return torch.optim.SGD(parameters, lr=rate / (1 + max(p.norm().item() for p in parameters)))

    case = workload(optimizer=optimizer)
    assert program(case).count(5).allocated_bytes == real_peak(case, 5)
