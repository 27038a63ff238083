"""A user's plain loop under apply, in this process or as one of two ranks: FOLDER RANK WORLD."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import scaler
from scaler.batch import BatchPlan

EXAMPLES, BATCH, STEPS, SEED, RATE = 100, 64, 4, 11, 0.2  # 256 examples: two epochs and a half
PLANS = {
    "equal": BatchPlan.equal(32, 1, 2),
    "unequal": BatchPlan(micro_batches=(57, 7)),
    "unequal, accumulating": BatchPlan(micro_batches=(25, 7), accumulation=2),
}


def sentences() -> TensorDataset:
    """Features, targets and which of the six tokens count: from one to six, unevenly."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(EXAMPLES, 6, 4, generator=generator)
    y = torch.tanh(x.sum(dim=2)) + 0.1 * torch.randn(EXAMPLES, 6, generator=generator)
    return TensorDataset(
        x, y, (torch.arange(6) < torch.randint(1, 7, (EXAMPLES, 1), generator=generator)).float()
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def by_example(net, batch):
    return F.mse_loss(net(batch[0]).squeeze(2), batch[1])


def by_token(net, batch):
    x, y, counts = batch
    return ((net(x).squeeze(2) - y) ** 2 * counts).sum() / counts.sum()


LOSSES = {"examples": (by_example, None), "tokens": (by_token, lambda batch: batch[2].sum())}


def train(plan, name: str, **options) -> torch.Tensor:
    """Give the gradients and parameters of every step."""
    loss, weight = LOSSES[name]
    applied = scaler.apply(plan)
    net = network() if plan.workers == 1 else DistributedDataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    found = []
    loader = applied.loader(sentences(), seed=SEED, **options)
    for passes in applied.steps(loader, net, weight=weight, examples=STEPS * BATCH):
        for batch, scale in passes:
            (loss(net, batch) * scale).backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
        found.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return torch.stack(found)


def refusals() -> dict[str, str]:
    """What a rank of two is told."""
    found = {}
    for name, use in {
        "one": lambda: scaler.apply(BatchPlan.equal(8, 1, 1)),
        "bare": lambda: next(scaler.apply(PLANS["equal"]).steps([], network())),
    }.items():
        try:
            use()
        except scaler.ScalerError as error:
            found[name] = str(error)
    return found


def main(folder: Path, rank: int, world: int) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    found = {(name, spread): train(plan, name) for name in LOSSES for spread, plan in PLANS.items()}
    torch.save({**found, "refusals": refusals()}, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
