"""Training to the target: one trial of a global batch, a learning rate and a seed."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from scaler.batch import BatchPlan
from scaler.engine.checkpoint import save_checkpoint
from scaler.engine.data import load_data, load_train_data, rank_steps
from scaler.engine.engine import Engine, agree, evaluate
from scaler.engine.open import open_engine
from scaler.engine.torch_engine import TorchEngine
from scaler.probe.observation import observation
from scaler.records import ConfirmationRecord, ConvergenceRecord, Evaluation, Stop, WarmupRecord
from scaler.runtime.protocol import Probe, Rank
from scaler.workload import Workload

_STEPS_A_LOOK = 8  # at the clock and the loss: among several ranks each costs a broadcast
_FAR_ABOVE = 10.0  # times the largest loss of the first steps, beyond which a run has diverged


@dataclass(frozen=True)
class ConvergenceRequest:
    """Asks how many examples it takes to the target, up to `max_examples`.

    The time limit is not part of the question: a trial that it cut short has no answer. A trial that does not
    reach the target leaves its state at `checkpoint`, if it names a file, for branches to go on from.
    """

    plan: BatchPlan
    learning_rate: float
    warmup_examples: int
    max_examples: int
    seed: int
    time_limit_s: float = field(default=math.inf, compare=False)
    checkpoint: str | None = field(default=None, compare=False)


def probe_convergence(rank: Rank, workload: Workload, request: ConvergenceRequest) -> ConvergenceRecord:
    """Train until the target, divergence or a limit."""
    return ConvergenceRecord(**_Trial(rank, workload, request).run(probe_convergence))


def probe_warmup(rank: Rank, workload: Workload, request: ConvergenceRequest) -> WarmupRecord:
    """Train as `probe_convergence` does, with another length of warm-up."""
    return WarmupRecord(**_Trial(rank, workload, request).run(probe_warmup))


def probe_confirmation(rank: Rank, workload: Workload, request: ConvergenceRequest) -> ConfirmationRecord:
    """Train as `probe_convergence` does, and keep every step time."""
    trial = _Trial(rank, workload, request, timed=True)
    return ConfirmationRecord(**trial.run(probe_confirmation), step_times_s=tuple(trial.step_times_s))


class _Trial:
    """One training run in progress."""

    def __init__(
        self, rank: Rank, workload: Workload, request: ConvergenceRequest, timed: bool = False
    ) -> None:
        self.step_times_s: list[float] = []
        self._rank, self._workload, self._request, self._timed = rank, workload, request, timed
        self._train_data = load_train_data(workload, request.plan.global_batch)
        self._eval_data = load_data(workload, "eval_data")
        self._curve: list[Evaluation] = []
        self._examples = 0
        self._train_time_s = 0.0
        self._losses: list[torch.Tensor] = []
        """Of the steps since the last look."""
        self._first_loss: float | None = None
        self._diverged = False

    def run(self, probe: Probe) -> dict[str, Any]:
        """Train; give the fields of the record."""
        request, rank = self._request, self._rank
        engine = open_engine(self._workload, request.plan, rank, request.learning_rate, request.seed)
        self._started = time.perf_counter()
        stop: Stop | None = None
        while stop is None:
            if not self._train_to_next_evaluation(engine):
                stop = "diverged" if self._diverged else "deadline"
                break
            metric = evaluate(self._workload, engine.module, self._eval_data, rank, request.plan.micro_batch)
            self._curve.append(
                Evaluation(
                    examples=self._examples,
                    train_time_s=self._train_time_s,
                    metric=metric if math.isfinite(metric) else None,
                )
            )
            stop = self._stop(engine)
        if request.checkpoint and stop != "reached" and rank.rank == 0 and isinstance(engine, TorchEngine):
            save_checkpoint(engine, request.checkpoint, self._examples)
        engine.close()
        # The target was met at the first of the two evaluations; the second confirmed it.
        examples = self._curve[-2].examples if stop == "reached" else self._examples
        return {
            **observation(probe, rank, request),
            "plan": request.plan,
            "learning_rate": request.learning_rate,
            "warmup_examples": request.warmup_examples,
            "dataset_examples": len(self._train_data),
            "stop": stop,
            "examples": examples,
            "steps": examples // request.plan.global_batch,
            "curve": tuple(self._curve),
            "time_limit_s": request.time_limit_s if stop == "deadline" else None,
        }

    def _train_to_next_evaluation(self, engine: Engine) -> bool:
        """Train until the next evaluation is due; tell if no divergence or time limit came first."""
        if not self._curve:
            self._batches = rank_steps(
                self._workload, self._train_data, self._request.plan, self._rank.rank, self._request.seed
            )
        every = self._workload.target.evaluate_every or max(1, len(self._train_data) // 4)
        goal = self._examples + every
        start = time.perf_counter()
        while self._examples < goal:
            step_start = time.perf_counter()
            self._examples += self._request.plan.global_batch
            loss = engine.step(
                next(self._batches),
                self._workload.learning_rate_factor(self._examples, self._request.warmup_examples),
            )
            self._losses.append(loss.detach())
            if self._timed:
                self._rank.device.synchronize()
                self.step_times_s.append(time.perf_counter() - step_start)
            step = self._examples // self._request.plan.global_batch
            if self._has_diverged(step) or self._is_late(step):
                break
        self._rank.device.synchronize()
        self._train_time_s += time.perf_counter() - start
        return self._examples >= goal and not self._diverged

    def _has_diverged(self, step: int) -> bool:
        """Whether the loss is not finite, or its mean over some steps far above what it started from.

        The start is the largest of the first losses: of a small batch one alone says little.
        """
        if step % _STEPS_A_LOOK:
            return False
        losses = torch.stack(self._losses).float()
        self._losses.clear()
        if self._first_loss is None:
            self._first_loss = agree(self._rank, float(losses.abs().max()))
            self._diverged = not math.isfinite(self._first_loss)
        else:
            mean = agree(self._rank, float(losses.mean()))
            self._diverged = not math.isfinite(mean) or mean > _FAR_ABOVE * self._first_loss
        return self._diverged

    def _is_late(self, step: int = 0) -> bool:
        """Whether the time limit is over, on rank 0's clock; between two evaluations only some steps look."""
        if math.isinf(self._request.time_limit_s) or step % _STEPS_A_LOOK:
            return False
        elapsed_s = agree(self._rank, time.perf_counter() - self._started)
        return elapsed_s > self._request.time_limit_s

    def _stop(self, engine: Engine) -> Stop | None:
        last = self._curve[-2:]
        target = self._workload.target
        if len(last) == 2 and all(e.metric is not None and target.is_met(e.metric) for e in last):
            return "reached"
        if last[-1].metric is None or not all(torch.isfinite(p).all() for p in engine.module.parameters()):
            return "diverged"
        if self._examples >= self._request.max_examples:
            return "limit"
        return "deadline" if self._is_late() else None
