"""Gradient noise along the first steps of the reference configuration."""

from collections.abc import Sequence
from dataclasses import dataclass

from scaler.batch import BatchPlan
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.noise import GradientNorms
from scaler.engine.torch_engine import TorchEngine
from scaler.probe.observation import observation
from scaler.records import NoiseRecord, SquaredNorms
from scaler.runtime.protocol import Rank
from scaler.workload import Workload


@dataclass(frozen=True)
class NoiseRequest:
    """Asks for the gradient norms of so many steps of training."""

    plan: BatchPlan
    learning_rate: float
    steps: int
    seed: int = 0


def probe_noise(rank: Rank, workload: Workload, request: NoiseRequest) -> NoiseRecord:
    """Train `steps` steps and keep both squared gradient norms of each.

    Raises:
        BadInput: the plan has only one gradient a step, or shards gradients (ZeRO).
    """
    plan = request.plan
    dataset = load_train_data(workload, plan.global_batch)
    engine = TorchEngine(workload, plan, rank, request.learning_rate, request.seed)
    norms = GradientNorms(engine, detailed_every=1)
    batches = rank_steps(workload, dataset, plan, rank.rank, request.seed)
    warmup_examples = workload.reference.warmup_examples
    for step in range(1, request.steps + 1):
        engine.step(next(batches), workload.learning_rate_factor(step * plan.global_batch, warmup_examples))
    found = norms.collect()
    engine.close()
    small, big = zip(*found.total, strict=True) if found.total else ((), ())
    return NoiseRecord(
        **observation(probe_noise, rank, request),
        plan=plan,
        learning_rate=request.learning_rate,
        small_batch=norms.small_batch,
        small_squared_norms=small,
        big_squared_norms=big,
        groups={
            name: squared_norms(pairs)
            for name, *pairs in zip(norms.squares.names, *found.groups, strict=True)
        }
        if found.groups
        else {},
        preconditioned=squared_norms(found.preconditioned) if found.preconditioned else None,
        left_out_steps=found.left_out_steps,
    )


def squared_norms(pairs: Sequence[tuple[float, float]]) -> SquaredNorms:
    """Make a record of (small, big) pairs."""
    return SquaredNorms(small=tuple(small for small, _ in pairs), big=tuple(big for _, big in pairs))
