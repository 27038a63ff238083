"""Training of known steps under any spread, in this process or as one of two ranks: FOLDER RANK."""

import dataclasses
import functools
import sys
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.engine.clock import StepClock
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.noise import GradientNorms
from scaler.engine.open import open_engine
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.runtime.protocol import Rank
from scaler.workload import Reference, Target, Workload

EXAMPLES, WIDTH, FEATURES = 1500, 6, 4
STEPS = 3


@functools.cache
def sentences() -> TensorDataset:
    """Features [n, 6, 4], targets [n, 6] and which tokens count [n, 6]: from one to six, unevenly."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(EXAMPLES, WIDTH, FEATURES, generator=generator)
    y = torch.tanh(x.sum(dim=2)) + 0.1 * torch.randn(EXAMPLES, WIDTH, generator=generator)
    lengths = torch.randint(1, WIDTH + 1, (EXAMPLES, 1), generator=generator)
    return TensorDataset(x, y, (torch.arange(WIDTH) < lengths).float())


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))


def by_example(net, batch):
    x, y, _ = batch
    return F.mse_loss(net(x).squeeze(2), y)


def by_token(net, batch):
    x, y, counts = batch
    return ((net(x).squeeze(2) - y) ** 2 * counts).sum() / counts.sum()


def sgd(parameters, learning_rate):
    return torch.optim.SGD(parameters, lr=learning_rate)


def momentum(parameters, learning_rate):
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)


def workload(loss=by_example, weight=None, optimizer=sgd, **fields) -> Workload:
    defaults = {
        "name": "sentences",
        "model": network,
        "train_data": sentences,
        "eval_data": sentences,
        "loss": loss,
        "metric": loss,
        "optimizer": optimizer,
        "weight": weight,
        "target": Target(0.0, "min", evaluate_every=256),
        "reference": Reference(global_batch=64, learning_rate=0.2),
    }
    return Workload(**(defaults | fields))


def adam(parameters, learning_rate):
    return torch.optim.Adam(parameters, lr=learning_rate / 10)


WORKLOADS = {
    "examples": workload(),
    "tokens": workload(by_token, weight=lambda batch: batch[2].sum()),
    "momentum": workload(optimizer=momentum),
    "adam": workload(optimizer=adam),
    "clipped": workload(max_grad_norm=0.1),
}
TWO_RANKS = {
    "equal": BatchPlan.equal(32, 1, 2),
    "accumulating": BatchPlan.equal(16, 2, 2),
    "unequal": BatchPlan(micro_batches=(719, 718)),
    "very unequal": BatchPlan(micro_batches=(57, 7)),
    "unequal, accumulating": BatchPlan(micro_batches=(25, 7), accumulation=2),
}
NOISE_PLANS = {spread: TWO_RANKS[spread] for spread in ("equal", "accumulating", "very unequal")}
CONVERGENCE = ConvergenceRequest(TWO_RANKS["equal"], 0.2, 100, 1024, seed=5)


def train(
    workload: Workload,
    plan: BatchPlan,
    rank: Rank,
    observe: bool = False,
    factor=lambda step: 1.0,
    clock: StepClock | None = None,
) -> dict:
    """Do the first steps; give the parameters after each, the losses, and the norms if observed."""
    engine = open_engine(workload, plan, rank, workload.reference.learning_rate, seed=7)
    if clock is not None:
        engine.measure(clock)
    norms = GradientNorms(engine) if observe else None
    batches = rank_steps(workload, load_train_data(workload, plan.global_batch), plan, rank.rank, seed=11)
    parameters, losses = [flat(engine.module)], []
    for number, step in enumerate(islice(batches, STEPS)):
        losses.append(float(engine.step(step, factor(number))))
        parameters.append(flat(engine.module))
    found = {"parameters": torch.stack(parameters), "losses": losses}
    if norms is not None:
        found["norms"] = dataclasses.asdict(norms.collect())
        found["groups"] = norms.squares.names
        found["small_batch"] = norms.small_batch
    engine.close()
    return found


def flat(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def alone() -> Rank:
    return Rank(0, 1, Device("cpu", None))


class Wide(nn.Module):
    """A network whose activations, not its parameters, take the memory."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x):
        return self.inner(x)


WIDE = workload(by_token, weight=lambda batch: batch[2].sum(), model=Wide)
LOPSIDED = BatchPlan(micro_batches=(200, 20))


def capacity_of_neither() -> int:
    """Memory in which the small part of the lopsided plan fits, and the large one does not."""
    large, small = (
        probe_memory(alone(), WIDE, MemoryRequest(BatchPlan.equal(entry, 1, 1))).peak_bytes
        for entry in LOPSIDED.micro_batches
    )
    assert small * 2 < large
    return (small + large) // 2


def main(folder: Path, number: int) -> None:
    timeout = timedelta(seconds=20)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=number, world_size=2, timeout=timeout)
    rank = Rank(number, 2, Device("cpu", None), dist.new_group([0, 1], timeout=timeout))
    found: dict = {
        (name, spread): train(workload, plan, rank)
        for name, workload in WORKLOADS.items()
        for spread, plan in TWO_RANKS.items()
    }
    for spread, plan in NOISE_PLANS.items():
        found["noise", spread] = train(WORKLOADS["adam"], plan, rank, observe=True)
        found["measured", spread] = train(WORKLOADS["momentum"], plan, rank, clock=StepClock())
    apart = Rank(number, 2, rank.device, rank.group, nodes=("machine 0", "machine 1"))
    for spread, where in (("equal", rank), ("accumulating", apart)):
        request = ThroughputRequest(TWO_RANKS[spread], time_limit_s=0.5)
        record = probe_throughput(where, WORKLOADS["momentum"], request)
        found["throughput", spread] = record.model_dump_json()
    record = probe_convergence(rank, WORKLOADS["tokens"], CONVERGENCE)
    found["curve"] = [(e.examples, e.metric) for e in record.curve]
    found["stop"] = record.stop
    roomy = Rank(number, 2, Device("mock", 2**30), rank.group)
    found["fits"] = probe_memory(roomy, WIDE, MemoryRequest(LOPSIDED)).model_dump_json()
    torch.save(found, folder / f"rank-{number}.pt")
    # Last, since a wrong answer to it is to wait for each other.
    tight = Rank(number, 2, Device("mock", capacity_of_neither()), rank.group)
    record = probe_memory(tight, WIDE, MemoryRequest(LOPSIDED))
    (folder / f"tight-{number}.json").write_text(record.model_dump_json(), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
