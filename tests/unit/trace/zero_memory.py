"""The peak of real DeepSpeed engines, counted, in one process of several: FOLDER RANK WORLD."""

import functools
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
STAGES = (0, 1, 2, 3)


def network() -> nn.Module:
    hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def examples(dtype=torch.float32) -> TensorDataset:
    return TensorDataset(torch.zeros(64, WIDTH, dtype=dtype), torch.zeros(64, dtype=torch.int64))


LINEAR = torch.nn.functional.linear
CASES = {
    "small batch": ({}, 4, 1),
    "accumulating": ({}, 4, 2),
    "large batch": ({}, 2048, 1),
    "momentum": ({"optimizer": momentum}, 4, 1),
    "momentum accumulating": ({"optimizer": momentum}, 4, 2),
    "bf16": ({"precision": "bf16"}, 512, 1),
    "16-bit weights": (
        {"model": lambda: network().bfloat16(), "train_data": lambda: examples(torch.bfloat16)},
        4,
        1,
    ),
    "foreach": ({"optimizer": functools.partial(adamw, foreach=True)}, 4, 1),
    "small bucket": ({}, 4, 1),
    "small bucket accumulating": ({}, 4, 2),
    "one bias bucket": ({"optimizer": momentum}, 600, 1),
    "view": ({"gradient_as_bucket_view": True}, 4, 1),
}
"""Fields of the workload, micro-batch, passes"""


def case(name):
    fields, _, _ = CASES[name]
    return workload(**({"model": network, "train_data": examples} | fields))


def peak(rank: Rank, stage: int, name: str) -> int:
    """Train two steps, as a memory probe does."""
    _, micro_batch, passes = CASES[name]
    torch.nn.functional.linear = LINEAR
    import scaler.engine.zero as z

    z._BUCKET_ELEMENTS = 102400 if "bucket" in name else 500_000_000
    plan = BatchPlan.equal(micro_batch, passes, rank.world_size, stage)
    one = case(name)
    x, y = one.train_data()[:1]
    batch = (x.repeat(micro_batch, 1), y.repeat(micro_batch))
    with CountedMemory() as counted:
        engine = open_engine(one, plan, rank, 1e-3, 0)
        for _ in range(2):
            engine.step([batch] * passes, 1.0)
        engine.close()
    return counted.peak_bytes


def tried(*a):
    try:
        return peak(*a)
    except Exception as e:
        return str(e)


def main(folder: Path, number: int, world: int) -> None:
    os.environ.update(CXX="/bin/false", CC="/bin/false")  # nothing may be compiled
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world))  # as a launcher does
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=timedelta(seconds=60))
    rank = Rank(number, world, Device("mock", 2**34), dist.group.WORLD)
    found = {f"{name} {stage}": tried(rank, stage, name) for name in CASES for stage in STAGES}
    (folder / f"peaks-{world}-{number}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
