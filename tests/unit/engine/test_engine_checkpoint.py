"""What torch.save wrote is read without running it, and matched with the model before anything trains."""

import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from scaler.batch import BatchPlan
from scaler.engine.checkpoint import (
    check_optimizer,
    load_model,
    load_optimizer,
    read_checkpoint,
    save_checkpoint,
)
from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput


def net(width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def stepped(make, module):
    """An optimizer that has done two steps."""
    optimizer = make(module.parameters())
    for _ in range(2):
        module(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return optimizer


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.fixture
def saved(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "state.pt")
        return tmp_path / "state.pt"

    return save


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "examples": 640},
        lambda state: {"model_state_dict": state, "epoch": 3, "optimizer_state_dict": None},
        lambda state: {"state_dict": OrderedDict((f"module.{key}", value) for key, value in state.items())},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    ],
)
def test_every_usual_form_of_a_models_state_is_read(saved, wrap):
    source = net()
    source(torch.randn(16, 4))  # the running statistics move
    found = read_checkpoint(saved(wrap(source.state_dict())))
    target = net()
    load_model(target, found)
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    assert found.optimizer is None
    assert found.examples in (None, 640)


class Trap:
    def __reduce__(self):
        return print, ("the trap went off",)


def test_nothing_in_the_file_is_executed(saved, capsys):
    path = saved({"model": net().state_dict(), "more": Trap()})
    with pytest.raises(BadInput, match="only tensors and plain values"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadInput):
        read_checkpoint(path)
    assert "trap" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds list, not a state_dict"),
        ({"epoch": 3, "lr": 0.1}, "no state_dict of a model, but epoch, lr"),
        ({}, "no state_dict of a model, but nothing"),
        ({"model": {"a": torch.ones(1)}, "optimizer": {"lr": 1.0}}, "its optimizer is not a state_dict"),
    ],
)
def test_a_file_of_something_else_is_named(saved, content, says):
    with pytest.raises(BadInput, match=says) as raised:
        read_checkpoint(saved(content))
    assert "torch.save" in raised.value.hint


def test_a_file_that_is_absent_or_cut_is_named(tmp_path, saved):
    with pytest.raises(BadInput, match="no such checkpoint on the worker"):
        read_checkpoint(tmp_path / "none.pt")
    path = saved(net().state_dict())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadInput, match="is damaged, or not"):
        read_checkpoint(path)


def test_what_does_not_match_the_model_is_listed(saved):
    state = net(width=5).state_dict()
    state["extra"] = state.pop("2.bias")
    with pytest.raises(BadInput) as raised:
        load_model(net(), read_checkpoint(saved(state)))
    lines = raised.value.message.splitlines()
    assert "missing: 2.bias" in lines[1]
    assert "unexpected: extra" in lines[2]
    assert "of another shape: 0.weight (5, 4) for (3, 4)" in lines[3] and "more" in lines[3]


@pytest.mark.parametrize("make", [adam, momentum])
def test_an_optimizer_goes_on_with_its_state_and_the_workloads_settings(saved, make):
    module = net()
    optimizer = stepped(make, module)
    found = read_checkpoint(saved({"model": module.state_dict(), "optimizer": optimizer.state_dict()}))
    fresh = net()
    load_model(fresh, found)
    other = make(fresh.parameters())
    other.param_groups[0]["lr"] = 7.0
    load_optimizer(other, found)
    assert other.param_groups[0]["lr"] == 7.0
    assert found.learning_rate == optimizer.param_groups[0]["lr"]
    assert check_optimizer(make(net().parameters()), found)
    other.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    for network, own in ((module, optimizer), (fresh, other)):
        own.zero_grad()
        torch.manual_seed(1)
        network(torch.randn(8, 4)).square().mean().backward()
        own.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), fresh.parameters(), strict=True))


def test_the_state_of_another_optimizer_is_refused(saved):
    module = net()
    state = {"model": module.state_dict(), "optimizer": stepped(adam, module).state_dict()}
    with pytest.raises(BadInput, match="keeps exp_avg, exp_avg_sq, step; the workload's SGD keeps momentum"):
        check_optimizer(momentum(net().parameters()), read_checkpoint(saved(state)))


def test_the_state_of_other_parameters_is_refused(saved):
    module = net()
    state = {"model": module.state_dict(), "optimizer": stepped(adam, nn.Linear(4, 1)).state_dict()}
    with pytest.raises(BadInput, match="does not fit the workload's optimizer"):
        check_optimizer(adam(net().parameters()), read_checkpoint(saved(state)))


@pytest.mark.parametrize(
    ("make", "keeps"), [(adam, True), (momentum, True), (lambda p: torch.optim.SGD(p, lr=0.1), False)]
)
def test_without_a_saved_optimizer_it_is_told_whether_one_keeps_state(saved, make, keeps):
    module = net()
    found = read_checkpoint(
        saved({"model": module.state_dict(), "optimizer": make(module.parameters()).state_dict()})
    )
    assert found.optimizer is None  # saved before its first step
    assert check_optimizer(make(net().parameters()), found) is keeps


def test_an_engines_state_is_written_whole_or_not_at_all(tiny, rank, tmp_path):
    engine = TorchEngine(tiny(), BatchPlan.equal(4, 1, 1), rank, 0.1, seed=0)
    save_checkpoint(engine, tmp_path / "checkpoint.pt", 40)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    found = read_checkpoint(tmp_path / "checkpoint.pt")
    assert found.examples == 40
    load_model(engine.module, found)
    save_checkpoint(engine, tmp_path / "elsewhere" / "checkpoint.pt", 40)
    assert not (tmp_path / "elsewhere").exists()
