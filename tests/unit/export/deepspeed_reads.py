"""DeepSpeed reads its export and trains with it: FOLDER RANK WORLD, a process of its own for each rank."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from export_cases import job_of
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.export.deepspeed import deepspeed_config
from scaler.export.hugging_face import training_arguments


class OtherWorld:
    """As many ranks as a plan has, for DeepSpeed's check of its own identity."""

    def __init__(self, workers: int) -> None:
        self.get_data_parallel_world_size = lambda: workers


@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 512), st.integers(0, 3))
@settings(max_examples=100, deadline=None, database=None)
def check_identity(micro_batch: int, accumulation: int, workers: int, stage: int) -> None:
    from deepspeed import DeepSpeedConfig

    plan = BatchPlan.equal(micro_batch, accumulation, workers, stage)
    read = DeepSpeedConfig(deepspeed_config(job_of(plan)), mpu=OtherWorld(workers))
    product = read.train_micro_batch_size_per_gpu * read.gradient_accumulation_steps * read.world_size
    assert product == read.train_batch_size == plan.global_batch
    assert read.zero_optimization_stage == stage and read.gradient_clipping == 0


def rates(file: Path) -> dict:
    """Train, each pass on the micro-batch that the engine asks for; the rate of every optimizer step."""
    import deepspeed

    net = torch.nn.Linear(3, 1)
    engine, optimizer, _, _ = deepspeed.initialize(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
        config=str(file),
        dist_init_required=False,
    )
    found, passes = [], 0
    while engine.global_steps < 8:
        before = engine.global_steps
        rate = optimizer.param_groups[0]["lr"]
        x = torch.ones(engine.train_micro_batch_size_per_gpu(), 3)
        engine.backward(engine(x).square().mean())
        engine.step()
        passes += 1
        if engine.global_steps > before:
            found.append(rate)
    read = {"rates": found, "passes": passes, "global_batch": engine.train_batch_size()}
    read["stage"] = engine.zero_optimization_stage()
    engine.destroy()
    return read


def main(folder: Path, number: int, world: int) -> None:
    os.environ.update(CXX="/bin/false", CC="/bin/false")  # nothing may be compiled
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world))  # as a launcher does
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # asked for, and not used: the group is there
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=timedelta(seconds=60))
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")  # takes the group that is there
    if number == 0:
        check_identity()
    found = {file.stem: rates(file) for file in sorted(folder.glob("*.json"))}

    from transformers import TrainingArguments

    plan = BatchPlan.equal(8, 2, world, zero_stage=2)
    arguments = TrainingArguments(
        output_dir=str(folder), **training_arguments(job_of(plan, learning_rate=0.02))
    )
    found["hugging face"] = arguments.hf_deepspeed_config.config
    (folder / f"found-{number}.txt").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
