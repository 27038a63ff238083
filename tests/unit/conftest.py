"""A workload that trains in milliseconds, and the ranks and runtimes to run it on."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from scaler.cluster import Cluster
from scaler.device import Device
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Rank, Task
from scaler.workload import Reference, Target, Workload

TRUE_WEIGHTS = (1.0, -2.0, 3.0, 0.5)


@functools.cache
def regression_data(examples: int = 64, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, len(TRUE_WEIGHTS), generator=generator)
    return TensorDataset(x, x @ torch.tensor(TRUE_WEIGHTS)[:, None])


def squared_error(net, batch):
    x, y = batch
    return F.mse_loss(net(x), y)


def tiny_workload(**fields) -> Workload:
    """Noiseless linear regression on 64 examples: solved in a few hundred examples."""
    defaults = {
        "name": "tiny",
        "model": lambda: nn.Linear(len(TRUE_WEIGHTS), 1),
        "train_data": regression_data,
        "eval_data": lambda: regression_data(32, seed=1),
        "loss": squared_error,
        "optimizer": lambda parameters, learning_rate: torch.optim.SGD(parameters, lr=learning_rate),
        "metric": squared_error,
        "target": Target(0.05, "min", max_examples=1_280, evaluate_every=32),
        "reference": Reference(global_batch=8, learning_rate=0.05),
    }
    return Workload(**(defaults | fields))


def make_cluster(**fields) -> Cluster:
    return Cluster(**({"name": "here", "workers": 1, "kind": "cpu"} | fields))


def answer_to(workload: Workload, probe, request, **cluster):
    """Ask one question in this process; a failure fails the test with its trace."""
    with LocalRuntime(make_cluster(**cluster), workload) as runtime:
        (outcome,) = runtime.run([Task(probe, request)])
    assert outcome.failure is None, outcome.failure.trace
    return outcome.record


@pytest.fixture
def tiny():
    """A function that makes the tiny workload, with any field replaced."""
    return tiny_workload


@pytest.fixture
def cluster():
    """A function that makes a cluster of one CPU, with any field replaced."""
    return make_cluster


@pytest.fixture
def ask():
    """A function (workload, probe, request, **cluster fields) that gives the record."""
    return answer_to


@pytest.fixture
def rank():
    """The only rank, on the CPU."""
    return Rank(0, 1, Device("cpu", None))
