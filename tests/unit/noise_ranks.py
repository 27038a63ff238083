"""A training loop of a user's own on two DDP ranks: FOLDER RANK."""

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scaler.errors import BadInput
from scaler.noise_scale import NoiseScale

STEPS, MICRO_BATCH, ACCUMULATION = 16, 4, 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def passes(step: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs and targets of both ranks in one pass, [2, micro_batch, ...]."""
    generator = torch.Generator().manual_seed(100 * step + number)
    x = torch.randn(2, MICRO_BATCH, 4, generator=generator)
    return x, x.sum(dim=2, keepdim=True) + torch.randn(2, MICRO_BATCH, 1, generator=generator)


def train(rank: int, synchronise: bool = False, poisoned: int = -1) -> dict:
    """Train and estimate; `poisoned` is a step in which rank 1's loss is not finite."""
    net = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    noise = NoiseScale(net, optimizer, MICRO_BATCH, ACCUMULATION)
    for step in range(STEPS):
        for number in range(ACCUMULATION):
            net.require_backward_grad_sync = synchronise or number == ACCUMULATION - 1  # as no_sync()
            x, y = passes(step, number)
            loss = F.mse_loss(net(x[rank]), y[rank]) / ACCUMULATION
            (loss * (float("nan") if (rank, step) == (1, poisoned) else 1)).backward()
        if step == poisoned:
            optimizer.zero_grad()
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
    return {"fit": noise.estimate().model_dump(), "total": noise._collector.norms.total}


def refused() -> str:
    net = DistributedDataParallel(network())
    net.register_comm_hook(None, lambda _, bucket: None)
    try:
        NoiseScale(net, torch.optim.SGD(net.parameters(), lr=0.1), MICRO_BATCH)
    except BadInput as error:
        return str(error)
    return ""


def main(folder: Path, rank: int) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=20))
    found = {"plain": train(rank), "poisoned": train(rank, poisoned=5), "refused": refused()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["without no_sync"] = train(rank, synchronise=True)
    found["warnings"] = [str(w.message) for w in caught]
    (folder / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
