"""Factors on the passes' mean losses, with which DDP's average is the gradient of the whole global batch."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from scaler.batch import BatchPlan
from scaler.errors import BadInput


def example_scale(plan: BatchPlan, rank: int) -> float:
    """Factor on each pass of a rank, where the loss is a mean over examples."""
    return plan.micro_batches[rank] * plan.workers / plan.global_batch


def weighted_scales(
    weights: Sequence[float], plan: BatchPlan, group: Any, device: torch.device, source: str
) -> list[float]:
    """Factor on each pass of this rank: weight x workers / (total weight over ranks and accumulation).

    `weights` are the denominators of the passes' means, as `source` gave them. Every rank of `group` must
    call it (None: alone).

    Raises:
        BadInput: the total weight is not positive.
    """
    total = torch.tensor(sum(weights), dtype=torch.float64)
    if group is not None:
        total = total.to(device)
        dist.all_reduce(total, group=group)
    if not total > 0:
        raise BadInput(
            f"{source} of a whole global batch is {total.item()}",
            hint="weight(batch) returns the denominator of the loss's mean, such as its number of tokens",
        )
    return [weight * plan.workers / total.item() for weight in weights]
