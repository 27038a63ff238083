"""Gradient norms for the noise scale, from a step that is done anyway: no extra backward."""

import torch
import torch.distributed as dist
from torch.nn.utils import get_total_norm

from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput


class GradientNorms:
    """Collects |G_small|^2 and |G_big|^2 of every step (McCandlish et al. 2018, appendix A.1).

    On several ranks G_small is a rank's gradient before the all-reduce, squared bucket by bucket as DDP
    sends it, and averaged over the ranks when the norms are read. On one rank it is the first pass's.

    Raises:
        BadInput: one rank without accumulation has only one gradient, the ranks' batches are unequal, or
            ZeRO hides the gradients.
    """

    def __init__(self, engine: TorchEngine) -> None:
        plan = engine.plan
        if plan.zero_stage:
            raise BadInput(
                "the noise scale is not supported with ZeRO: no rank holds its own whole gradient",
                hint="measure it with zero_stage: 0; it does not depend on the stage",
            )
        if (plan.workers == 1 and plan.accumulation == 1) or not plan.is_equal:
            raise BadInput(
                f"the noise scale needs two equal parts of a step; {plan.arithmetic()} has none",
                hint="measure it on two workers or with accumulation",
            )
        self.small_batch = plan.global_batch / (plan.workers if plan.workers > 1 else plan.accumulation)
        self._engine = engine
        self._small: list[list[torch.Tensor]] = []  # parts of every step, summed when they are read
        self._big: list[list[torch.Tensor]] = []
        self._small_parts: list[torch.Tensor] = []
        self._big_parts: list[torch.Tensor] = []
        engine.observer = self
        engine.watch_buckets(
            before=lambda bucket: self._small_parts.append(_square(bucket.buffer())),
            after=lambda mean: self._big_parts.append(_square(mean)),
        )

    def after_pass(self, number: int) -> None:
        """On one rank, take the first pass's gradient; it carries the factor 1 / accumulation."""
        if self._engine.rank.group is None and number == 0:
            self._small_parts.append(self._squared_norm() * self._engine.plan.accumulation**2)

    def after_backward(self) -> None:
        """Close the step: its parts make up both norms."""
        if self._engine.rank.group is None:
            self._big_parts.append(self._squared_norm())
        self._small.append(self._small_parts)
        self._big.append(self._big_parts)
        self._small_parts, self._big_parts = [], []

    def squared_norms(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Give (|G_small|^2, |G_big|^2) of every step so far; one all-reduce averages the small ones."""
        small, big = (
            torch.stack([torch.stack(p).sum() for p in steps]) for steps in (self._small, self._big)
        )
        if self._engine.rank.group is not None:
            dist.all_reduce(small, group=self._engine.rank.group)
            small /= self._engine.plan.workers
        return tuple(small.tolist()), tuple(big.tolist())

    def _squared_norm(self) -> torch.Tensor:
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return get_total_norm(gradients).float() ** 2


def _square(gradient: torch.Tensor) -> torch.Tensor:
    flat = gradient.float()
    return flat.dot(flat)
