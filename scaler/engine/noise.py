"""Gradient norms for the noise scale, from a step that is done anyway: no extra backward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from scaler.engine.squares import GroupSquares
from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput

_PRECONDITIONED_EVERY = 2  # steps: it costs several passes over the gradients, and is only a diagnostic


@dataclass
class StepNorms:
    """|G_small|^2 and |G_big|^2 of every step that counts, as rows of one number a group."""

    small: list[list[float]] = field(default_factory=list)
    big: list[list[float]] = field(default_factory=list)
    preconditioned: list[tuple[float, float]] = field(default_factory=list)
    left_out_steps: int = 0
    """Steps whose gradients were not finite."""


class NormCollector:
    """Collects the squared norms of a step's gradient over few examples and over all of them.

    On several ranks the few are a rank's own examples: its gradient before the all-reduce, bucket by bucket.
    `shares` are the ranks' parts of the global batch. With G_k the mean gradient of rank k's examples, the
    bucket holds K w_k G_k, so that sum_k w_k^2 |G_k|^2 / sum_k w_k^2 is the mean of its squares over the
    ranks, divided by K sum_k w_k^2; its expectation is |G|^2 + tr(Sigma) sum_k w_k^2 / global_batch. On one
    rank the few are the first pass's, whose gradient carries the factor 1 / accumulation: two readings a step
    and no copy of the gradients; |G|^2 then has twice the variance that all passes would give.
    """

    def __init__(
        self,
        squares: GroupSquares,
        accumulation: int,
        shares: Sequence[float] = (1.0,),
        group: Any = None,
    ) -> None:
        self.squares = squares
        self.norms = StepNorms()
        concentration = sum(share**2 for share in shares)
        self.small_share = concentration if len(shares) > 1 else 1 / accumulation
        """The small batch over the global batch."""
        self._group = group
        self._factor = 1 / (len(shares) ** 2 * concentration) if len(shares) > 1 else accumulation**2
        self._small: list[torch.Tensor] = []  # of the step under way, in parts
        self._big: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []  # [2, groups + 1] each, this rank's own
        self._steps = 0

    def add_small(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Take (part of) the gradient over few examples."""
        self._small.append(self.squares.of(parameters, gradients, self._preconditioned))

    def add_big(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Take (part of) the gradient over all examples, before the optimizer's step."""
        self._big.append(self.squares.of(parameters, gradients, self._preconditioned))

    def held(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Give the parameters that have a gradient, and their gradients: frozen and unused ones have none."""
        pairs = [(p, p.grad) for p in self.squares.parameters if p.grad is not None]
        return [p for p, _ in pairs], [gradient for _, gradient in pairs]

    def close_step(self, loss_scale: float = 1.0) -> None:
        """Make a row of the step's parts; `loss_scale` is what its gradients are multiplied by."""
        if self._small and self._big:
            row = torch.stack([sum_of(self._small) * self._factor, sum_of(self._big)])
            self._rows.append(row / loss_scale**2)
        self.drop_step()
        self._steps += 1

    def drop_step(self) -> None:
        """Forget the parts of a step that does not count."""
        self._small, self._big = [], []
        self.squares.next_step()

    @property
    def pending_steps(self) -> int:
        """How many steps `collect` would take."""
        return len(self._rows)

    def collect(self) -> StepNorms:
        """Average the pending steps over the ranks, in one all-reduce of groups + 1 floats a step.

        Every rank must call it after the same step.
        """
        if not self._rows:
            return self.norms
        rows = torch.stack(self._rows)
        self._rows = []
        if self._group is not None:
            small = rows[:, 0].contiguous()
            dist.all_reduce(small, group=self._group)
            rows[:, 0] = small
        for small_row, big_row in rows.tolist():
            *small_squares, small_preconditioned = small_row
            *big_squares, big_preconditioned = big_row
            if not all(map(math.isfinite, [*small_squares, *big_squares])):
                self.norms.left_out_steps += 1
                continue
            self.norms.small.append(small_squares)
            self.norms.big.append(big_squares)
            if small_preconditioned > 0 and math.isfinite(small_preconditioned + big_preconditioned):
                self.norms.preconditioned.append((small_preconditioned, big_preconditioned))
        return self.norms

    @property
    def _preconditioned(self) -> bool:
        return self._steps % _PRECONDITIONED_EVERY == 1  # the first step has no v


def sum_of(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add up vectors of one shape."""
    return torch.stack(list(parts)).sum(dim=0)


class GradientNorms(NormCollector):
    """Collects |G_small|^2 and |G_big|^2 of every step of an engine (McCandlish et al. 2018, appendix A.1).

    A custom `weight` changes nothing: an example counts with what it adds to the step's gradient, and the
    global batch's total weight is taken to be constant.

    Raises:
        BadInput: one rank without accumulation has only one gradient, or ZeRO hides the gradients.
    """

    def __init__(self, engine: TorchEngine) -> None:
        plan = engine.plan
        if plan.zero_stage:
            raise BadInput(
                "the noise scale is not supported with ZeRO: no rank holds its own whole gradient",
                hint="measure it with zero_stage: 0; it does not depend on the stage",
            )
        if plan.workers == 1 and plan.accumulation == 1:
            raise BadInput(
                f"the noise scale needs two parts of a step; {plan.arithmetic()} has one",
                hint="measure it on two workers or with accumulation",
            )
        entries = sum(plan.micro_batches)
        shares = [entry / entries for entry in plan.micro_batches]
        squares = GroupSquares(engine.module, engine.optimizer)
        super().__init__(squares, plan.accumulation, shares, engine.rank.group)
        self.small_batch = plan.global_batch * self.small_share
        self._engine = engine
        engine.observer = self
        engine.watch_buckets(before=self.add_small, after=self.add_big)

    def after_pass(self, number: int) -> None:
        """On one rank, take the first pass's gradient."""
        if self._engine.rank.group is None and number == 0:
            self.add_small(*self.held())

    def after_backward(self) -> None:
        """Close the step: its parts make up both norms."""
        if self._engine.rank.group is None:
            self.add_big(*self.held())
        self.close_step(self._engine.loss_scale)
