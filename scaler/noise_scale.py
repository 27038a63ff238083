"""NoiseScale: the gradient noise scale of a training loop of your own."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from scaler.engine.noise import NormCollector
from scaler.engine.squares import GroupSquares
from scaler.engine.torch_engine import Bucket, MeanGradient, average_bucket
from scaler.errors import BadInput
from scaler.fit.noise import NoiseFit, fit_parts, unbiased_parts
from scaler.stats import Floats

_TOGETHER = 16  # steps whose norms the ranks exchange at once
_WINDOW = 1000  # steps that an estimate looks back: the noise scale grows as training goes on


class NoiseScale:
    """Watches the gradients of a training loop, and estimates their noise scale.

        noise = NoiseScale(model, optimizer, micro_batch=32, accumulation=4)
        ...  # the loop as it was: backward(), step(), zero_grad()
        print(noise.estimate())

    It compares the gradient over few examples with that over all of a step: under DDP a rank's own with the
    average over ranks; in one process the first pass's with all passes'. Gradients are read as the backward
    pass ends, before anything clips or unscales them: no extra backward, two readings a step. A step whose
    gradients are not finite, or with another number of passes than stated, is left out. All batches are
    taken to be of one size: let the loader drop a smaller last one.

    Args:
        model: the network, wrapped in DistributedDataParallel where it trains on several ranks.
        optimizer: the one that trains it; its groups, or of a single one the model's top-level modules, get
            scales of their own.
        micro_batch: examples of one forward and backward pass on one rank.
        accumulation: passes per step, all but the last under `model.no_sync()` with DDP.
        grad_scaler: the torch.amp.GradScaler of fp16.

    Raises:
        BadInput: there is only one gradient a step, the gradients are sharded (ZeRO, FSDP), DDP already has a
            communication hook, or nothing is trained.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batch: int,
        accumulation: int = 1,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # torch.compile wraps it
        ranks = model.process_group.size() if isinstance(model, DistributedDataParallel) else 1
        _check(model, optimizer, {"micro_batch": micro_batch, "accumulation": accumulation}, ranks)
        self._ddp = model if isinstance(model, DistributedDataParallel) and ranks > 1 else None
        module = model.module if isinstance(model, DistributedDataParallel) else model
        self._collector = NormCollector(
            GroupSquares(module, optimizer),
            accumulation,
            [1 / ranks] * ranks,
            self._ddp.process_group if self._ddp is not None else None,
        )
        self._global_batch = micro_batch * accumulation * ranks
        self._accumulation = accumulation
        self._grad_scaler = grad_scaler
        self._loss_scale = 1.0
        self._passes = 0
        self._in_pass = False
        self._miscounted = False
        self._miscounted_steps = 0
        self._overflows = 0
        self._open = True
        if self._ddp is not None:
            _register(self._ddp, self._reduced)
        self._hooks = [optimizer.register_step_post_hook(lambda *_: self._after_step())]
        for parameter in self._collector.squares.parameters:
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._came))  # type: ignore[no-untyped-call]

    def estimate(self) -> NoiseFit:
        """Estimate the noise scale over the last 1,000 steps.

        Ranks exchange their norms every 16 steps; the last few may be missing, and any rank may ask alone.
        """
        if self._ddp is None:
            self._collect()
        norms = self._collector.norms
        batches = self._global_batch * self._collector.small_share, self._global_batch

        def parts(pairs: Sequence[tuple[float, float]]) -> Floats:
            return unbiased_parts([small for small, _ in pairs], [big for _, big in pairs], *batches)

        groups = zip(self._collector.squares.names, *norms.groups, strict=True) if norms.groups else ()
        return fit_parts(
            parts(norms.total),
            {name: parts(pairs) for name, *pairs in groups},
            parts(norms.preconditioned),
            left_out_steps=norms.left_out_steps + self._overflows,
            miscounted_steps=self._miscounted_steps,
        )

    def close(self) -> None:
        """Stop watching. What was seen can still be asked for."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._open = [], False  # DDP keeps its hook for good: from now on it only averages

    def _came(self, _: torch.Tensor) -> None:
        """The first gradient of a pass is there; the pass ends when the whole backward does."""
        if self._in_pass:
            return
        self._in_pass = True
        torch.autograd.Variable._execution_engine.queue_callback(self._after_pass)
        if self._passes == self._accumulation:
            self._without_step()
        self._passes += 1

    def _without_step(self) -> None:
        """Another pass, and no step came since the last one: fp16 overflowed, or there are more passes."""
        if self._grad_scaler is not None and self._grad_scaler.get_scale() < self._loss_scale:
            self._overflows += 1
            self._collector.drop_step()
            self._passes = 0
        else:
            self._miscounted = True

    def _after_pass(self) -> None:
        self._in_pass = False
        if self._passes == self._accumulation and self._grad_scaler is not None:
            self._loss_scale = self._grad_scaler.get_scale()
        if self._ddp is None:
            if self._passes == 1:
                self._collector.take_small()
            if self._passes == self._accumulation:
                self._collector.take_big()

    def _reduced(self, _: object, bucket: Bucket) -> MeanGradient:
        assert self._ddp is not None
        if self._open and self._passes < self._accumulation:
            if not self._miscounted_steps:
                warnings.warn(
                    f"NoiseScale: gradients are reduced in pass {self._passes} of {self._accumulation}; "
                    "such steps are left out: use model.no_sync() in all passes but the last",
                    stacklevel=2,
                )
            self._miscounted = True
        group = self._ddp.process_group
        return average_bucket(bucket, group, group.size(), [self._collector.look] if self._open else [])

    def _after_step(self) -> None:
        if self._passes != self._accumulation or self._miscounted:
            self._miscounted_steps += 1
            self._collector.drop_step()
        else:
            self._collector.close_step(self._loss_scale)
        self._passes, self._miscounted = 0, False
        if self._collector.pending_steps == _TOGETHER:
            self._collect()

    def _collect(self) -> None:
        norms = self._collector.collect()
        del norms.total[:-_WINDOW], norms.groups[:-_WINDOW], norms.preconditioned[:-_WINDOW]


def _check(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, sizes: dict[str, int], ranks: int
) -> None:
    bad = [f"{name} = {size!r}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    if bad:
        raise BadInput(f"NoiseScale: {', '.join(bad)}", hint="every size is a whole number from 1 on")
    kinds = [base.__name__ for base in type(model).__mro__]
    kinds += [type(parameter).__name__ for parameter in model.parameters()]
    sharded = {"DeepSpeedEngine", "FullyShardedDataParallel", "FSDPModule", "DTensor"} & set(kinds)
    if sharded:
        raise BadInput(
            f"NoiseScale: sharded gradients ({', '.join(sorted(sharded))}) are not supported: no rank holds "
            "its own whole gradient",
            hint="measure it with DistributedDataParallel; the noise scale does not depend on the sharding",
        )
    if ranks == 1 and sizes["accumulation"] == 1:
        raise BadInput(
            "NoiseScale: one process without accumulation has one gradient a step, which shows no noise",
            hint="do a step in two passes of half the batch (accumulation=2): its gradient is the same",
        )
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise BadInput(
            "NoiseScale: no parameter of the optimizer requires a gradient",
            hint="unfreeze what is to be trained, or pass the optimizer that trains it",
        )


def _register(model: DistributedDataParallel, hook: Any) -> None:
    try:
        model.register_comm_hook(None, hook)
    except RuntimeError as error:
        raise BadInput(
            f"NoiseScale: this DistributedDataParallel does not take its communication hook: {error}",
            hint="make NoiseScale before any other register_comm_hook, or leave the other out; DDP takes one",
        ) from error
