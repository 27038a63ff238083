"""Plain torch on one rank, DistributedDataParallel on several."""

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel

from scaler.batch import BatchPlan
from scaler.engine.engine import build_module, build_optimizer, forward, loss_scales
from scaler.runtime.protocol import Rank
from scaler.workload import Workload


class GradientObserver(Protocol):
    """Looks at gradients as they pass, before the optimizer uses them."""

    def after_pass(self, number: int) -> None:
        """Called after each backward; `number` counts the step's passes from 0."""
        ...

    def after_backward(self) -> None:
        """Called when the step's gradients are complete and reduced."""
        ...


class TorchEngine:
    """Trains the workload's model with gradients averaged over the ranks of the task."""

    def __init__(
        self, workload: Workload, plan: BatchPlan, rank: Rank, learning_rate: float, seed: int
    ) -> None:
        self.plan = plan
        self.rank = rank
        self.observer: GradientObserver | None = None
        self._workload = workload
        self._device = rank.device.torch_device
        self.module = build_module(workload, rank, seed)
        self.model: torch.nn.Module = self.module
        if rank.group is not None:
            ids = [self._device.index] if self._device.type == "cuda" else None
            self.model = DistributedDataParallel(
                self.module,
                device_ids=ids,
                process_group=rank.group,
                gradient_as_bucket_view=workload.gradient_as_bucket_view,
            )
        self.optimizer = build_optimizer(workload, self.module, learning_rate)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=workload.precision == "fp16")

    def step(
        self, batches: Sequence[Any], learning_rate_factor: float, synchronise: bool = True
    ) -> torch.Tensor:
        """Do one optimizer step on `accumulation` host batches; return this rank's weighted loss.

        Without `synchronise` the gradients stay this rank's own: for memory probes, in which a rank that
        runs out must not leave its peers waiting in a collective.
        """
        scales = loss_scales(self._workload, self.plan, self.rank, batches, synchronise)
        total = torch.zeros((), device=self._device)
        for number, (batch, scale) in enumerate(zip(batches, scales, strict=True)):
            with self._reduce(synchronise and number == len(batches) - 1):
                loss = forward(self._workload, self.model, self.rank.device.put(batch), self._device) * scale
                self._scaler.scale(loss).backward()
            total += loss.detach()
            if self.observer is not None:
                self.observer.after_pass(number)
        if self.observer is not None:
            self.observer.after_backward()
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * learning_rate_factor
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def take_every_step(self) -> None:
        """Start fp16's loss scale at 1: at 65,536 the first steps overflow and are skipped."""
        enabled = self._workload.precision == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=1.0, enabled=enabled)

    def close(self) -> None:
        """Let go of the model and the optimizer's state."""
        del self.model, self.module, self.optimizer, self.observer

    def _reduce(self, reduce: bool) -> contextlib.AbstractContextManager[Any]:
        if reduce or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()
