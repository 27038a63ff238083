"""Gradient norms for the noise scale, from a step that is done anyway: no extra backward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from scaler.engine.squares import GroupSquares
from scaler.engine.torch_engine import Bucket, TorchEngine
from scaler.errors import BadInput

_DETAILED_EVERY = 4
"""Steps, in training that is to lose no time: groups and preconditioning take more passes over gradients."""


@dataclass
class StepNorms:
    """Squared norms of the steps that count, (|G_small|^2, |G_big|^2) of each."""

    total: list[tuple[float, float]] = field(default_factory=list)
    groups: list[list[tuple[float, float]]] = field(default_factory=list)
    """Of each group, in every step that was looked at in detail; empty where there is one group."""
    preconditioned: list[tuple[float, float]] = field(default_factory=list)
    left_out_steps: int = 0
    """Steps whose gradients were not finite."""


@dataclass(frozen=True)
class _Part:
    """Norms of some gradients: of each parameter's, or of all together. What is made of them can wait."""

    norms: torch.Tensor
    parameters: Sequence[torch.Tensor] | None
    preconditioned: torch.Tensor | None


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
        detailed_every: int = _DETAILED_EVERY,
    ) -> None:
        self.squares = squares
        self.norms = StepNorms()
        concentration = sum(share**2 for share in shares)
        self.small_share = concentration if len(shares) > 1 else 1 / accumulation
        """The small batch over the global batch."""
        self._group = group
        self._factor = 1 / (len(shares) ** 2 * concentration) if len(shares) > 1 else accumulation**2
        self._small: list[_Part] = []  # of the step under way
        self._big: list[_Part] = []
        self._pending: list[tuple[list[_Part], list[_Part], float]] = []  # with the loss scale
        self._steps = 0
        self._detailed_every = detailed_every

    def look(self, bucket: Bucket) -> Callable[[], None]:
        """Take a bucket of DDP's before the all-reduce, and after it."""
        parameters, gradients = None, [bucket.buffer()]
        # A sparse gradient has a bucket of its own, which does not say whose it is.
        if (self._detailed or not self.squares.whole) and not bucket.buffer().is_sparse:
            parameters, gradients = bucket.parameters(), bucket.gradients()
        self._small.append(self._part(parameters, gradients))
        return lambda: self._big.append(self._part(parameters, gradients))

    def take_small(self) -> None:
        """On one rank, take the first pass's gradients."""
        self._small.append(self._part(*self._held()))

    def take_big(self) -> None:
        """On one rank, take all passes' gradients, before the optimizer's step."""
        self._big.append(self._part(*self._held()))

    def close_step(self, loss_scale: float = 1.0) -> None:
        """End a step that counts; `loss_scale` is what its gradients are multiplied by."""
        if self._small and self._big:
            self._pending.append((self._small, self._big, loss_scale))
        self.drop_step()
        self._steps += 1

    def drop_step(self) -> None:
        """Forget the parts of a step that does not count."""
        self._small, self._big = [], []
        self.squares.next_step()

    @property
    def pending_steps(self) -> int:
        """How many steps `collect` would take."""
        return len(self._pending)

    def collect(self) -> StepNorms:
        """Average the pending steps over the ranks, in one all-reduce of at most 2 x groups floats a step.

        Every rank must call it after the same step.
        """
        if not self._pending:
            return self.norms
        rows = torch.stack([self._row(*step) for step in self._pending])
        detailed = [all(part.parameters is not None for part in small) for small, _, _ in self._pending]
        self._pending = []
        if self._group is not None:
            small = rows[..., 0].contiguous()
            dist.all_reduce(small, group=self._group)
            rows[..., 0] = small
        for row, has_groups in zip(rows.tolist(), detailed, strict=True):
            self._keep([(small, big) for small, big in row], has_groups)
        return self.norms

    def _keep(self, row: list[tuple[float, float]], has_groups: bool) -> None:
        total, preconditioned, *groups = row
        if not all(map(math.isfinite, total)):
            self.norms.left_out_steps += 1
            return
        self.norms.total.append(total)
        if has_groups and groups:
            self.norms.groups.append(groups)
        if preconditioned[0] > 0 and all(map(math.isfinite, preconditioned)):
            self.norms.preconditioned.append(preconditioned)

    @property
    def _detailed(self) -> bool:
        return self._steps % self._detailed_every == 1 % self._detailed_every  # the first step has no v

    def _held(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Give the parameters that have a gradient, not frozen nor unused, and their gradients."""
        pairs = [(p, p.grad) for p in self.squares.parameters if p.grad is not None]
        return [p for p, _ in pairs], [gradient for _, gradient in pairs]

    def _part(self, parameters: Sequence[torch.Tensor] | None, gradients: Sequence[torch.Tensor]) -> _Part:
        preconditioned = None
        if self._detailed and parameters is not None:
            preconditioned = self.squares.preconditioned(parameters, gradients)
        return _Part(self.squares.norms(gradients), parameters, preconditioned)

    def _row(self, small: list[_Part], big: list[_Part], loss_scale: float) -> torch.Tensor:
        """Give this rank's squares, small and big, [2 + groups, 2]: total, preconditioned, each group."""
        small_squares, big_squares = (
            torch.stack([self._squares(part) for part in parts]).sum(dim=0) for parts in (small, big)
        )
        return torch.stack([small_squares * self._factor, big_squares], dim=1) / loss_scale**2

    def _squares(self, part: _Part) -> torch.Tensor:
        names = self.squares.names
        if part.parameters is None:
            groups = part.norms.new_zeros(len(names))
            total = part.norms.square().sum()
        else:
            groups = self.squares.by_group(part.parameters, part.norms)
            total = groups.sum()
        preconditioned = torch.zeros_like(total) if part.preconditioned is None else part.preconditioned
        own = torch.stack([total, preconditioned])
        return torch.cat([own, groups]) if len(names) > 1 else own


class GradientNorms(NormCollector):
    """Collects |G_small|^2 and |G_big|^2 of every step of an engine (McCandlish et al. 2018, appendix A.1).

    A custom `weight` changes nothing: an example counts with what it adds to the step's gradient, and the
    global batch's total weight is taken to be constant.

    Raises:
        BadInput: one rank without accumulation has only one gradient, or ZeRO hides the gradients.
    """

    def __init__(self, engine: TorchEngine, detailed_every: int = _DETAILED_EVERY) -> None:
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
        super().__init__(squares, plan.accumulation, shares, engine.rank.group, detailed_every)
        self.small_batch = plan.global_batch * self.small_share
        self._engine = engine
        engine.observer = self
        engine.watch_buckets(self.look)

    def after_pass(self, number: int) -> None:
        """On one rank, take the first pass's gradient."""
        if self._engine.rank.group is None and number == 0:
            self.take_small()

    def after_backward(self) -> None:
        """Close the step: its parts make up both norms."""
        if self._engine.rank.group is None:
            self.take_big()
        self.close_step(self._engine.loss_scale)
