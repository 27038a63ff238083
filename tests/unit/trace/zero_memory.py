"""The peak of real DeepSpeed engines, counted, in one process of several: FOLDER RANK WORLD."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset
from trace_cases import CLASSES, adamw, momentum, workload

from scaler.batch import BatchPlan
from scaler.counted_memory import CountedMemory
from scaler.device import Device
from scaler.engine.open import open_engine
from scaler.runtime.protocol import Rank

WIDTH, DEPTH = 256, 6
STAGES = (1, 2, 3)


def network() -> nn.Module:
    hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def examples() -> TensorDataset:
    return TensorDataset(torch.zeros(64, WIDTH), torch.zeros(64, dtype=torch.int64))


OPTIMIZERS = {"adamw": adamw, "momentum": momentum}
CASES = {
    "small batch": ("adamw", 4, 1),
    "accumulating": ("adamw", 4, 2),
    "large batch": ("adamw", 2048, 1),
    "momentum": ("momentum", 4, 1),
}
"""Optimizer, micro-batch, passes"""


def case(optimizer):
    return workload(model=network, train_data=examples, optimizer=OPTIMIZERS[optimizer])


def peak(rank: Rank, stage: int, optimizer: str, micro_batch: int, passes: int) -> int:
    """Train two steps, as a memory probe does."""
    plan = BatchPlan.equal(micro_batch, passes, rank.world_size, stage)
    batch = (torch.zeros(micro_batch, WIDTH), torch.zeros(micro_batch, dtype=torch.int64))
    with CountedMemory() as counted:
        engine = open_engine(case(optimizer), plan, rank, 1e-3, 0)
        for _ in range(2):
            engine.step([batch] * passes, 1.0)
        engine.close()
    return counted.peak_bytes


def main(folder: Path, number: int, world: int) -> None:
    os.environ.update(CXX="/bin/false", CC="/bin/false")  # nothing may be compiled
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world))  # as a launcher does
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=timedelta(seconds=60))
    rank = Rank(number, world, Device("mock", 2**34), dist.group.WORLD)
    found = {f"{name} {stage}": peak(rank, stage, *CASES[name]) for name in CASES for stage in STAGES}
    (folder / f"peaks-{world}-{number}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
