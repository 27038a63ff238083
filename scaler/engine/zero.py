"""DeepSpeed ZeRO stages 1 to 3, through a real `deepspeed.initialize`."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from scaler.batch import BatchPlan
from scaler.engine.clock import StepClock
from scaler.engine.engine import build_module, build_optimizer, forward, loss_scales
from scaler.errors import BadInput
from scaler.records import StepPhase
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

_BUCKET_ELEMENTS = 500_000_000
_ALIGNMENT = 512
_COLLECTIVES = ("all_", "reduce", "broadcast", "gather", "scatter", "barrier")


class ZeroEngine:
    """Trains with optimizer state (1), gradients (2) and parameters (3) spread over the ranks.

    The ranks must be a worker group of their own: DeepSpeed takes its world size from the default process
    group. Precision is autocast, as in the other engines, so that results compare.
    """

    def __init__(
        self, workload: Workload, plan: BatchPlan, rank: Rank, learning_rate: float, seed: int
    ) -> None:
        if workload.precision == "fp16":
            raise BadInput(
                f"workload {workload.name!r}: fp16 is not supported with a ZeRO stage",
                hint="use precision bf16, or zero_stage: 0",
            )
        deepspeed = _import_deepspeed(rank)
        self._linear = torch.nn.functional.linear
        self._comm = deepspeed.comm.comm
        self._backend: Any = None
        self.clock: StepClock | None = None
        self.plan = plan
        self.rank = rank
        self._workload = workload
        self.module = build_module(workload, rank, seed)
        parameters = sum(p.numel() for p in self.module.parameters())
        optimizer = build_optimizer(workload, self.module, learning_rate)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        config = _config(plan, parameters, workload.max_grad_norm or 0.0)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=config, dist_init_required=False
        )

    def step(self, batches: Sequence[Any], learning_rate_factor: float) -> torch.Tensor:
        """Do one optimizer step on `accumulation` host batches; return this rank's weighted loss."""
        device = self.rank.device.torch_device
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * learning_rate_factor
        total = torch.zeros((), device=device)
        scales = loss_scales(self._workload, self.plan, self.rank, batches)
        for batch, scale in zip(batches, scales, strict=True):
            placed = self.rank.device.put(batch)
            self._lap("data")
            with self.rank.device.computing():
                loss = forward(self._workload, self._engine, placed, device) * scale
                del placed  # what the backward pass needs it keeps itself
                self._lap("forward")
                # DeepSpeed divides by the accumulation, which `scale` already holds.
                self._engine.backward(loss * self.plan.accumulation)
            self._lap("backward")
            self._engine.step()
            total += loss.detach()
            self._lap("optimizer")
        return total

    def measure(self, clock: StepClock) -> None:
        """Let a clock know where phases turn, and on a CPU how long collectives hold the rank up.

        On CUDA collectives run on streams of their own: what of them is exposed is not measured.
        """
        self.clock = clock
        if self.rank.device.torch_device.type == "cpu":
            self._backend = self._comm.cdb
            self._comm.cdb = _TimedBackend(self._backend, clock)

    def close(self) -> None:
        """Let go of the model, the optimizer's state and DeepSpeed's buffers."""
        if self._backend is not None:
            self._comm.cdb = self._backend
        self._engine.destroy()
        torch.nn.functional.linear = self._linear  # stage 3 puts its own there, for good
        del self._engine, self._optimizer, self.module

    def _lap(self, phase: StepPhase) -> None:
        if self.clock is not None:
            self.clock.lap(phase)


class _TimedBackend:
    """DeepSpeed's collectives, each timed until it is done or waited for."""

    def __init__(self, backend: Any, clock: StepClock) -> None:
        self._backend, self._clock = backend, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        return self._timed(found) if name.startswith(_COLLECTIVES) else found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._clock.waiting():
                work = call(*args, **kwargs)
            return _TimedWork(work, self._timed(work.wait)) if hasattr(work, "wait") else work

        return timed


class _TimedWork:
    """A collective on its way: only `wait` takes time."""

    def __init__(self, work: Any, wait: Callable[..., Any]) -> None:
        self._work, self.wait = work, wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _import_deepspeed(rank: Rank) -> Any:
    on_cpu = rank.device.torch_device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    try:
        import deepspeed
    except ImportError:
        raise BadInput(
            "a ZeRO stage above 0 needs DeepSpeed, which is not installed",
            hint="pip install 'scaler[deepspeed]' on every node, or use zero_stage: 0",
        ) from None
    if on_cpu:
        # Its CPU collectives are compiled at first use; gloo serves as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _config(plan: BatchPlan, parameters: int, max_grad_norm: float) -> dict[str, Any]:
    # DeepSpeed's 5e8 elements are 2 GB of buffer, however small the model; it wants whole alignments.
    bucket_elements = min(_BUCKET_ELEMENTS, -(-parameters // _ALIGNMENT) * _ALIGNMENT)
    # With unequal entries DeepSpeed is told the largest: it only uses them to check its own identity.
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "train_batch_size": plan.micro_batch * plan.accumulation * plan.workers,
        "zero_optimization": {
            "stage": plan.zero_stage,
            "reduce_bucket_size": bucket_elements,
            "allgather_bucket_size": bucket_elements,
        },
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": max_grad_norm,  # its default of 1.0 would train unlike the other engines
        "steps_per_print": 10**9,
    }
