"""ZeRO beside the plain engine, every stage and weighting in one process: FOLDER RANK WORLD."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from spread_cases import CONVERGENCE, STEPS, WORKLOADS, flat, train

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.probe.convergence import probe_convergence
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.runtime.protocol import Rank

STAGES = (1, 2, 3)
PLANS = {
    1: {"one pass": BatchPlan.equal(64, 1, 1), "two passes": BatchPlan.equal(32, 2, 1)},
    2: {
        "equal": BatchPlan.equal(16, 2, 2),
        "unequal": BatchPlan(micro_batches=(57, 7)),
    },
}


def factor(step: int) -> float:
    return 1.0 / (1 + step)


def sharded(workload, plan, rank):
    """As `spread_cases.train`, with the parameters gathered from the ranks."""
    engine = open_engine(workload, plan, rank, workload.reference.learning_rate, seed=7)
    import deepspeed  # after the engine chose its accelerator

    def parameters():
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            return flat(engine.module)

    batches = rank_steps(workload, load_train_data(workload, plan.global_batch), plan, rank.rank, seed=11)
    seen, losses = [parameters()], []
    for number in range(STEPS):
        losses.append(float(engine.step(next(batches), factor(number))))
        seen.append(parameters())
    engine.close()
    return {"parameters": torch.stack(seen), "losses": losses}


def curve(plan, rank):
    request = type(CONVERGENCE)(plan, 0.2, 100, 1024, seed=5)
    record = probe_convergence(rank, WORKLOADS["tokens"], request)
    return [(e.examples, e.metric) for e in record.curve]


def main(folder: Path, number: int, world: int) -> None:
    os.environ.update(CXX="/bin/false", CC="/bin/false")  # nothing may be compiled
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world))  # as a launcher does
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=timedelta(seconds=60))
    rank = Rank(number, world, Device("cpu", None), dist.group.WORLD if world > 1 else None)
    found: dict = {}
    for spread, plan in PLANS[world].items():
        for name in ("momentum", "tokens", "clipped"):
            found[name, spread, 0] = train(WORKLOADS[name], plan, rank, factor=factor)
            for stage in STAGES:
                staged = plan.model_copy(update={"zero_stage": stage})
                found[name, spread, stage] = sharded(WORKLOADS[name], staged, rank)
    for stage in STAGES:
        timed = BatchPlan.equal(16, 2, world, stage)
        record = probe_throughput(rank, WORKLOADS["momentum"], ThroughputRequest(timed, time_limit_s=0.5))
        found["throughput", stage] = record.model_dump_json()
    if world == 1:
        for stage in (0, *STAGES):
            found["curve", stage] = curve(BatchPlan.equal(32, 2, 1, stage), rank)
    torch.save(found, folder / f"zero-{world}-{number}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
