"""ZeRO on one rank beside the plain engine, every stage and weighting in one process: FILE."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from spread_cases import STEPS, WORKLOADS, alone, flat, train

from scaler.batch import BatchPlan
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine

CASES = [(name, stage, passes) for name in ("momentum", "tokens") for stage in (1, 2, 3) for passes in (1, 2)]


def sharded(workload, plan):
    engine = open_engine(workload, plan, alone(), workload.reference.learning_rate, seed=7)
    import deepspeed  # the engine chose its accelerator

    def parameters():
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            return flat(engine.module)

    batches = rank_steps(workload, load_train_data(workload, plan.global_batch), plan, 0, seed=11)
    seen, losses = [parameters()], []
    for step in range(STEPS):
        losses.append(float(engine.step(next(batches), 1.0 / (1 + step))))
        seen.append(parameters())
    engine.close()
    return {"parameters": torch.stack(seen), "losses": losses}


def main(file):
    os.environ.update(CXX="/bin/false", CC="/bin/false")  # nothing may be compiled
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # as a launcher would
    store = dist.FileStore(tempfile.mktemp(), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    found = {}
    for name, stage, passes in CASES:
        plan = BatchPlan.equal(64 // passes, passes, 1)
        expected = train(WORKLOADS[name], plan, alone(), factor=lambda step: 1.0 / (1 + step))
        sharded_plan = plan.model_copy(update={"zero_stage": stage})
        found[name, stage, passes] = (sharded(WORKLOADS[name], sharded_plan), expected)
    torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
