"""The peak of real engines of two ranks, DDP's and DeepSpeed's, counted: FOLDER RANK."""

import gc
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset
from trace_cases import CLASSES, momentum, workload

from scaler.batch import BatchPlan
from scaler.counted_memory import CountedMemory
from scaler.device import Device
from scaler.engine import zero
from scaler.engine.open import open_engine
from scaler.runtime.protocol import Rank

WORLD = 2
WIDTH, DEPTH = 256, 6
REPEATS = 2
LINEAR = torch.nn.functional.linear  # stage 3 puts one of its own in its place
SMALL_BUCKET = 102_400  # elements, of 397,322


def network() -> nn.Module:
    hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def examples(dtype=torch.float32) -> TensorDataset:
    return TensorDataset(torch.zeros(64, WIDTH, dtype=dtype), torch.zeros(64, dtype=torch.int64))


FIELDS = {
    "small batch": {},
    "large batch": {},
    "accumulating": {},
    "momentum": {"optimizer": momentum},
    "bucket view": {"gradient_as_bucket_view": True},
    "bf16": {"precision": "bf16"},
    "16-bit weights": {
        "model": lambda: network().bfloat16(),
        "train_data": lambda: examples(torch.bfloat16),
    },
    "small bucket": {},
}
SIZES = {"large batch": 2048, "bf16": 512}  # else 4
CASES = [
    *((name, 0) for name in ("small batch", "large batch", "accumulating", "bucket view", "bf16")),
    *((name, stage) for stage in (1, 2) for name in FIELDS if name != "bucket view"),
    *(
        (name, 3)
        for name in ("small batch", "large batch", "accumulating", "momentum", "bf16", "16-bit weights")
    ),
]


def case(name):
    return workload(**({"model": network, "train_data": examples} | FIELDS[name]))


def plan(name: str, stage: int) -> BatchPlan:
    return BatchPlan.equal(SIZES.get(name, 4), 2 if name == "accumulating" else 1, WORLD, stage)


def bucket_elements(name: str) -> int:
    return SMALL_BUCKET if name == "small bucket" else 500_000_000


def peak(rank: Rank, name: str, stage: int) -> int:
    """Train two steps, as a memory probe does."""
    torch.nn.functional.linear = LINEAR
    zero._BUCKET_ELEMENTS = bucket_elements(name)
    subject, spread = case(name), plan(name, stage)
    x, y = subject.train_data()[:1]
    batch = (x.repeat(spread.micro_batch, 1), y.repeat(spread.micro_batch))
    gc.collect()
    with CountedMemory() as counted:
        engine = open_engine(subject, spread, rank, 1e-3, 0)
        for _ in range(2):
            engine.step([batch] * spread.accumulation, 1.0)
        engine.close()
    return counted.peak_bytes


def settling(collective):
    """The collective, and a moment in which gloo's thread lets go of its tensors."""

    def run(*arguments, **options):
        done = collective(*arguments, **options)
        time.sleep(0.003)
        return done

    return run


def main(folder: Path, number: int) -> None:
    os.environ.update(CXX="/bin/false", CC="/bin/false")  # nothing may be compiled
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(WORLD))  # as a launcher does
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=number, world_size=WORLD, timeout=timedelta(seconds=60))
    for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"):
        setattr(dist, name, settling(getattr(dist, name)))
    rank = Rank(number, WORLD, Device("mock", 2**34), dist.group.WORLD)
    found = [(name, stage, [peak(rank, name, stage) for _ in range(REPEATS)]) for name, stage in CASES]
    answer = {"peaks": found, "linear": str(torch.nn.functional.linear)}  # the last engine was of stage 3
    (folder / f"peaks-{number}.json").write_text(json.dumps(answer), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
