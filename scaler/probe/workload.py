"""Sizes of the workload: the first question asked, and the first call of the user's functions."""

from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from scaler.engine.data import load_data
from scaler.engine.engine import build_module, build_optimizer
from scaler.probe.observation import observation
from scaler.records import WorkloadRecord
from scaler.runtime.protocol import Rank
from scaler.workload import Workload


@dataclass(frozen=True)
class WorkloadRequest:
    """Asks for the sizes of the data and the model."""

    seed: int = 0


def probe_workload(rank: Rank, workload: Workload, request: WorkloadRequest) -> WorkloadRecord:
    """Load the data and build the model once.

    Raises:
        WorkloadError, BadInput: a function of the workload raises, or returns what it should not.
    """
    module = build_module(workload, rank, request.seed)
    optimizer = build_optimizer(workload, module, workload.reference.learning_rate)
    return WorkloadRecord(
        **observation(probe_workload, rank, request),
        name=workload.name,
        reference_global_batch=workload.reference.global_batch,
        reference_learning_rate=workload.reference.learning_rate,
        reference_warmup_examples=workload.reference.warmup_examples,
        target_value=workload.target.value,
        target_direction=workload.target.direction,
        train_examples=len(load_data(workload, "train_data")),
        eval_examples=len(load_data(workload, "eval_data")),
        parameters=sum(p.numel() for p in module.parameters()),
        batch_statistics=batch_statistics(module),
        max_grad_norm=workload.max_grad_norm,
        spread_matters=workload.spread_matters,
        optimizer=type(optimizer).__name__,
        betas=tuple(float(beta) for beta in optimizer.param_groups[0].get("betas", ())),
    )


def batch_statistics(module: torch.nn.Module) -> tuple[str, ...]:
    """Name the modules whose output depends on the rest of the micro-batch."""
    return tuple(name for name, child in module.named_modules() if isinstance(child, _BatchNorm))
