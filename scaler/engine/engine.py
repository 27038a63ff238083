"""What an engine is, and what all of them share: building, the loss and its weights, evaluation."""

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist

from scaler.batch import BatchPlan
from scaler.engine.clock import StepClock
from scaler.engine.data import evaluation_batches
from scaler.engine.scales import example_scale, weighted_scales
from scaler.errors import BadInput
from scaler.runtime.protocol import Rank
from scaler.workload import Workload, user_code


class Engine(Protocol):
    """A model in training on this rank, one optimizer step at a time."""

    module: torch.nn.Module
    """The user's network, unwrapped."""

    def step(self, batches: Sequence[Any], learning_rate_factor: float) -> torch.Tensor:
        """Do one optimizer step on `accumulation` host batches; return this rank's weighted loss."""
        ...

    def measure(self, clock: StepClock) -> None:
        """Let a clock know where the phases of a step turn."""
        ...

    def close(self) -> None:
        """Let go of the model and the optimizer's state."""
        ...


def build_module(workload: Workload, rank: Rank, seed: int) -> torch.nn.Module:
    """Build the user's network from `seed` and move it to the device.

    Raises:
        WorkloadError: model() raises.
        BadInput: model() gives no module, or nothing to train.
    """
    torch.manual_seed(seed)
    with user_code(workload, "model"):
        module = workload.model()
    if not isinstance(module, torch.nn.Module):
        raise BadInput(
            f"workload {workload.name!r}: model() returned {type(module).__name__}",
            hint="model is a function that builds and returns a torch.nn.Module",
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise BadInput(
            f"workload {workload.name!r}: no parameter of the model requires a gradient",
            hint="unfreeze what is to be trained",
        )
    return module.to(rank.device.torch_device).train()


def build_optimizer(workload: Workload, module: torch.nn.Module, learning_rate: float) -> Any:
    """Make the user's optimizer over `module` (parameters that a sharding engine may wrap).

    Raises:
        WorkloadError: optimizer() raises.
        BadInput: it gives no torch optimizer.
    """
    with user_code(workload, "optimizer"):
        trained = module if workload.optimizer_takes_module else list(module.parameters())
        optimizer = workload.optimizer(trained, learning_rate)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise BadInput(
            f"workload {workload.name!r}: optimizer() returned {type(optimizer).__name__}",
            hint="optimizer(parameters, learning_rate) returns a torch.optim.Optimizer",
        )
    return optimizer


def loss_scales(
    workload: Workload, plan: BatchPlan, rank: Rank, batches: Sequence[Any], synchronise: bool = True
) -> list[float]:
    """Factor on each pass's mean loss: weight x workers / (total weight over ranks and accumulation).

    With DDP's average over ranks, every spread of one global batch then gives the same gradient.
    Without `synchronise` the weights are numbers of examples: to sum others takes a collective.

    Raises:
        WorkloadError: weight() raises.
        BadInput: the total weight is not positive.
    """
    if workload.weight is None or not synchronise:
        return [example_scale(plan, rank.rank)] * len(batches)
    with user_code(workload, "weight"):
        weights = [float(workload.weight(batch)) for batch in batches]
    source = f"workload {workload.name!r}: weight()"
    return weighted_scales(weights, plan, rank.group, rank.device.torch_device, source)


def autocast(workload: Workload, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Give the autocast context that the workload's precision asks for."""
    if workload.precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if workload.precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def forward(workload: Workload, model: torch.nn.Module, batch: Any, device: torch.device) -> torch.Tensor:
    """Compute the mean loss of one batch that is on the device.

    Raises:
        WorkloadError: loss() raises.
        BadInput: it does not return a scalar tensor with a gradient.
    """
    with user_code(workload, "loss"), autocast(workload, device):
        loss = workload.loss(model, batch)
    if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.requires_grad:
        found = repr(loss)
        if isinstance(loss, torch.Tensor):
            gradient = "" if loss.requires_grad else " without a gradient"
            found = f"a tensor of shape {tuple(loss.shape)}{gradient}"
        raise BadInput(
            f"workload {workload.name!r}: loss() returned {found}",
            hint="loss(model, batch) returns the batch's mean loss: one number, with its gradient",
        )
    return loss


def evaluate(workload: Workload, module: torch.nn.Module, dataset: Any, rank: Rank, batch: int) -> float:
    """Average the metric over a data set, each batch by its weight; nan where it is not finite.

    Raises:
        WorkloadError: metric() raises.
        BadInput: the metric is not a number.
    """
    return agree(
        rank, average(workload, "metric", module, evaluation_batches(workload, dataset, batch), rank, batch)
    )


def average(
    workload: Workload,
    function: Literal["metric", "loss"],
    module: torch.nn.Module,
    host_batches: Iterable[Any],
    rank: Rank,
    batch: int,
) -> float:
    """Average a function of the workload over batches in eval mode, each by its weight; nan if not finite.

    `batch` is the weight of one that does not say how many examples it has.

    Raises:
        WorkloadError: the function raises.
        BadInput: it gives no number.
    """
    total, weights = 0.0, 0.0
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    with torch.no_grad(), autocast(workload, rank.device.torch_device):
        for host_batch in host_batches:
            placed = rank.device.put(host_batch)
            with user_code(workload, function):
                value = getattr(workload, function)(module, placed)
            weight = _weight(workload, host_batch, batch)
            total += weight * _number(workload, function, value)
            weights += weight
    for child, mode in modes:
        child.training = mode
    if not weights > 0:
        raise BadInput(
            f"workload {workload.name!r}: weight() of the whole evaluation data is {weights:g}",
            hint="weight(batch) returns the denominator of the mean, such as its number of tokens",
        )
    return total / weights if math.isfinite(total / weights) else math.nan


def agree(rank: Rank, value: float) -> float:
    """Take rank 0's value on every rank, so that all decide alike."""
    if rank.group is None:
        return value
    agreed = torch.tensor(value, dtype=torch.float64, device=rank.device.torch_device)
    dist.broadcast(agreed, group_src=0, group=rank.group)
    return float(agreed)


def _number(workload: Workload, function: str, value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    raise BadInput(
        f"workload {workload.name!r}: {function}() returned {type(value).__name__}{shape}",
        hint=f"{function}(model, batch) returns the batch's mean: one number",
    )


def _weight(workload: Workload, host_batch: Any, default: int) -> float:
    if workload.weight is not None:
        with user_code(workload, "weight"):
            return float(workload.weight(host_batch))
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(host_batch) if isinstance(leaf, torch.Tensor)]
    return float(len(leaves[0])) if leaves and leaves[0].dim() else float(default)
