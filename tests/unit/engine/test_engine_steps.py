import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.engine.engine import evaluate
from scaler.engine.open import open_engine
from scaler.errors import BadInput, WorkloadError
from scaler.runtime.protocol import Rank

PLAN = BatchPlan.equal(8, 1, 1)


@pytest.fixture
def start(rank):
    """A function (workload, plan) that opens an engine and gives it with one step's batches."""

    def start(workload, plan=PLAN, learning_rate=0.1):
        engine = open_engine(workload, plan, rank, learning_rate, seed=0)
        data = workload.train_data()
        return engine, [data[i * 8 : i * 8 + 8] for i in range(plan.accumulation)]

    return start


# Clipping and the optimizer


def test_the_step_is_clipped_to_the_norm(tiny, start):
    engine, batches = start(tiny(max_grad_norm=1e-3))
    before = nn.utils.parameters_to_vector(engine.module.parameters()).detach().clone()
    engine.step(batches, 1.0)
    moved = nn.utils.parameters_to_vector(engine.module.parameters()).detach() - before
    assert float(moved.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_an_optimizer_may_take_the_model_for_its_names(tiny, start):
    def optimizer(net, learning_rate):
        weights = [p for name, p in net.named_parameters() if name == "weight"]
        return torch.optim.SGD(weights, lr=learning_rate)

    engine, batches = start(tiny(optimizer=optimizer, optimizer_takes_module=True))
    bias = engine.module.bias.detach().clone()
    engine.step(batches, 1.0)
    assert torch.equal(engine.module.bias, bias)


# The learning rate


def test_the_factor_scales_the_step(tiny, start):
    def moved(factor):
        engine, batches = start(tiny())
        before = engine.module.weight.detach().clone()
        engine.step(batches, factor)
        return engine.module.weight.detach() - before

    assert torch.allclose(moved(0.25), 0.25 * moved(1.0))
    assert torch.equal(moved(0.0), torch.zeros(1, 4))


def test_the_factor_is_on_the_first_rate_not_on_the_last(tiny, start):
    engine, batches = start(tiny())
    for factor in (0.5, 0.1, 1.0):
        engine.step(batches, factor)
        assert engine.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factor)


def test_parameter_groups_keep_their_ratios(tiny, start):
    def optimizer(parameters, learning_rate):
        weight, bias = parameters
        return torch.optim.SGD(
            [{"params": [weight]}, {"params": [bias], "lr": learning_rate / 20}], learning_rate
        )

    engine, batches = start(tiny(optimizer=optimizer))
    for factor in (0.5, 1.0, 0.01):
        engine.step(batches, factor)
        rates = [group["lr"] for group in engine.optimizer.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.005 * factor])


def test_frozen_parameters_stay(tiny, start):
    def model():
        net = nn.Linear(4, 1)
        net.bias.requires_grad_(False)
        return net

    engine, batches = start(tiny(model=model))
    before = engine.module.bias.detach().clone()
    weight = engine.module.weight.detach().clone()
    engine.step(batches, 1.0)
    assert torch.equal(engine.module.bias, before)
    assert not torch.equal(engine.module.weight, weight)


def test_the_loss_of_a_step_is_the_mean_over_its_examples(tiny, start):
    engine, batches = start(tiny(), BatchPlan.equal(8, 4, 1))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        expected = F.mse_loss(engine.module(x), y).item()
    assert engine.step(batches, 1.0).item() == pytest.approx(expected)


def test_the_seed_decides_the_model(tiny, rank):
    def weight(seed):
        return open_engine(tiny(), PLAN, rank, 0.1, seed).module.weight.detach()

    assert torch.equal(weight(3), weight(3))
    assert not torch.equal(weight(3), weight(4))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_is_that_of_the_forward_pass(tiny, start, precision):
    seen = []

    def loss(net, batch):
        out = net(batch[0])
        seen.append(out.dtype)
        return F.mse_loss(out.float(), batch[1])

    engine, batches = start(tiny(loss=loss, precision=precision))
    engine.step(batches, 1.0)
    assert seen == [torch.float32 if precision == "fp32" else torch.bfloat16]
    assert engine.module.weight.dtype == torch.float32


