"""What the built-in classifiers share: their loss and their metric."""

import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs, and the class of each, int64 [n]."""


def loss(net: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch, in nats."""
    inputs, labels = batch
    return F.cross_entropy(net(inputs), labels)


def accuracy(net: nn.Module, batch: Batch) -> Tensor:
    """Share of the batch that is classified correctly, from 0 to 1."""
    inputs, labels = batch
    correct: Tensor = net(inputs).argmax(dim=1) == labels
    return correct.float().mean()
