"""apply(): a batch plan in a training loop of your own, in one process or on many ranks."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from scaler.batch import BatchPlan
from scaler.decide.config import Answer
from scaler.decide.source import PlanSource, find_plan
from scaler.engine.data import fetch, has_items, rank_indices
from scaler.engine.scales import example_scale, weighted_scales
from scaler.errors import BadInput
from scaler.workload import warmup_factor


@dataclass(frozen=True)
class Applied:
    """A batch plan as this rank trains it; `apply` makes it.

        applied = scaler.apply("RUN")
        loader = applied.loader(dataset)
        optimizer = torch.optim.SGD(net.parameters(), lr=applied.learning_rate)
        schedule = applied.schedule(optimizer)
        for passes in applied.steps(loader, net, examples=20 * len(dataset)):
            for (x, y), scale in passes:
                (loss(net(x), y) * scale).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    What else a loop does stays as it is: devices, precision, clipping, evaluation.
    """

    plan: BatchPlan
    rank: int
    answer: Answer | None = None
    """What the plan comes from, where it is not a plan alone."""

    @property
    def learning_rate(self) -> float:
        """The answer's learning rate.

        Raises:
            BadInput: a plan alone was applied.
        """
        if self.answer is None:
            raise BadInput(
                "a batch plan says nothing of the learning rate",
                hint='use your own, or apply a whole answer: scaler.apply("RUN")',
            )
        return self.answer.learning_rate

    def loader(self, dataset: Any, seed: int = 0, collate_fn: Any = None, **options: Any) -> Iterator[Any]:
        """Yield this rank's batches without end: one random permutation of `dataset` after the other.

        The ranks together take every example once before any comes again. `options` are those of DataLoader
        (`num_workers`, `pin_memory`); what decides on the batches is the plan's. Every rank gives one `seed`;
        training that goes on from a checkpoint gives another.

        Raises:
            BadInput: no examples can be drawn from the data set, or they are fewer than a global batch.
        """
        if not has_items(dataset):
            raise BadInput(
                f"{type(dataset).__name__} is no data set with items",
                hint="give a map-style dataset, with __len__ and __getitem__, that is not empty",
            )
        if len(dataset) < self.plan.global_batch:
            raise BadInput(
                f"the data set has {len(dataset)} examples, too few for one step: {self.plan.arithmetic()}",
                hint="give more data, or apply a plan with a smaller batch",
            )
        if taken := {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"} & options.keys():
            raise BadInput(f"loader: {', '.join(sorted(taken))}", hint="leave it out: the plan decides on it")
        return fetch(dataset, rank_indices(len(dataset), self.plan, self.rank, seed), collate_fn, **options)

    def steps(
        self,
        loader: Iterable[Any],
        model: torch.nn.Module,
        weight: Callable[[Any], float | torch.Tensor] | None = None,
        examples: int | None = None,
    ) -> Iterator[Iterator[tuple[Any, float]]]:
        """Yield for each optimizer step its passes: batches, each with the factor on its mean loss.

        Every spread of the global batch then gives the gradient of the whole. DistributedDataParallel
        averages in the last pass only. `weight(batch)` is the denominator of the loss's mean; by default the
        number of examples. Ends after the step that completes `examples`, over all ranks; else never.

        Raises:
            BadInput: the model does not average gradients over several ranks, or the loader ends.
        """
        if self.plan.workers > 1 and not hasattr(model, "no_sync"):
            raise BadInput(
                f"{type(model).__name__} does not average its gradients over the {self.plan.workers} ranks",
                hint="wrap it in torch.nn.parallel.DistributedDataParallel, or Ray Train's prepare_model",
            )
        batches = iter(loader)
        count = None if examples is None else -(-examples // self.plan.global_batch)
        for _ in itertools.count() if count is None else range(count):
            step = list(itertools.islice(batches, self.plan.accumulation))
            if len(step) < self.plan.accumulation:
                raise BadInput(
                    f"the loader ended in a step of {self.plan.accumulation} passes",
                    hint="use applied.loader(dataset), which goes on across epochs",
                )
            yield self._passes(step, model, self._scales(step, model, weight))

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Make the answer's schedule, a linear warm-up and then constant; step it after the optimizer."""
        warmup_examples = self.answer.warmup_examples if self.answer is not None else 0
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda steps: warmup_factor((steps + 1) * self.plan.global_batch, warmup_examples)
        )

    def _scales(
        self, step: list[Any], model: torch.nn.Module, weight: Callable[[Any], Any] | None
    ) -> list[float]:
        if weight is None:
            return [example_scale(self.plan, self.rank)] * len(step)
        group = dist.group.WORLD if self.plan.workers > 1 else None
        device = next(model.parameters()).device
        return weighted_scales([float(weight(b)) for b in step], self.plan, group, device, "weight()")

    def _passes(
        self, step: list[Any], model: torch.nn.Module, scales: list[float]
    ) -> Iterator[tuple[Any, float]]:
        for number, found in enumerate(zip(step, scales, strict=True), 1):
            no_sync = getattr(model, "no_sync", None) if number < self.plan.accumulation else None
            with no_sync() if no_sync is not None else contextlib.nullcontext():
                yield found


def apply(source: PlanSource, workers: int | None = None) -> Applied:
    """Apply a batch plan to the training loop that calls this: on every rank, once their group is there.

    `source` is a run folder or a configuration file, or what was read from one. Of several answers the one
    to use is taken, or that of `workers`.

    Raises:
        BadInput: there is no such answer, it is for another number of ranks than train here, or asks for
            ZeRO, which this does not give.
    """
    plan, answer, _ = find_plan(source, workers)
    rank, ranks = _place()
    if plan.workers != ranks:
        raise BadInput(
            f"the plan is for {plan.workers} workers, and {ranks} train here: {plan.arithmetic()}",
            hint=f"start {plan.workers} ranks (`torchrun --nproc-per-node {plan.workers}`, or Ray Train's "
            f"ScalingConfig), or take the answer for {ranks}: scaler.apply(RUN, workers={ranks})",
        )
    if plan.zero_stage:
        raise BadInput(
            f"the plan has zero_stage: {plan.zero_stage}, which a loop with DistributedDataParallel is not",
            hint="`scaler export RUN --to deepspeed` writes it for DeepSpeed",
        )
    return Applied(plan, rank, answer)


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        raise BadInput(
            f"this is one of {launched} ranks (WORLD_SIZE), which do not know each other yet",
            hint="call torch.distributed.init_process_group before scaler.apply",
        )
    return 0, 1
