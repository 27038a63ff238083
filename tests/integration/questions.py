"""Probes and a workload for the runtime tests; workers import them by this file's path."""

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.probe.observation import observation
from scaler.records import ThroughputRecord
from scaler.runtime.protocol import Rank
from scaler.workload import Reference, Target, Workload


@dataclass(frozen=True)
class Question:
    number: int = 0
    fails: str = ""
    on_rank: int = 0
    seed: int = 0


def ask(rank: Rank, subject: Any, request: Question) -> ThroughputRecord:
    """Sum ones over the task's ranks; the sum and a marker travel back as step times."""
    if request.fails and rank.rank == request.on_rank:
        if request.fails == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if request.fails == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(request.fails)
    started = time.time()
    total = torch.ones(1)
    if rank.group is not None:
        dist.all_reduce(total, group=rank.group)
    time.sleep(0.2)
    return ThroughputRecord(
        **observation(ask, rank, request),
        plan=BatchPlan.equal(1, 1, rank.world_size),
        step_times_s=(float(total), started, time.time(), float(os.getpid())),
        warmup_steps=0,
    )


def points(n: int) -> TensorDataset:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.sum(dim=1, keepdim=True))


workload = Workload(
    name="plane",
    model=lambda: nn.Linear(4, 1),
    train_data=lambda: points(128),
    eval_data=lambda: points(32),
    loss=lambda net, batch: (net(batch[0]) - batch[1]).square().mean(),
    optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    metric=lambda net, batch: (net(batch[0]) - batch[1]).square().mean(),
    target=Target(0.01, "min", max_examples=20_000),
    reference=Reference(global_batch=16, learning_rate=0.1),
)
