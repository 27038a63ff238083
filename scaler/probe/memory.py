"""Peak device memory of a plan, over two optimizer steps (the optimizer's state appears in the first)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from scaler.batch import BatchPlan
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.engine.torch_engine import TorchEngine
from scaler.probe.observation import observation
from scaler.records import MemoryRecord, environment, now
from scaler.runtime.protocol import Rank, Task
from scaler.workload import Workload, user_code

_RELEASE_S = 0.05
_STEPS = 2


@dataclass(frozen=True)
class MemoryRequest:
    """Asks for the peak of one plan."""

    plan: BatchPlan
    seed: int = 0


def probe_memory(rank: Rank, workload: Workload, request: MemoryRequest) -> MemoryRecord:
    """Train two steps from scratch and take every rank's peak, or that one ran out.

    Ranks do not reduce gradients here (DDP's buckets are held all the same), so that a rank that runs out
    leaves no peer waiting; they share what happened afterwards.
    """
    steps = list(islice(_batches(rank, workload, request), _STEPS))
    if rank.device.kind == "cuda" and rank.group is not None:
        dist.barrier(rank.group)  # makes the communicator, which is part of the peak
    out_of_memory = False
    with rank.device.memory() as meter:
        try:
            _train(rank, workload, request, steps)
        except torch.OutOfMemoryError:
            if request.plan.zero_stage:
                raise  # its peers wait inside a sharded collective: only ending the group frees them
            out_of_memory = True
    ranks = _gather(rank, [float(out_of_memory), meter.peak_bytes, meter.retries, meter.outside_bytes])
    peaks = [int(peak) for _, peak, _, _ in ranks]
    failed = [int(peak) for out, peak, _, _ in ranks if out]
    return MemoryRecord(
        **observation(probe_memory, rank, request),
        plan=request.plan,
        out_of_memory=bool(failed),
        peak_bytes=None if failed else max(peaks),
        rank_peak_bytes=() if failed else tuple(peaks),
        outside_bytes=int(ranks[peaks.index(max(peaks))][3]) if rank.device.kind == "cuda" else None,
        in_use_bytes=min(failed, default=None),
        retries=int(max(retried for _, _, retried, _ in ranks)),
        capacity_bytes=rank.device.capacity_bytes,
    )


def _gather(rank: Rank, values: list[float]) -> list[list[float]]:
    """Share a few numbers with every rank of the task."""
    own = torch.tensor(values, dtype=torch.float64, device=rank.device.torch_device)
    if rank.group is None:
        return [values]
    found = [torch.empty_like(own) for _ in range(rank.world_size)]
    dist.all_gather(found, own, group=rank.group)
    return [tensor.tolist() for tensor in found]


def out_of_memory_record(task: Task) -> MemoryRecord:
    """Make the record of a task whose ranks could not report it: a sharded engine ran out."""
    return MemoryRecord(
        task=task.key,
        seed=task.request.seed,
        taken_at=now(),
        environment=environment("unknown", task.workers),
        plan=task.request.plan,
        out_of_memory=True,
    )


def _train(rank: Rank, workload: Workload, request: MemoryRequest, steps: list[list[Any]]) -> None:
    rate = workload.reference.learning_rate
    engine = open_engine(workload, request.plan, rank, rate, request.seed)
    if isinstance(engine, TorchEngine):
        engine.take_every_step()  # the optimizer's state is part of the peak
    if rank.group is not None and rank.device.kind != "cuda":
        # gloo's threads may still hold what the parameters were broadcast in: not part of a step.
        time.sleep(_RELEASE_S)
    for batches in steps:
        if isinstance(engine, TorchEngine):
            engine.step(batches, 1.0, synchronise=False)
        else:
            engine.step(batches, 1.0)
    engine.close()


def _batches(rank: Rank, workload: Workload, request: MemoryRequest) -> Iterator[list[Any]]:
    plan = request.plan
    if workload.worst_case is None:
        dataset = load_train_data(workload, plan.global_batch)
        return rank_steps(workload, dataset, plan, rank.rank, request.seed)
    with user_code(workload, "worst_case"):
        longest = workload.worst_case(plan.micro_batches[rank.rank])
    return iter([[longest] * plan.accumulation] * _STEPS)
