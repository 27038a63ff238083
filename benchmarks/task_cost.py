"""A task in the living worker group against one `fit()` per trial, same machine, same trial, one run."""

import statistics
import tempfile
import time

from figure import Figure
from ray.train import FailureConfig, LoggingConfig, RunConfig
from ray.train.torch import TorchTrainer

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.runtime.protocol import Rank, Task
from scaler.runtime.ray import RayRuntime
from scaler.runtime.worker_group import scaling
from scaler.workload import load_workload

CLUSTER = Cluster(name="two", workers=2, kind="mock", device_memory_bytes=2**26)
PLAN = BatchPlan.equal(32, 1, 2)
TASKS, FITS, STEPS = 20, 5, 10


def measure() -> list[Figure]:
    with RayRuntime(CLUSTER, load_workload("digits")) as runtime:
        list(runtime.run([_task(0)]))  # starts the group
        task_s = []
        for seed in range(1, TASKS + 1):
            start = time.perf_counter()
            (outcome,) = runtime.run([_task(seed)])
            task_s.append(time.perf_counter() - start)
            assert outcome.record is not None, outcome.failure
        runtime._group.close()  # its two workers make room for the fits
        fit_s = [_fit() for _ in range(FITS)]
    task, fit = statistics.median(task_s), statistics.median(fit_s)
    return [
        Figure(
            "one DDP trial: task in the living group against a `fit()`",
            "at least 20 x cheaper",
            f"{fit / task:.0f} x ({task * 1e3:.0f} ms against {fit:.1f} s)",
            f"digits, 2 gloo workers, {STEPS} steps; medians of {TASKS} tasks "
            f"({min(task_s) * 1e3:.0f}-{max(task_s) * 1e3:.0f} ms) and {FITS} fits on the same warm Ray "
            f"({min(fit_s):.1f}-{max(fit_s):.1f} s)",
        )
    ]


def _task(seed: int) -> Task:
    return Task(probe_throughput, ThroughputRequest(PLAN, STEPS, seed), workers=2)


def _fit() -> float:
    scaling_config, torch_config = scaling(CLUSTER, 2)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        TorchTrainer(
            _trial,
            scaling_config=scaling_config,
            torch_config=torch_config,
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0),
                logging_config=LoggingConfig("ERROR"),
            ),
        ).fit()
        return time.perf_counter() - start


def _trial() -> None:
    import torch.distributed as dist

    from scaler.device import open_device

    rank = Rank(dist.get_rank(), 2, open_device(CLUSTER), dist.group.WORLD)
    probe_throughput(rank, load_workload("digits"), ThroughputRequest(PLAN, STEPS))
