"""Training on from a state for a short while, with another batch (Merrill et al. 2025, arXiv 2505.23971)."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.engine.checkpoint import (
    Checkpoint,
    check_optimizer,
    find_checkpoint,
    load_model,
    load_optimizer,
    read_checkpoint,
    save_checkpoint,
)
from scaler.engine.data import drawn, evaluation_batches, load_data, load_train_data, rank_steps
from scaler.engine.engine import agree, average, build_module, build_optimizer
from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput
from scaler.probe.observation import observation
from scaler.records import BranchRecord, CheckpointRecord, RateScaling
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

REFERENCE_SEED = 0  # of the trial that makes the state; branches have others, so that they see other examples
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class CheckpointRequest:
    """Asks whether a user's checkpoint fits the workload."""

    path: str
    seed: int = 0


@dataclass(frozen=True)
class BranchRequest:
    """Asks for the training losses along `examples` more examples, with `plan`'s global batch.

    `examples` is a multiple of `points` global batches; each point is a mean. `rewarm_examples`: a linear
    warm-up, for want of the optimizer's state. `start_examples` is how far the state had got, None where
    nobody knows.
    """

    plan: BatchPlan
    learning_rate: float
    rate_rule: RateScaling
    reference_batch: int
    reference_rate: float
    examples: int
    points: int
    held_out_examples: int
    rewarm_examples: int
    start_examples: int | None
    seed: int
    checkpoint: str = field(compare=False)
    is_ours: bool = True
    """Whether the reference made the state, so that it can be made again where the file is not found."""


def probe_checkpoint(rank: Rank, workload: Workload, request: CheckpointRequest) -> CheckpointRecord:
    """Load the file into the workload's model and optimizer, on the CPU.

    Raises:
        BadInput: there is no such file, it holds more than tensors, or it does not match.
    """
    found = read_checkpoint(request.path)
    if workload.schedule is not None and found.examples is None:
        raise BadInput(
            f"{request.path} does not say how many examples it saw, and the workload has a schedule",
            hint='add "examples": N to what is saved',
        )
    module = build_module(workload, dataclasses.replace(rank, device=Device("cpu", None)), request.seed)
    load_model(module, found)
    keeps_state = check_optimizer(build_optimizer(workload, module, workload.reference.learning_rate), found)
    return CheckpointRecord(
        **observation(probe_checkpoint, rank, request),
        examples=found.examples,
        optimizer_state=found.optimizer is not None or not keeps_state,
        learning_rate=found.learning_rate,
    )


def probe_branch(rank: Rank, workload: Workload, request: BranchRequest) -> BranchRecord:
    """Train on from the state, and note the training loss on the way and held-out loss and metric at the end.

    Raises:
        BadInput: the plan shards, the checkpoint does not match, or the data is smaller than the batch.
    """
    return _Branch(rank, workload, request).run()


