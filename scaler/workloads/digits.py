"""Workload `digits`: a small MLP on scikit-learn's 1,797 handwritten digits; a trial takes about a second.

The images (8 x 8, 16 grey levels) come with scikit-learn, so nothing is downloaded. The data set is small
enough for the full batch of 1,437 to be a candidate.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from scaler.workload import Reference, Target, Workload
from scaler.workloads.classification import accuracy, loss

TRAIN_EXAMPLES = 1_437
EVAL_EXAMPLES = 360
CLASSES = 10
_PIXELS = 64
_WHITE = 16.0  # the largest grey level
_SPLIT_SEED = 0


def model() -> nn.Module:
    """Build the MLP 64 -> 128 -> 10; it maps [n, 64] to logits [n, 10]."""
    return nn.Sequential(nn.Linear(_PIXELS, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def train_data() -> TensorDataset:
    """Give 1,437 examples: pixels from 0 to 1, float32 [n, 64], and labels, int64 [n]."""
    return _split()[0]


def eval_data() -> TensorDataset:
    """Give the 360 held-out examples, in the same form."""
    return _split()[1]


def optimizer(parameters: "torch.optim.optimizer.ParamsT", learning_rate: float) -> torch.optim.Optimizer:
    """Make SGD with momentum 0.9."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)


@functools.lru_cache(maxsize=1)
def _split() -> tuple[TensorDataset, TensorDataset]:
    # Importing scikit-learn for its file takes over a second in every process that trains.
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = torch.tensor(table[:, :_PIXELS] / _WHITE, dtype=torch.float32)
    labels = torch.tensor(table[:, _PIXELS], dtype=torch.int64)
    # Shuffled: the file is in order of writers, and its last 360 images come from few of them.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    train, held_out = order[:TRAIN_EXAMPLES], order[TRAIN_EXAMPLES:]
    return TensorDataset(pixels[train], labels[train]), TensorDataset(pixels[held_out], labels[held_out])


workload = Workload(
    name="digits",
    model=model,
    train_data=train_data,
    eval_data=eval_data,
    loss=loss,
    optimizer=optimizer,
    metric=accuracy,
    target=Target(0.95, "max", max_examples=150 * TRAIN_EXAMPLES, evaluate_every=TRAIN_EXAMPLES // 8),
    reference=Reference(global_batch=64, learning_rate=0.1),
)
