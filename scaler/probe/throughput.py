"""Step times of a plan: one launch, split into phases, every sample kept."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from scaler.batch import BatchPlan
from scaler.engine.clock import StepClock, step_clock
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.engine import agree
from scaler.engine.open import open_engine
from scaler.probe.observation import observation
from scaler.records import ThroughputRecord
from scaler.runtime.protocol import Rank
from scaler.stats import median_width, outliers, settled_from
from scaler.workload import Workload

_BLOCK, _BLOCK_S = 10, 1.0  # steps between looks at the times, or as many as take about a second
_FEWEST_STEPS, _LEAST_STEPS, _MOST_STEPS = 6, 20, 200
_DIGITS = 8  # of seconds that are kept


@dataclass(frozen=True)
class ThroughputRequest:
    """Asks for the median step of one fresh launch; `seed` tells launches of one plan apart."""

    plan: BatchPlan
    width: float = 0.05
    """Steps are added until the median's 90% interval is narrower than this share of it,"""
    time_limit_s: float = field(default=5.0, compare=False)
    """or this long; at least twenty are taken, or six of slow ones."""
    seed: int = 0


def probe_throughput(rank: Rank, workload: Workload, request: ThroughputRequest) -> ThroughputRecord:
    """Time optimizer steps, each from fetching its examples to the update; warm-up is found in the times."""
    plan = request.plan
    dataset = load_train_data(workload, plan.global_batch)
    engine = open_engine(workload, plan, rank, workload.reference.learning_rate, request.seed)
    batches = rank_steps(workload, dataset, plan, rank.rank, request.seed)
    clock = step_clock(rank.device)
    engine.measure(clock)
    started = time.perf_counter()
    more = 1
    while more:
        for _ in range(more):
            clock.start()
            step = next(batches)
            clock.lap("data")
            engine.step(step, 1.0)
            rank.device.synchronize()
            clock.end()
        elapsed_s = time.perf_counter() - started
        more = int(agree(rank, float(_further_steps(clock.step_times_s, elapsed_s, request))))
    engine.close()
    warmup = settled_from(clock.step_times_s)
    return ThroughputRecord(
        **observation(probe_throughput, rank, request),
        plan=plan,
        nodes=len({*rank.nodes}) or 1,
        step_times_s=tuple(round(t, _DIGITS) for t in clock.step_times_s),
        warmup_steps=warmup,
        phase_times_s={
            phase: tuple(max(0.0, round(t, _DIGITS)) for t in times) for phase, times in clock.times_s.items()
        },
        outliers=tuple(number + warmup for number in outliers(clock.step_times_s[warmup:])),
        rank_compute_s=_compute_s(rank, clock, warmup),
    )


def _further_steps(times_s: list[float], elapsed_s: float, request: ThroughputRequest) -> int:
    """Say how many steps to add before the next look; 0 when there are enough."""
    steps = len(times_s)
    late = elapsed_s > request.time_limit_s and steps >= _FEWEST_STEPS
    settled = times_s[settled_from(times_s) :]
    narrow = steps >= _LEAST_STEPS and median_width(settled) <= request.width
    if late or narrow or steps >= _MOST_STEPS:
        return 0
    return max(1, min(_BLOCK, int(_BLOCK_S / float(np.median(times_s)))))


def _compute_s(rank: Rank, clock: StepClock, warmup: int) -> tuple[float, ...]:
    """Share every rank's median step less its exposed synchronisation; () where that is not measured."""
    sync = clock.times_s.get("sync")
    if rank.group is None:
        return (float(np.median(clock.step_times_s[warmup:])),)
    own = np.median(np.subtract(clock.step_times_s, sync)[warmup:]) if sync else np.nan
    mine = torch.tensor(own, dtype=torch.float64, device=rank.device.torch_device)
    found = [torch.empty_like(mine) for _ in range(rank.world_size)]
    dist.all_gather(found, mine, group=rank.group)
    return tuple(float(t) for t in found) if sync else ()
