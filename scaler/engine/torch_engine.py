"""Plain torch on one rank, DistributedDataParallel on several."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from scaler.batch import BatchPlan
from scaler.engine.clock import StepClock
from scaler.engine.engine import build_module, build_optimizer, forward, loss_scales
from scaler.records import StepPhase
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

Bucket: TypeAlias = dist.GradBucket  # type: ignore[name-defined, attr-defined]
MeanGradient: TypeAlias = torch.futures.Future[torch.Tensor]


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
        self.clock: StepClock | None = None
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
            reduce = synchronise and number == len(batches) - 1 and self.model is not self.module
            with contextlib.nullcontext() if reduce else self._alone():
                placed = self.rank.device.put(batch)
                self._lap("data")
                loss = forward(self._workload, self.model, placed, self._device) * scale
                self._lap("forward")
                self._scaler.scale(loss).backward()
                self._lap("sync" if reduce else "backward")
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
        self._lap("optimizer")
        return total

    def measure(self, clock: StepClock) -> None:
        """Let a clock know where phases turn. On several ranks: once only, and not with gradient norms."""
        self.clock = clock
        if isinstance(self.model, DistributedDataParallel):
            self.model.register_comm_hook(None, self._timed)

    def mean_of(self, bucket: Bucket, then: Callable[[torch.Tensor], None] | None = None) -> MeanGradient:
        """Average a bucket of gradients over the ranks, as DDP would; a future that holds it.

        `then` is told the average.
        """

        def reduced(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            mean = future.value()[0]
            if then is not None:
                then(mean)
            return mean

        gradient = bucket.buffer().div_(self.plan.workers)
        mean: MeanGradient = self.rank.group.allreduce([gradient]).get_future().then(reduced)
        return mean

    def take_every_step(self) -> None:
        """Start fp16's loss scale at 1: at 65,536 the first steps overflow and are skipped."""
        enabled = self._workload.precision == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=1.0, enabled=enabled)

    def close(self) -> None:
        """Let go of the model and the optimizer's state."""
        del self.model, self.module, self.optimizer, self.observer

    def _timed(self, _: object, bucket: Bucket) -> MeanGradient:
        """Reduce a bucket; when the last one is full, only synchronisation is left of the backward pass."""
        if bucket.is_last():
            self._lap("backward")
        return self.mean_of(bucket)

    def _lap(self, phase: StepPhase) -> None:
        if self.clock is not None:
            self.clock.lap(phase)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()
