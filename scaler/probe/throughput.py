"""Step times of a plan: one launch, every sample kept."""

import time
from dataclasses import dataclass

from scaler.batch import BatchPlan
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.probe.observation import observation
from scaler.records import ThroughputRecord
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

WARMUP_STEPS = 5


@dataclass(frozen=True)
class ThroughputRequest:
    """Asks for the step times of one fresh launch; `seed` tells launches of one plan apart."""

    plan: BatchPlan
    steps: int
    seed: int = 0


def probe_throughput(rank: Rank, workload: Workload, request: ThroughputRequest) -> ThroughputRecord:
    """Time `steps` optimizer steps after five of warm-up, each from fetching its examples to the update."""
    plan = request.plan
    dataset = load_train_data(workload, plan.global_batch)
    engine = open_engine(workload, plan, rank, workload.reference.learning_rate, request.seed)
    batches = rank_steps(workload, dataset, plan, rank.rank, request.seed)
    step_times_s = []
    for _ in range(WARMUP_STEPS + request.steps):
        start = time.perf_counter()
        engine.step(next(batches), 1.0)
        rank.device.synchronize()
        step_times_s.append(time.perf_counter() - start)
    engine.close()
    return ThroughputRecord(
        **observation(probe_throughput, rank, request),
        plan=plan,
        step_times_s=tuple(step_times_s),
        warmup_steps=WARMUP_STEPS,
    )
