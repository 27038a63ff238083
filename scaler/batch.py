"""BatchPlan: the only home of global_batch = accumulation x (sum of the workers' micro_batches)."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationError, model_serializer, model_validator

from scaler.errors import BadInput, NothingFeasible
from scaler.schema import Strict, parse

ZeroStage = Annotated[int, Field(ge=0, le=3)]

SMALL_DATASET_EXAMPLES = 2_000  # up to here the rule of thumb takes the full batch
_LADDER_START = 32


class BatchPlan(Strict):
    """How one optimizer step is spread over devices.

    `micro_batches` holds one entry per worker: the examples of one forward and backward pass there.
    Entries may differ (1,437 examples over two workers are 719 and 718). `accumulation` is the number
    of such passes per optimizer step.
    """

    micro_batches: tuple[PositiveInt, ...]
    accumulation: PositiveInt = 1
    zero_stage: ZeroStage = 0

    @property
    def workers(self) -> int:
        """Data-parallel ranks."""
        return len(self.micro_batches)

    @property
    def micro_batch(self) -> int:
        """Examples of the largest pass on any worker; every worker's where the entries are equal."""
        return max(self.micro_batches)

    @property
    def global_batch(self) -> int:
        """Examples per optimizer step, over all workers and passes."""
        return self.accumulation * sum(self.micro_batches)

    @property
    def is_equal(self) -> bool:
        """Whether every worker has the same micro-batch."""
        return len(set(self.micro_batches)) == 1

    @classmethod
    def equal(cls, micro_batch: int, accumulation: int, workers: int, zero_stage: int = 0) -> "BatchPlan":
        """Make a plan in which every worker has the same micro-batch.

        Raises:
            BadInput: a size is not positive.
        """
        sizes = {"micro_batch": micro_batch, "accumulation": accumulation, "workers": workers}
        bad = [f"{name} = {value}" for name, value in sizes.items() if value < 1]
        if bad:
            raise BadInput(f"batch plan: {', '.join(bad)}", hint="every size is a whole number from 1 on")
        data = {
            "micro_batches": (micro_batch,) * workers,
            "accumulation": accumulation,
            "zero_stage": zero_stage,
        }
        return parse(cls, data, "batch plan")

    @classmethod
    def split(
        cls,
        global_batch: int,
        workers: int,
        max_micro_batch: int | Sequence[int],
        zero_stage: int = 0,
        speeds: Sequence[float] = (),
    ) -> "BatchPlan":
        """Spread `global_batch` over `workers` with the least accumulation that fits.

        `max_micro_batch` is what fits on each worker: one number, or one per worker for unequal devices. The
        entries are then proportional to `speeds`, as far as that fits, so that passes end together; without
        them to what fits.

        Raises:
            BadInput: a size is not positive, or there are fewer examples than workers.
            NothingFeasible: no accumulation divides the batch into parts that fit.
        """
        limits = [max_micro_batch] * workers if isinstance(max_micro_batch, int) else list(max_micro_batch)
        if global_batch < 1 or workers < 1 or len(limits) != workers or min(limits) < 1:
            raise BadInput(
                f"cannot split: global_batch = {global_batch}, workers = {workers}, "
                f"max_micro_batch = {limits}",
                hint="every size is a whole number from 1 on, with one limit per worker",
            )
        if speeds and (len(speeds) != workers or min(speeds) <= 0):
            raise BadInput(
                f"cannot split over {workers} workers: speeds = {list(speeds)}",
                hint="give one positive speed per worker",
            )
        if global_batch < workers:
            raise BadInput(
                f"a global batch of {global_batch} leaves {workers - global_batch} of {workers} workers "
                "without an example",
                hint=f"use a global batch of at least {workers}, or fewer workers",
            )
        for accumulation in range(1, global_batch // workers + 1):
            if global_batch % accumulation == 0 and global_batch // accumulation <= sum(limits):
                entries = _apportion(global_batch // accumulation, limits, speeds or limits)
                if min(entries) > 0:
                    return cls(micro_batches=tuple(entries), accumulation=accumulation, zero_stage=zero_stage)
        raise NothingFeasible(
            _unsplittable(global_batch, limits), hint=_nearest_splittable(global_batch, limits)
        )

    def for_workers(self, workers: int, max_micro_batch: int | None = None) -> "BatchPlan":
        """Spread the same global batch over another worker count; no pass gets larger unless allowed.

        Raises:
            BadInput, NothingFeasible: as `split`.
        """
        return self.split(self.global_batch, workers, max_micro_batch or self.micro_batch, self.zero_stage)

    def check(self, global_batch: int) -> None:
        """Raise BadInput, with the arithmetic, unless this plan has `global_batch` examples per step."""
        if self.global_batch != global_batch:
            raise BadInput(
                f"global_batch = {global_batch}, but {self.arithmetic()}",
                hint=f"set global_batch to {self.global_batch}, or change the parts",
            )

    def shares(self) -> list[tuple[int, int]]:
        """Give each rank's (start, stop) within the examples of one pass over all workers."""
        stops = [sum(self.micro_batches[: rank + 1]) for rank in range(self.workers)]
        return [(stop - size, stop) for stop, size in zip(stops, self.micro_batches, strict=True)]

    def arithmetic(self) -> str:
        """Write the identity out, each number labelled, such as '64 (micro-batch) x ... = 512'."""
        if self.is_equal:
            parts = (
                f"{self.micro_batch} (micro-batch) x {self.accumulation} (accumulation) "
                f"x {self.workers} (workers)"
            )
        else:
            entries = " + ".join(str(entry) for entry in self.micro_batches)
            parts = f"{self.accumulation} (accumulation) x ({entries}) (micro-batches)"
        return f"{parts} = {self.global_batch}"

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """Accept the written form too (`micro_batch` and `workers`), and hold it to the identity."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        stated = {key: data.pop(key) for key in ("global_batch", "workers") if key in data}
        bad = [f"{key} = {value!r}" for key, value in stated.items() if type(value) is not int or value < 1]
        if bad:
            raise ValueError(f"{', '.join(bad)}: every size is a whole number from 1 on")
        if "micro_batch" in data:
            if "micro_batches" in data:
                raise ValueError(
                    "give micro_batch (equal workers) or micro_batches (one entry each), not both"
                )
            if "workers" not in stated:
                raise ValueError("micro_batch needs workers beside it")
            data["micro_batches"] = (data.pop("micro_batch"),) * stated["workers"]
        if stated and "micro_batches" in data:
            _hold(data, stated)
        return data

    @model_validator(mode="after")
    def _has_workers(self) -> "BatchPlan":
        if not self.micro_batches:
            raise ValueError("micro_batches: at least one worker is needed")
        return self

    @model_serializer
    def _write(self) -> dict[str, Any]:
        """Write the plan with the derived numbers beside it, so that a reader need not multiply."""
        micro = (
            {"micro_batch": self.micro_batch}
            if self.is_equal
            else {"micro_batches": list(self.micro_batches)}
        )
        return {
            "global_batch": self.global_batch,
            **micro,
            "accumulation": self.accumulation,
            "workers": self.workers,
            "zero_stage": self.zero_stage,
        }


def candidates(dataset_examples: int, reference: int, smallest: int = 1) -> list[int]:
    """List the global batches worth trying on a data set: powers of two, the reference, the full batch.

    Powers of two start at 32 or half the reference, whichever is less, and stop at the data set or at
    64 x the reference (but not below 1,024).
    The full batch is a candidate up to 2,000 examples. Nothing is smaller than `smallest` (one per worker).

    Raises:
        BadInput: the data set is smaller than the reference batch.
    """
    if dataset_examples < max(reference, smallest):
        raise BadInput(
            f"the training data has {dataset_examples} examples, fewer than one global batch "
            f"of {max(reference, smallest)}",
            hint="use a smaller reference global batch, or more data",
        )
    start = min(_LADDER_START, max(1, reference // 2))
    top = min(dataset_examples, max(64 * reference, 1024))
    ladder = {2**k for k in range((start - 1).bit_length(), top.bit_length()) if 2**k <= top}
    full = {dataset_examples} if dataset_examples <= SMALL_DATASET_EXAMPLES else set()
    return sorted(size for size in ladder | {reference} | full if size >= smallest)


def _hold(data: dict[str, Any], stated: dict[str, int]) -> None:
    try:
        plan = BatchPlan.model_validate(data)
    except ValidationError:
        return  # the fields' own faults are reported instead
    if stated.get("workers", plan.workers) != plan.workers:
        raise ValueError(f"workers = {stated['workers']}, but micro_batches has {plan.workers} entries")
    if stated.get("global_batch", plan.global_batch) != plan.global_batch:
        raise ValueError(f"global_batch = {stated['global_batch']}, but {plan.arithmetic()}")


def _apportion(total: int, limits: list[int], weights: Sequence[float]) -> list[int]:
    """Divide `total` in proportion to `weights`, no entry above its limit (`total` is at most their sum).

    What does not fit goes to the others; remainders to the first that are cut most.
    """
    if len({*limits}) == 1 == len({*weights}):
        least, more = divmod(total, len(limits))
        return [least + 1] * more + [least] * (len(limits) - more)
    entries = [0] * len(limits)
    open_ranks = list(range(len(limits)))
    left = total
    while open_ranks:
        whole = sum(weights[i] for i in open_ranks)
        full = [i for i in open_ranks if left * weights[i] >= limits[i] * whole]
        if not full:
            break
        for i in full:
            entries[i] = limits[i]
        left = total - sum(entries)
        open_ranks = [i for i in open_ranks if i not in full]
    exact = {i: left * weights[i] / whole for i in open_ranks}
    for i in open_ranks:
        entries[i] = min(int(exact[i]), limits[i])
    for i in sorted(open_ranks, key=lambda i: entries[i] - exact[i])[: total - sum(entries)]:
        entries[i] += 1
    while 0 in entries:  # a slow device still takes part
        entries[entries.index(max(entries))] -= 1
        entries[entries.index(0)] += 1
    return entries


def _unsplittable(global_batch: int, limits: list[int]) -> str:
    room = sum(limits)
    passes = -(-global_batch // room)
    return (
        f"a global batch of {global_batch} does not split over {len(limits)} workers: one pass holds at most "
        f"{' + '.join(map(str, limits))} = {room} examples, so it takes at least {passes} passes, and no "
        f"accumulation from {passes} to {global_batch // len(limits)} divides {global_batch}"
    )


def _nearest_splittable(global_batch: int, limits: list[int]) -> str:
    room = sum(limits)
    passes = -(-global_batch // room)
    part, workers = global_batch // passes, len(limits)
    below = part * passes if part >= workers else (passes - 1) * room
    above = max(part + 1, workers) * passes
    return f"batches near it that split are {below} and {above}"
