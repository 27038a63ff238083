"""The examples of each step: permutations that continue across epochs, cut as the plan says."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from scaler.batch import BatchPlan
from scaler.errors import BadInput
from scaler.workload import Workload, user_code


@functools.lru_cache(maxsize=4)
def load_data(workload: Workload, function: Literal["train_data", "eval_data"]) -> Any:
    """Load a data set of the workload, once per process.

    Raises:
        WorkloadError: the function raises.
        BadInput: what it returns has no length or no items.
    """
    with user_code(workload, function):
        dataset = getattr(workload, function)()
        usable = has_items(dataset)
    if not usable:
        raise BadInput(
            f"workload {workload.name!r}: {function}() returned {type(dataset).__name__}, without items",
            hint="return a map-style dataset, with __len__ and __getitem__, that is not empty",
        )
    return dataset


def has_items(dataset: Any) -> bool:
    """Whether a data set is map-style and not empty: only then can examples be drawn from it."""
    map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return map_style and not isinstance(dataset, IterableDataset) and len(dataset) > 0


def load_train_data(workload: Workload, global_batch: int) -> Any:
    """Load the training data set for steps of `global_batch` examples.

    Raises:
        WorkloadError, BadInput: as `load_data`, or it has fewer examples than one global batch.
    """
    dataset = load_data(workload, "train_data")
    if len(dataset) < global_batch:
        raise BadInput(
            f"workload {workload.name!r}: a global batch of {global_batch} needs as many training examples, "
            f"and there are {len(dataset)}",
            hint="use a smaller global batch, or more data",
        )
    return dataset


def drawn(dataset: Any, examples: int, seed: int) -> Any:
    """Draw so many examples of a data set at random, in an order of chance."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:examples]
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*dataset[order])
    return Subset(dataset, order.tolist())


def rank_indices(dataset_examples: int, plan: BatchPlan, rank: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield the example indices of each pass on `rank`, int64 [micro-batch].

    The stream is one random permutation after the other; all ranks together cover it exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    start, stop = plan.shares()[rank]
    examples = sum(plan.micro_batches)
    ahead = torch.empty(0, dtype=torch.int64)
    while True:
        while len(ahead) < examples:
            ahead = torch.cat([ahead, torch.randperm(dataset_examples, generator=generator)])
        yield ahead[start:stop]
        ahead = ahead[examples:]


def rank_steps(
    workload: Workload, dataset: Any, plan: BatchPlan, rank: int, seed: int
) -> Iterator[list[Any]]:
    """Yield each optimizer step's batches on `rank`: a list of `accumulation` host batches."""
    passes = fetch(dataset, rank_indices(len(dataset), plan, rank, seed), workload.collate)
    while True:
        with user_code(workload, "train_data"):
            step = [next(passes) for _ in range(plan.accumulation)]
        yield step


def evaluation_batches(workload: Workload, dataset: Any, batch: int) -> Iterator[Any]:
    """Yield the data set once, in order, in batches of at most `batch` examples, on the host."""
    chunks = torch.arange(len(dataset)).split(batch)
    batches = fetch(dataset, iter(chunks), workload.collate)
    for _ in chunks:
        with user_code(workload, "eval_data"):
            found = next(batches)
        yield found


def fetch(
    dataset: Any, indices: Iterator[torch.Tensor], collate: Callable[[list[Any]], Any] | None, **loader: Any
) -> Iterator[Any]:
    """Yield the batch of each index tensor; `loader` are further options of DataLoader."""
    if isinstance(dataset, TensorDataset) and collate is None and not loader:
        return (dataset[chunk] for chunk in indices)
    return iter(DataLoader(dataset, batch_sampler=_Lists(indices), collate_fn=collate, **loader))


class _Lists:
    """Index tensors as the sampler of lists that DataLoader wants."""

    def __init__(self, indices: Iterator[torch.Tensor]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[list[int]]:
        return (chunk.tolist() for chunk in self._indices)