def test_a_plan_for_another_number_of_ranks_is_refused(tiny, rank):
    with pytest.raises(BadInput, match=r"2 \(workers\) = 16 ran on 1 ranks"):
        open_engine(tiny(), BatchPlan.equal(8, 1, 2), rank, 0.1, 0)


# Workloads that do not do what they should


def frozen():
    return nn.Linear(4, 1).requires_grad_(False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", lambda: "net", r"model\(\) returned str"),
        ("model", lambda: nn.Linear, r"model\(\) returned type"),
        ("model", lambda: None, r"model\(\) returned NoneType"),
        ("model", frozen, "no parameter of the model requires a gradient"),
        ("model", nn.Identity, "no parameter of the model requires a gradient"),
        ("optimizer", lambda parameters, rate: None, r"optimizer\(\) returned NoneType"),
        ("optimizer", lambda parameters, rate: torch.optim.SGD, r"optimizer\(\) returned type"),
        ("loss", lambda net, batch: batch[0].mean(), r"loss\(\) returned a tensor of shape \(\)"),
        ("loss", lambda net, batch: (net(batch[0]) - batch[1]) ** 2, r"a tensor of shape \(8, 1\)"),
        (
            "loss",
            lambda net, batch: F.mse_loss(net(batch[0]), batch[1]).reshape(1),
            r"a tensor of shape \(1,\)",
        ),
        ("loss", lambda net, batch: F.mse_loss(net(batch[0]), batch[1]).item(), r"loss\(\) returned \d"),
        (
            "loss",
            lambda net, batch: F.mse_loss(net(batch[0]), batch[1]).detach(),
            r"loss\(\) returned a tensor",
        ),
        ("loss", lambda net, batch: None, r"loss\(\) returned None"),
        ("weight", lambda batch: 0, r"weight\(\) of a whole global batch is 0"),
        ("weight", lambda batch: math.nan, r"weight\(\) of a whole global batch is nan"),
    ],
)
def test_a_bad_workload_is_bad_input_with_a_hint(tiny, start, field, value, message):
    with pytest.raises(BadInput, match=message) as caught:
        engine, batches = start(tiny(**{field: value}))
        engine.step(batches, 1.0)
    assert "'tiny'" in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def raises(*arguments):
    raise LookupError("the third column")  # the line to be named


@pytest.mark.parametrize("field", ["model", "optimizer", "loss", "weight"])
def test_what_the_users_code_raises_names_its_line(tiny, start, field):
    with pytest.raises(WorkloadError, match=rf"{field}\(\) raised LookupError: the third column") as caught:
        engine, batches = start(tiny(**{field: raises}))
        engine.step(batches, 1.0)
    assert 'raise LookupError("the third column")  # the line to be named' in caught.value.message
    assert "test_engine_steps.py" in caught.value.message


def test_an_error_within_torch_names_the_users_line(tiny, start):
    def loss(net, batch):
        return F.mse_loss(net(batch[0][:, :3]), batch[1])

    with pytest.raises(WorkloadError, match=r"loss\(\) raised RuntimeError: mat1 and mat2") as caught:
        engine, batches = start(tiny(loss=loss))
        engine.step(batches, 1.0)
    assert "return F.mse_loss(net(batch[0][:, :3]), batch[1])" in caught.value.message


def test_running_out_of_memory_is_not_the_users_fault(tiny):
    device = Device("mock", 100_000)
    workload = tiny(loss=lambda net, batch: net(torch.zeros(100_000, 4)).mean())
    with pytest.raises(torch.OutOfMemoryError), device.memory():
        engine = open_engine(workload, PLAN, Rank(0, 1, device), 0.1, 0)
        engine.step([workload.train_data()[:8]], 1.0)


# Evaluation


def constant(value):
    return lambda net, batch: value


def test_the_metric_is_the_mean_over_examples_of_a_ragged_data_set(tiny, rank):
    """10 in batches of 4: the last batch of 2 counts half."""
    data = TensorDataset(torch.arange(10.0))
    workload = tiny(metric=lambda net, batch: batch[0].mean())
    assert evaluate(workload, nn.Linear(1, 1), data, rank, 4) == pytest.approx(4.5)