class _Branch:
    """One branch in training."""

    def __init__(self, rank: Rank, workload: Workload, request: BranchRequest) -> None:
        if request.plan.zero_stage:
            raise BadInput("branching does not load a state into ZeRO", hint="branch with zero_stage: 0")
        self._rank, self._workload, self._request = rank, workload, request
        self._train_data = load_train_data(workload, request.plan.global_batch)
        self._held_out = _sample(load_data(workload, "eval_data"), request.held_out_examples)
        start = self._start()
        self._engine = self._open(request.plan, request.learning_rate, request.seed)
        load_model(self._engine.module, start)
        load_optimizer(self._engine.optimizer, start)
        self._steps = 0

    def run(self) -> BranchRecord:
        """Train all of it, or until a loss is not finite."""
        request, plan = self._request, self._request.plan
        batches = rank_steps(self._workload, self._train_data, plan, self._rank.rank, request.seed)
        steps = request.examples // request.points // plan.global_batch
        losses: list[float | None] = []
        while len(losses) < request.points and (not losses or losses[-1] is not None):
            losses.append(self._train(batches, steps))
        record = BranchRecord(
            **observation(probe_branch, self._rank, request),
            plan=plan,
            reference_batch=request.reference_batch,
            learning_rate=request.learning_rate,
            rate_rule=request.rate_rule,
            start_examples=request.start_examples,
            examples=request.examples,
            rewarm_examples=request.rewarm_examples,
            points=request.points,
            losses=tuple(losses),
            held_out_examples=len(self._held_out),
            held_out_loss=self._held_out_mean("loss"),
            final_metric=self._held_out_mean("metric"),
        )
        self._engine.close()
        return record

    def _train(self, batches: Any, steps: int) -> float | None:
        """Do so many steps; give the mean loss of their global batches, None where it is not finite."""
        total = torch.zeros((), device=self._rank.device.torch_device)
        for _ in range(steps):
            self._steps += 1
            total += self._engine.step(next(batches), self._factor())
        if self._rank.group is not None:
            dist.all_reduce(total, group=self._rank.group)
        mean = float(total) / steps / self._rank.world_size
        return mean if math.isfinite(mean) else None

    def _factor(self) -> float:
        """Factor on the rate of the step about to be done: the schedule's, and that of warming up again."""
        request = self._request
        done = self._steps * request.plan.global_batch
        again = min(1.0, done / request.rewarm_examples) if request.rewarm_examples else 1.0
        if request.start_examples is None:  # past the warm-up
            return again
        warmup_examples = self._workload.reference.warmup_examples
        return again * self._workload.learning_rate_factor(request.start_examples + done, warmup_examples)

    def _held_out_mean(self, function: Any) -> float | None:
        batch = self._request.plan.micro_batch
        batches = evaluation_batches(self._workload, self._held_out, batch)
        module = self._engine.module
        mean = agree(self._rank, average(self._workload, function, module, batches, self._rank, batch))
        return mean if math.isfinite(mean) else None

    def _start(self) -> Checkpoint:
        """Read the state; where one of the ranks does not find the reference's, train the reference again."""
        place = self._request.checkpoint
        if not self._request.is_ours:
            return read_checkpoint(place)
        kept = find_checkpoint(place)
        if self._on_every_rank(kept is not None) and kept is not None:
            return kept
        request, rank = self._request, self._rank
        most = list(request.plan.micro_batches)
        plan = BatchPlan.split(request.reference_batch, request.plan.workers, most)
        engine = self._open(plan, request.reference_rate, REFERENCE_SEED)
        batches = rank_steps(self._workload, self._train_data, plan, rank.rank, REFERENCE_SEED)
        goal = request.start_examples or 0
        for examples in range(plan.global_batch, goal + 1, plan.global_batch):
            warmup_examples = self._workload.reference.warmup_examples
            engine.step(next(batches), self._workload.learning_rate_factor(examples, warmup_examples))
        if rank.rank == 0:
            save_checkpoint(engine, place, goal)
        model = {key: value.clone() for key, value in engine.module.state_dict().items()}
        state = Checkpoint(place, model, engine.optimizer.state_dict(), goal)
        engine.close()
        return state

    def _open(self, plan: BatchPlan, learning_rate: float, seed: int) -> TorchEngine:
        engine = TorchEngine(self._workload, plan, self._rank, learning_rate, seed)
        torch.manual_seed(seed + self._rank.rank)  # as open_engine does
        return engine

    def _on_every_rank(self, holds: bool) -> bool:
        if self._rank.group is None:
            return holds
        lowest = torch.tensor(int(holds), device=self._rank.device.torch_device)
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=self._rank.group)
        return bool(lowest)


def _sample(dataset: Any, examples: int) -> Any:
    """Give so many examples of a data set, the same in every branch; all of it where it has no more."""
    return dataset if examples >= len(dataset) else drawn(dataset, examples, _SAMPLE_SEED)
