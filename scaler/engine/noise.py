"""Gradient norms for the noise scale, from a step that is done anyway: no extra backward."""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput


class GradientNorms:
    """Collects |G_small|^2 and |G_big|^2 of every step (McCandlish et al. 2018, appendix A.1).

    On several ranks G_small is a rank's gradient before the all-reduce, averaged in square over the ranks by
    one all-reduce of one number that nobody waits for; on one rank it is the first pass's gradient.

    Raises:
        BadInput: one rank without accumulation has only one gradient, or the ranks' batches are unequal.
    """

    def __init__(self, engine: TorchEngine) -> None:
        plan = engine.plan
        if (plan.workers == 1 and plan.accumulation == 1) or not plan.is_equal:
            raise BadInput(
                f"the noise scale needs two equal parts of a step; {plan.arithmetic()} has none",
                hint="measure it on two workers or with accumulation",
            )
        self.small_batch = plan.global_batch / (plan.workers if plan.workers > 1 else plan.accumulation)
        self._engine = engine
        self._local = torch.zeros((), device=engine.rank.device.torch_device)
        self._small: list[torch.Tensor] = []
        self._big: list[torch.Tensor] = []
        self._reductions: list[Any] = []
        engine.observer = self
        if isinstance(engine.model, DistributedDataParallel):
            engine.model.register_comm_hook(engine.rank.group, self._hook)

    def after_pass(self, number: int) -> None:
        """On one rank, take the first pass's gradient; it carries the factor 1 / accumulation."""
        if self._engine.plan.workers == 1 and number == 0:
            self._local = self._squared_norm() * self._engine.plan.accumulation**2

    def after_backward(self) -> None:
        """Take the whole batch's gradient, and start to average the small ones."""
        group = self._engine.rank.group
        if group is not None:
            self._local /= self._engine.plan.workers
            self._reductions.append(dist.all_reduce(self._local, group=group, async_op=True))
        self._small.append(self._local)
        self._big.append(self._squared_norm())
        self._local = torch.zeros_like(self._local)

    def squared_norms(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Give (|G_small|^2, |G_big|^2) per step so far, once the last all-reduce is through."""
        for reduction in self._reductions:
            reduction.wait()
        return tuple(map(float, self._small)), tuple(map(float, self._big))

    def _squared_norm(self) -> torch.Tensor:
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return get_total_norm(gradients).float() ** 2

    def _hook(
        self,
        group: Any,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[torch.Tensor]:
        """Square the rank's own gradient, then average it over ranks as DDP would."""
        gradient = bucket.buffer()
        self._local += gradient.float().dot(gradient.float())
        reduction = dist.all_reduce(gradient.div_(group.size()), group=group, async_op=True)
        future: torch.futures.Future[torch.Tensor] = reduction.get_future().then(lambda f: f.value()[0])
        return future