def test_the_metric_is_weighted_as_the_loss_is(tiny, rank):
    counts = torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0])
    workload = tiny(metric=lambda net, batch: batch[0].mean(), weight=lambda batch: batch[0].sum())
    found = evaluate(workload, nn.Linear(1, 1), TensorDataset(counts), rank, 4)
    assert found == pytest.approx((1.0 * 4 + 6.0 * 6) / 10)


@pytest.mark.parametrize("value", [0.25, torch.tensor(0.25), torch.tensor([0.25]), 1])
def test_a_metric_is_one_number(tiny, rank, value):
    found = evaluate(tiny(metric=constant(value)), nn.Linear(1, 1), TensorDataset(torch.ones(5)), rank, 2)
    assert found == float(value)


@pytest.mark.parametrize(
    ("value", "what"),
    [("0.9", "str"), (None, "NoneType"), (torch.ones(3), r"Tensor of shape \(3,\)"), (True, "bool")],
)
def test_a_metric_that_is_no_number_is_bad_input(tiny, rank, value, what):
    with pytest.raises(BadInput, match=rf"metric\(\) returned {what}"):
        evaluate(tiny(metric=constant(value)), nn.Linear(1, 1), TensorDataset(torch.ones(5)), rank, 2)


def test_a_metric_that_raises_names_its_line(tiny, rank):
    with pytest.raises(WorkloadError, match=r"metric\(\) raised LookupError") as caught:
        evaluate(tiny(metric=raises), nn.Linear(1, 1), TensorDataset(torch.ones(5)), rank, 2)
    assert "# the line to be named" in caught.value.message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_nan(tiny, rank, value):
    found = evaluate(tiny(metric=constant(value)), nn.Linear(1, 1), TensorDataset(torch.ones(5)), rank, 2)
    assert math.isnan(found)


def test_evaluation_is_in_eval_mode_without_gradients_and_training_goes_on(tiny, rank):
    seen = []

    def metric(net, batch):
        seen.append((net.training, torch.is_grad_enabled()))
        return 0.0

    net = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
    evaluate(tiny(metric=metric), net, TensorDataset(torch.ones(5, 1)), rank, 5)
    assert seen == [(False, False)]
    assert net.training
    assert net[0].training


# Parameters that take no part


@pytest.fixture
def lone_group():
    """A process group of one: a model under DistributedDataParallel in this process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


class HalfUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        return self.used(x)


def two_steps(workload, rank, group=None):
    engine = open_engine(workload, PLAN, dataclasses.replace(rank, group=group), 0.1, seed=0)
    data = workload.train_data()
    before = engine.module.used.weight.detach().clone()
    for number in range(2):
        engine.step([data[number * 8 : number * 8 + 8]], 1.0)
    return before, engine.module


def test_unused_parameters_are_named_where_others_would_wait_for_them(tiny, rank, lone_group):
    with pytest.raises(BadInput, match=r"idle\.weight, idle\.bias took no part") as raised:
        two_steps(tiny(model=HalfUsed), rank, lone_group)
    assert "find_unused_parameters=True" in raised.value.hint


def test_models_with_unused_parameters_train_alone_or_when_told(tiny, rank, lone_group):
    alone_before, alone = two_steps(tiny(model=HalfUsed), rank)
    _, told = two_steps(tiny(model=HalfUsed, find_unused_parameters=True), rank, lone_group)
    assert not torch.equal(alone_before, alone.used.weight)
    assert torch.allclose(alone.used.weight, told.used.weight)
    assert told.idle.weight.grad is None


def test_frozen_parameters_are_not_missed(tiny, rank, lone_group):
    def frozen():
        net = HalfUsed()
        net.idle.requires_grad_(False)
        return net

    before, net = two_steps(tiny(model=frozen), rank, lone_group)
    assert not torch.equal(before, net.used.weight)


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.used = nn.Embedding(16, 4, sparse=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.used(self.table(x[:, 0].abs().long().clamp(max=15)))


def test_sparse_gradients_train_as_alone(tiny, rank, lone_group):
    _, alone = two_steps(tiny(model=Lookup), rank)
    _, spread = two_steps(tiny(model=Lookup), rank, lone_group)
    assert torch.allclose(alone.table.weight, spread.table.weight)
