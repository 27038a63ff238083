"""Gradient noise along the first steps of the reference configuration."""

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
    norms = GradientNorms(engine)
    batches = rank_steps(workload, dataset, plan, rank.rank, request.seed)
    warmup_examples = workload.reference.warmup_examples
    for step in range(1, request.steps + 1):
        engine.step(next(batches), workload.learning_rate_factor(step * plan.global_batch, warmup_examples))
    found = norms.collect()
    engine.close()
    names = norms.squares.names
    pairs = found.preconditioned
    return NoiseRecord(
        **observation(probe_noise, rank, request),
        plan=plan,
        learning_rate=request.learning_rate,
        small_batch=norms.small_batch,
        small_squared_norms=tuple(map(sum, found.small)),
        big_squared_norms=tuple(map(sum, found.big)),
        groups={
            name: SquaredNorms(
                small=tuple(row[n] for row in found.small), big=tuple(row[n] for row in found.big)
            )
            for n, name in enumerate(names if len(names) > 1 else ())
        },
        preconditioned=SquaredNorms(small=tuple(s for s, _ in pairs), big=tuple(b for _, b in pairs))
        if pairs
        else None,
        left_out_steps=found.left_out_steps,
    )
