"""Step time on 8 workers of an emulated 4-node cluster, predicted from runs on 1, 2 and 4.

    python benchmarks/emulated.py [--settings N] [--seed S]

Each setting draws a network, a device speed and a link. The workers are real processes on Ray Train whose
computation is slept; where network namespaces are allowed, the links between nodes are shaped by the kernel.
The truth is the median of two launches on 8 workers, which no fit sees.
"""

import argparse
import math
import random
import sys
from dataclasses import dataclass

import numpy as np
import torch
from figure import Figure, table
from torch import nn

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.fit.step_time import fit_step_time, run_median_s, shape_of
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.records import ThroughputRecord
from scaler.runtime.protocol import Task
from scaler.runtime.ray import RayRuntime
from scaler.workload import Reference, Target, Workload

WORKERS, NODES = 8, 4
SIZES = (16, 32)
KNOWN = (1, 2, 4)


@dataclass(frozen=True)
class Setting:
    width: int
    depth: int
    compute_s: float
    """Of 32 examples."""
    sync_share: float
    """Of that, what the slowest link needs for the gradients of 8 workers."""
    overhead_s: float
    latency_s: float

    @property
    def parameters(self) -> int:
        return (self.width + 1) * self.width * self.depth

    def cluster(self) -> Cluster:
        bytes_sent = 4 * self.parameters * 2 * (WORKERS - 1) / WORKERS
        return Cluster.model_validate(
            {
                "name": "emulated",
                "kind": "mock",
                "nodes": NODES,
                "workers": (1, WORKERS),
                "device_memory": "1GiB",
                "emulate": {
                    "speed": 6 * self.parameters * SIZES[1] / self.compute_s,
                    "overhead": self.overhead_s,
                    "bandwidth": int(bytes_sent / (self.sync_share * self.compute_s)),
                    "latency": self.latency_s,
                },
            }
        )

    def workload(self) -> Workload:
        width, depth = self.width, self.depth

        def data() -> torch.utils.data.TensorDataset:
            return torch.utils.data.TensorDataset(torch.randn(4096, width), torch.randn(4096, width))

        def model() -> nn.Module:
            layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
            return nn.Sequential(*layers)

        def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return nn.functional.mse_loss(net(batch[0]), batch[1])

        return Workload(
            name="emulated",
            model=model,
            train_data=data,
            eval_data=data,
            loss=loss,
            metric=loss,
            optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
            target=Target(0.0, "min"),
            reference=Reference(64, 1e-3),
        )


def draw(seed: int, number: int) -> Setting:
    rng = random.Random(f"{seed}/{number}")

    def between(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    return Setting(
        width=rng.choice((64, 128, 192, 256)),
        depth=rng.randint(2, 5),
        compute_s=between(0.15, 0.5),  # so that half of it is ten times what a worker really computes
        sync_share=between(0.1, 1.5),
        overhead_s=between(0.001, 0.01),
        latency_s=between(5e-5, 5e-4),
    )


def run(setting: Setting) -> list[float]:
    """Give predicted over observed, for both micro-batches."""
    cluster = setting.cluster()
    records: list[ThroughputRecord] = []
    with RayRuntime(cluster, setting.workload()) as runtime:
        for workers in (*KNOWN, WORKERS):
            for size in SIZES:
                for seed in (0, 1):
                    plan = BatchPlan.equal(size, 1, workers)
                    request = ThroughputRequest(plan, time_limit_s=3.0, seed=seed)
                    (outcome,) = runtime.run([Task(probe_throughput, request, workers)])
                    assert isinstance(outcome.record, ThroughputRecord), outcome.failure
                    records.append(outcome.record)
    fit = fit_step_time(r for r in records if r.plan.workers <= max(KNOWN))
    assert fit is not None
    ratios = []
    for size in SIZES:
        truth = [r for r in records if (r.plan.workers, r.plan.micro_batch) == (WORKERS, size)]
        predicted = fit.predict(shape_of(truth[0].plan, truth[0].nodes)).value
        ratios.append(predicted / float(np.median([run_median_s(r) for r in truth])))
    medians = {(r.plan.workers, r.plan.micro_batch): round(1e3 * run_median_s(r), 1) for r in records}
    print(f"{setting}: {medians} -> {[f'{ratio - 1:+.1%}' for ratio in ratios]}", file=sys.stderr)
    return ratios


def measure(settings: int = 10, seed: int = 0) -> list[Figure]:
    found = [run(draw(seed, number)) for number in range(settings)]
    worst = [max(abs(ratio - 1) for ratio in ratios) for ratios in found]
    every = np.abs(np.concatenate(found) - 1)
    return [
        Figure(
            f"step time on {WORKERS} emulated workers from 1, 2 and 4",
            "within 10% over at least 10 random settings",
            f"{sum(w <= 0.1 for w in worst)} of {settings} settings within 10% at both micro-batches; "
            f"mean error {every.mean():.1%}, worst {every.max():.1%}",
            f"{NODES} nodes, seed {seed}; micro-batches {SIZES}, two launches each, fitted on 12 of 16",
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(table(measure(options.settings, options.seed)))


if __name__ == "__main__":
    main()
