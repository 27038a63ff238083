"""Small workloads of many kinds, and the peak of each: traced, and as the engine trains for real."""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.device import Device
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.runtime.protocol import Rank
from scaler.trace.batches import FakeBatches
from scaler.trace.program import Program
from scaler.trace.step import trace_steps
from scaler.workload import Reference, Target, Workload

EXAMPLES, FEATURES, LENGTH, TOKENS, WIDTH, CLASSES = 200, 24, 10, 50, 16, 10


def sgd(parameters, rate):
    return torch.optim.SGD(parameters, lr=rate)


def momentum(parameters, rate):
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def adamw(parameters, rate, **options):
    return torch.optim.AdamW(parameters, lr=rate, **options)


def adagrad(parameters, rate):
    return torch.optim.Adagrad(parameters, lr=rate)


def labels():
    return torch.arange(EXAMPLES) % CLASSES


@functools.cache
def points():
    return TensorDataset(torch.zeros(EXAMPLES, FEATURES), labels())


@functools.cache
def images():
    return TensorDataset(torch.zeros(EXAMPLES, 3, 8, 8), labels())


@functools.cache
def sentences():
    return TensorDataset(torch.zeros(EXAMPLES, LENGTH, dtype=torch.int64), labels())


def classify(net, batch):
    x, y = batch
    return F.cross_entropy(net(x), y)


def mlp(width=96, depth=2):
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), *hidden, nn.Linear(width, CLASSES))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, CLASSES),
    )


class Attention(nn.Module):
    def __init__(self, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(WIDTH)
        self.inner, self.outer = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = self.inner(self.norm(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.outer(mixed.transpose(1, 2).reshape(n, length, WIDTH))


class Transformer(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(nn.Sequential(Attention(), nn.GELU()) for _ in range(layers))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


class Bag(nn.Module):
    """An embedding, with sparse gradients or dense ones."""

    def __init__(self, sparse=False):
        super().__init__()
        self.table, self.head = nn.Embedding(TOKENS, WIDTH, sparse=sparse), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.table(x).sum(dim=1))


class Checkpointed(nn.Module):
    def __init__(self, reentrant, width=96):
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(FEATURES, width), nn.Linear(width, CLASSES)
        self.middle = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, width))
            for _ in range(3)
        )

    def forward(self, x):
        x = self.first(x)
        for part in self.middle:
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return self.last(x)


class Tied(nn.Module):
    """The embedding's weights are the output layer's."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x).mean(dim=1))


def frozen():
    net = mlp()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    net[2].weight.requires_grad_(False)
    return net


class InPlace(nn.Module):
    """Writes into its tensors, and into a buffer."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(FEATURES, 64), nn.Linear(64, CLASSES)
        self.register_buffer("mean", torch.zeros(64))
        torch.nn.init.orthogonal_(self.inner.weight)

    def forward(self, x):
        x = self.inner(x).mul_(2).add_(1).clamp_(min=0)
        self.mean.lerp_(x.detach().mean(dim=0), 0.1)
        out = torch.zeros_like(x)
        out[:, ::2] = x[:, ::2]
        out += self.mean
        return self.outer(F.relu(out, inplace=True))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.cells, self.head = nn.LSTM(WIDTH, 20, batch_first=True), nn.Linear(20, CLASSES)

    def forward(self, x):
        return self.head(self.cells(self.table(x))[0][:, -1])


def softly(net, batch):
    """A loss so small that fp16's first gradients do not overflow."""
    return classify(net, batch) * 1e-3


def workload(**fields) -> Workload:
    defaults = {
        "name": "case",
        "model": mlp,
        "train_data": points,
        "eval_data": points,
        "loss": classify,
        "optimizer": adamw,
        "metric": classify,
        "target": Target(0.5, "min"),
        "reference": Reference(global_batch=8, learning_rate=0.01),
    }
    return Workload(**(defaults | fields))


def cluster(kind="mock", memory="1GiB", **fields) -> Cluster:
    return Cluster(**({"workers": 1, "kind": kind, "device_memory": memory} | fields))


def traced(case, micro_batch, accumulation=1, **fields):
    return trace_steps(case, cluster(**fields), FakeBatches(case), micro_batch, accumulation)


def program(case, accumulation=1, sizes=(2, 3), **fields) -> Program:
    """The line through traces at two sizes."""
    return Program.between(*(traced(case, size, accumulation, **fields) for size in sizes))


def real_peak(case, micro_batch, accumulation=1) -> int:
    """What the engine shows on a mock device with room."""
    request = MemoryRequest(BatchPlan.equal(micro_batch, accumulation, 1))
    return probe_memory(Rank(0, 1, Device("mock", 2**34)), case, request).peak_bytes
