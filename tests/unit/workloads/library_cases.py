"""Tiny workloads from other libraries, trained here or as one of two ranks: FOLDER RANK WORLD."""

import itertools
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.runtime.protocol import Rank
from scaler.workload import Reference, Target, Workload
from scaler.workloads.hugging_face import from_hugging_face
from scaler.workloads.lightning import from_lightning

STEPS = 2
TWO_RANKS = {"unequal": BatchPlan(micro_batches=(5, 3), accumulation=2)}


class Net(LightningModule):
    """A regression that logs, as users' modules do."""

    def __init__(self, optimizers=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizers_made = optimizers or (lambda net: torch.optim.SGD(net.parameters(), lr=0.1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch):
        error = self(batch[0]) - batch[1]
        self.log_dict({"val_loss": error.square().mean(), "val_worst": error.abs().max()})

    def configure_optimizers(self):
        return self.optimizers_made(self)


class Points(LightningDataModule):
    """256 points on a plane."""

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(320, 4, generator=generator)
        y = x.sum(dim=1, keepdim=True)
        self.train, self.val = TensorDataset(x[:256], y[:256]), TensorDataset(x[256:], y[256:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=64)


def points(module=Net, datamodule=Points, **fields) -> Workload:
    made = {
        "metric": "val_loss",
        "target": Target(0.1, "min", max_examples=8_000),
        "reference": Reference(global_batch=16, learning_rate=0.1),
    }
    return from_lightning(module, datamodule, **{**made, **fields})


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        n_layer=1,
        n_head=2,
        n_embd=8,
        vocab_size=7,
        n_positions=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def rows(examples=64, first=0) -> list[dict]:
    """Sequences that count modulo 7, of one to seven labels, with a column that is no argument."""
    found = []
    for number in range(first, first + examples):
        tokens = (torch.arange(8) + number) % 7
        labels = torch.where(torch.arange(8) <= number * 5 % 7 + 1, tokens, -100)
        found.append({"input_ids": tokens, "labels": labels, "text": f"row {number}"})
    return found


def arguments(**fields) -> TrainingArguments:
    made = {
        "output_dir": "unused",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "warmup_steps": 3,
        "lr_scheduler_type": "constant_with_warmup",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    with warnings.catch_warnings(action="ignore"):  # accelerate's, of threads
        return TrainingArguments(**{**made, **fields})


def counting(args=None, **fields) -> Workload:
    made = {"target": Target(1.94, "min", max_examples=320, evaluate_every=64)}
    return from_hugging_face(gpt2, rows, lambda: rows(16, 64), args or arguments(), **{**made, **fields})


def train(workload: Workload, plan: BatchPlan, rank: Rank) -> torch.Tensor:
    """Give the parameters after each of the first steps."""
    engine = open_engine(workload, plan, rank, workload.reference.learning_rate, seed=7)
    batches = rank_steps(workload, load_train_data(workload, plan.global_batch), plan, rank.rank, seed=11)
    found = []
    for step in itertools.islice(batches, STEPS):
        engine.step(step, 1.0)
        found.append(nn.utils.parameters_to_vector(engine.module.parameters()).detach().clone())
    return torch.stack(found)


def main(folder: Path, number: int, world: int) -> None:
    timeout = timedelta(seconds=60)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=timeout)
    rank = Rank(number, world, Device("cpu", None), dist.new_group(list(range(world)), timeout=timeout))
    workloads = {"lightning": points(), "hugging face": counting()}
    found = {
        (name, spread): train(workload, plan, rank)
        for name, workload in workloads.items()
        for spread, plan in TWO_RANKS.items()
    }
    torch.save(found, folder / f"rank-{number}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
