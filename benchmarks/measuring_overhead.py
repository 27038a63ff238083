"""What measuring adds to a training step: steps with and without it in turn, in one process."""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from figure import Figure

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.engine.clock import StepClock
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.noise import GradientNorms
from scaler.engine.torch_engine import TorchEngine
from scaler.probe.observation import observation
from scaler.records import ThroughputRecord
from scaler.runtime.protocol import Rank, Task
from scaler.runtime.ray import RayRuntime
from scaler.stats import block_bootstrap
from scaler.workload import Workload, load_workload

PLAN = BatchPlan.equal(64, 1, 2)
WARMUP, PAIRS = 50, 1500


GOALS = {"noise": "upper end at most 5%", "phases": "upper end under 2%"}


@dataclass(frozen=True)
class PairsRequest:
    what: Literal["noise", "phases"]
    seed: int = 0


def measure() -> list[Figure]:
    cluster = Cluster(name="two", workers=2, kind="mock", device_memory_bytes=2**30)
    with RayRuntime(cluster, load_workload("mnist")) as runtime:
        outcomes = list(runtime.run([Task(probe_pairs, PairsRequest(what), workers=2) for what in GOALS]))
    return [_figure(what, outcome.record) for what, outcome in zip(GOALS, outcomes, strict=True)]


def _figure(what: str, record: object) -> Figure:
    assert isinstance(record, ThroughputRecord), record
    pairs = np.array(record.step_times_s[2 * WARMUP :]).reshape(-1, 2)
    logs = np.log(pairs[:, 1] / pairs[:, 0])
    interval = block_bootstrap(logs, lambda rows: float(np.median(rows)))
    assert interval is not None
    low, high = (np.exp(bound) - 1 for bound in interval)
    return Figure(
        f"measuring {what}, share of a step",
        GOALS[what],
        f"{np.exp(np.median(logs)) - 1:+.1%} (90% interval {low:+.1%} to {high:+.1%})",
        f"mnist, 64 examples a worker, 2 gloo workers, step {np.median(pairs[:, 0]) * 1e3:.1f} ms; "
        f"{PAIRS} pairs in turn, block bootstrap of the median log ratio",
    )


def probe_pairs(rank: Rank, workload: Workload, request: PairsRequest) -> ThroughputRecord:
    """Time a plain step and an observed one in turn, starting each pair with the other one."""
    dataset = load_train_data(workload, PLAN.global_batch)
    engines = [TorchEngine(workload, PLAN, rank, 0.01, seed=0) for _ in range(2)]
    clock = StepClock()
    if request.what == "noise":
        GradientNorms(engines[1])
    else:
        engines[1].measure(clock)
    streams = [rank_steps(workload, dataset, PLAN, rank.rank, seed=0) for _ in engines]
    times = []
    for number in range(WARMUP + PAIRS):
        pair = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            batches = next(streams[which])
            start = time.perf_counter()
            clock.start()
            engines[which].step(batches, 1.0)
            clock.end()
            pair[which] = time.perf_counter() - start
        times += pair
    return ThroughputRecord(
        **observation(probe_pairs, rank, request),
        plan=PLAN,
        step_times_s=tuple(times),
        warmup_steps=2 * WARMUP,
    )
