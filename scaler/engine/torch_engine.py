"""Plain torch on one rank, DistributedDataParallel on several."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from scaler.batch import BatchPlan
from scaler.emulation import EmulatedLink
from scaler.engine.clock import StepClock
from scaler.engine.engine import build_module, build_optimizer, forward, loss_scales
from scaler.errors import BadInput
from scaler.records import StepPhase
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

Bucket: TypeAlias = dist.GradBucket  # type: ignore[name-defined, attr-defined]
MeanGradient: TypeAlias = torch.futures.Future[torch.Tensor]
BucketObserver: TypeAlias = Callable[[Bucket], Callable[[], None]]
"""Looks at a bucket of a rank's own gradients; what it returns is called when they hold the average."""


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
        self._observers: list[BucketObserver] = []
        self._watching = False
        self._finding: list[Any] = []
        self._latest: torch.Tensor | None = None
        self._checked = False
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
                find_unused_parameters=workload.find_unused_parameters,
            )
            if rank.link is not None:
                self.watch_buckets()
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
                with self.rank.device.computing():
                    loss = forward(self._workload, self.model, placed, self._device) * scale
                    del placed  # what the backward pass needs it keeps itself
                    self._lap("forward")
                    self._scaler.scale(loss).backward()
                self._lap("sync" if reduce and not self._finding else "backward")
            total += loss.detach()
            if self.observer is not None:
                self.observer.after_pass(number)
        self._check_used()
        if self.observer is not None:
            self.observer.after_backward()
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * learning_rate_factor
        if self._workload.max_grad_norm is not None:
            self._scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._workload.max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._lap("optimizer")
        if self._finding:
            for hook in self._finding:
                hook.remove()
            self._finding = []
            assert self._latest is not None, "a step without a gradient"
            self._latest.register_post_accumulate_grad_hook(lambda _: self._lap("backward"))
        return total

    def measure(self, clock: StepClock) -> None:
        """Let a clock know where the phases of a step turn.

        When the last gradient is there, only synchronisation is left of the backward pass. Which one comes
        last is seen in the next step: to look at every one, or at DDP's buckets, would cost more.
        """
        self.clock = clock
        if self.model is not self.module:
            trained = [p for p in self.module.parameters() if p.requires_grad]
            self._finding = [p.register_post_accumulate_grad_hook(self._came) for p in trained]

    def watch_buckets(self, observer: BucketObserver | None = None) -> None:
        """Look at each bucket of gradients before it is averaged over the ranks, and at the average."""
        self._observers += [observer] if observer is not None else []
        if isinstance(self.model, DistributedDataParallel) and not self._watching:
            self.model.register_comm_hook(None, self._reduced)  # DDP takes one for good
            self._watching = True

    @property
    def loss_scale(self) -> float:
        """What the gradients are multiplied by until the optimizer's step: 1 but for fp16."""
        return float(self._scaler.get_scale())

    def take_every_step(self) -> None:
        """Start fp16's loss scale at 1: at 65,536 the first steps overflow and are skipped."""
        enabled = self._workload.precision == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=1.0, enabled=enabled)

    def close(self) -> None:
        """Let go of the model and the optimizer's state."""
        self._observers.clear()
        del self.model, self.module, self.optimizer, self.observer, self._latest

    def _reduced(self, _: object, bucket: Bucket) -> MeanGradient:
        return average_bucket(bucket, self.rank.group, self.plan.workers, self._observers, self.rank.link)

    def _check_used(self) -> None:
        """Name parameters without a gradient after the first step: DDP would wait for them in the next.

        Raises:
            BadInput: there are some, on several ranks.
        """
        if self._checked or self.model is self.module or self._workload.find_unused_parameters:
            return
        self._checked = True
        unused = [n for n, p in self.module.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise BadInput(
                f"workload {self._workload.name!r}: {', '.join(unused[:3])}{more} took no part in the loss, "
                "and DistributedDataParallel waits for every gradient",
                hint="freeze what is never used (requires_grad_(False)), or give the Workload "
                "find_unused_parameters=True",
            )

    def _came(self, parameter: torch.Tensor) -> None:
        self._latest = parameter

    def _lap(self, phase: StepPhase) -> None:
        if self.clock is not None:
            self.clock.lap(phase)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()


def average_bucket(
    bucket: Bucket,
    group: Any,
    workers: int,
    observers: Sequence[BucketObserver],
    link: EmulatedLink | None = None,
) -> MeanGradient:
    """Average a bucket of gradients over the ranks, in place as DDP would, and show it before and after."""
    after = [look(bucket) for look in observers]

    def looked_at(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        for look in after:
            look()
        return future.value()[0]

    gradient = bucket.buffer().div_(workers)
    sent = group.allreduce([gradient]).get_future()
    if link is not None:
        sent = link.hold(sent, gradient.nbytes)
    mean: MeanGradient = sent.then(looked_at)
    return mean
