"""Step times of a plan: one launch, every sample kept."""

import time
from dataclasses import dataclass

from scaler.batch import BatchPlan
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.engine import agree
from scaler.engine.open import open_engine
from scaler.probe.observation import observation
from scaler.records import WARMUP_STEPS, ThroughputRecord
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

_LEAST_STEPS = 10
_RUN_S = 3.0  # a run of slow steps is cut to about this long, but not below ten steps


@dataclass(frozen=True)
class ThroughputRequest:
    """Asks for up to `steps` step times of one fresh launch; `seed` tells launches of one plan apart."""

    plan: BatchPlan
    steps: int
    seed: int = 0


def probe_throughput(rank: Rank, workload: Workload, request: ThroughputRequest) -> ThroughputRecord:
    """Time optimizer steps after five of warm-up, each from fetching its examples to the update."""
    plan = request.plan
    dataset = load_train_data(workload, plan.global_batch)
    engine = open_engine(workload, plan, rank, workload.reference.learning_rate, request.seed)
    batches = rank_steps(workload, dataset, plan, rank.rank, request.seed)

    def timed_step() -> float:
        start = time.perf_counter()
        engine.step(next(batches), 1.0)
        rank.device.synchronize()
        return time.perf_counter() - start

    step_times_s = [timed_step() for _ in range(WARMUP_STEPS)]
    affordable = agree(rank, _RUN_S // step_times_s[-1])
    steps = min(request.steps, max(_LEAST_STEPS, int(affordable)))
    step_times_s += [timed_step() for _ in range(steps)]
    engine.close()
    return ThroughputRecord(
        **observation(probe_throughput, rank, request),
        plan=plan,
        step_times_s=tuple(step_times_s),
        warmup_steps=WARMUP_STEPS,
    )
