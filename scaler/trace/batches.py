"""Fake batches of any size, from the shapes of two small real ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.data import TensorDataset, default_collate

from scaler.engine.data import load_data
from scaler.workload import Workload, user_code

_SAMPLED_EXAMPLES = 64


class FakeBatches:
    """Makes batches of any micro-batch: each dimension that grew between two real batches grows on."""

    def __init__(self, workload: Workload) -> None:
        self._sample, self.uneven = _sampler(workload)
        self._leaves, self._spec = tree_flatten(self._sample(2))
        (three, same), (six, too) = (tree_flatten(self._sample(size)) for size in (3, 6))
        self._grown = _growth(self._leaves, three) if same == too == self._spec else None
        further = _growth(three, six) if self._grown is not None else None
        if further != [tuple(3 * grown for grown in growths) for growths in self._grown or []]:
            self._grown = None  # not on a line, such as n x n

    @property
    def example_bytes(self) -> int:
        """Bytes of one example of a batch on the host."""
        tensors = [leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor)]
        return sum(t.nbytes for t in tensors) // 2

    def of(self, micro_batch: int) -> Any:
        """Make a batch of `micro_batch` examples, its values undefined; under a fake mode it is fake."""
        if self._grown is None:
            with unset_fake_temporarily():  # the user's code may read values
                leaves, spec = tree_flatten(self._sample(micro_batch))
            return _shaped(
                leaves, [leaf.shape if isinstance(leaf, torch.Tensor) else () for leaf in leaves], spec
            )
        shapes = [
            tuple(size + grown * (micro_batch - 2) for size, grown in zip(leaf.shape, growths, strict=True))
            if isinstance(leaf, torch.Tensor)
            else ()
            for leaf, growths in zip(self._leaves, self._grown, strict=True)
        ]
        return _shaped(self._leaves, shapes, self._spec)


def _shaped(leaves: list[Any], shapes: list[tuple[int, ...]], spec: TreeSpec) -> Any:
    return tree_unflatten([_like(leaf, shape) for leaf, shape in zip(leaves, shapes, strict=True)], spec)


def _like(leaf: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    channels_last = (
        leaf.dim() == 4 and not leaf.is_contiguous() and leaf.is_contiguous(memory_format=torch.channels_last)
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=leaf.dtype, memory_format=memory_format)


def _growth(two: list[Any], three: list[Any]) -> list[tuple[int, ...]] | None:
    """By how much each dimension of each leaf grows with one example more; None where leaves differ."""
    growths: list[tuple[int, ...]] = []
    for small, large in zip(two, three, strict=True):
        if not isinstance(small, torch.Tensor):
            if not _alike(small, large):
                return None
            growths.append(())
            continue
        if not isinstance(large, torch.Tensor) or small.dim() != large.dim():
            return None
        growths.append(tuple(b - a for a, b in zip(small.shape, large.shape, strict=True)))
    return growths


def _alike(small: Any, large: Any) -> bool:
    """Whether a leaf that is no tensor says the same in both batches; arrays are compared by shape."""
    if hasattr(small, "shape"):
        return bool(small.shape == getattr(large, "shape", None))
    return not isinstance(small, (int, float, str)) or bool(small == large)


def _sampler(workload: Workload) -> tuple[Callable[[int], Any], bool]:
    """Give a function that makes a real batch, and whether examples differ in size.

    Without `worst_case` it repeats the largest of the examples that were looked at.
    """
    if workload.worst_case is not None:
        worst_case = workload.worst_case

        def longest(micro_batch: int) -> Any:
            with user_code(workload, "worst_case"):
                return worst_case(micro_batch)

        return longest, False
    dataset = load_data(workload, "train_data")
    if isinstance(dataset, TensorDataset) and workload.collate is None:
        return lambda micro_batch: dataset[torch.zeros(micro_batch, dtype=torch.int64)], False
    stride = max(1, len(dataset) // _SAMPLED_EXAMPLES)
    with user_code(workload, "train_data"):
        examples = [dataset[i] for i in range(0, len(dataset), stride)[:_SAMPLED_EXAMPLES]]
    sizes = [_bytes(example) for example in examples]
    largest = examples[sizes.index(max(sizes))]
    collate = workload.collate or default_collate

    def repeated(micro_batch: int) -> Any:
        with user_code(workload, "collate"):
            return collate([largest] * micro_batch)

    return repeated, len(set(sizes)) > 1


def _bytes(example: Any) -> int:
    return sum(getattr(leaf, "nbytes", 1) for leaf in tree_flatten(example)[0])
