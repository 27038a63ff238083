"""Fake batches of any size beside the real ones."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate
from trace_cases import points, program, real_peak, workload

from scaler.batch import BatchPlan
from scaler.engine.data import rank_steps
from scaler.trace.batches import FakeBatches

quiet = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

Pair = namedtuple("Pair", "left right")


class Items(Dataset):
    def __init__(self, item, examples=40):
        self.item, self.examples = item, examples

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        return self.item(index)


def batches(data, **fields):
    return FakeBatches(workload(train_data=lambda: data, **fields))


def described(batch):
    """Shapes, dtypes and strides in the place of tensors."""
    return tree_map(lambda t: (t.shape, t.dtype, t.stride()) if isinstance(t, torch.Tensor) else t, batch)


def real(data, size, **fields):
    """The first batch that the engine's loader makes."""
    case = workload(train_data=lambda: data, **fields)
    (batch,) = next(rank_steps(case, data, BatchPlan.equal(size, 1, 1), 0, seed=0))
    return batch


DATA = {
    "tensors": TensorDataset(torch.zeros(40, 3, 4), torch.zeros(40, dtype=torch.int64)),
    "subset": Subset(points(), range(20, 60)),
    "pairs": [(torch.zeros(3), 1)] * 40,
    "dictionaries": Items(lambda i: {"x": torch.zeros(3, 4), "y": (torch.tensor(i), [np.zeros(5)])}),
    "numpy": Items(lambda i: (np.zeros((3, 4), np.float32), np.int64(i), 2.0, i)),
    "named tuples": [Pair(torch.zeros(2), 1.5)] * 40,
    "strings": [{"x": torch.zeros(2), "name": "abc"}] * 40,
    "an array": np.zeros((40, 3), np.float32),
    "16 bits": [torch.zeros(3, dtype=torch.bfloat16)] * 40,
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("size", [1, 2, 3, 11])
def test_a_fake_batch_looks_like_a_real_one(name, size):
    made = batches(DATA[name])
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = made.of(size)
        assert all(isinstance(t, FakeTensor) for t in tree_leaves(fake) if isinstance(t, torch.Tensor))
    assert described(fake) == described(real(DATA[name], size))


def test_tensor_data_sets_are_sliced_as_the_engine_does():
    x, y = batches(DATA["tensors"]).of(7)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((7, 3, 4), torch.float32, (7,), torch.int64)


@quiet
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 300))
def test_dimensions_that_grow_with_the_batch_grow_on(shape, step, size):
    """As nodes and edges of graphs do: n examples have step x n of them."""

    def collate(examples):
        n = len(examples)
        return {
            "nodes": torch.zeros(step * n, *shape),
            "edges": torch.zeros(2, 3 * n + 1),
            "between": torch.zeros(n, step * n),
            "fixed": torch.zeros(*shape),
        }

    made = batches([torch.zeros(1)] * 10, collate=collate).of(size)
    assert described(made) == described(collate([0] * size))


def test_channels_last_stays():
    def collate(examples):
        x, y = default_collate(examples)
        return x.to(memory_format=torch.channels_last), y

    x, _ = batches([(torch.zeros(3, 8, 8), 1)] * 10, collate=collate).of(10)
    assert x.shape == (10, 3, 8, 8)
    assert x.is_contiguous(memory_format=torch.channels_last)
    plain, _ = batches([(torch.zeros(3, 8, 8), 1)] * 10).of(10)
    assert plain.is_contiguous()


def test_worst_case_makes_the_batches_where_there_is_one():
    made = batches(
        [torch.zeros(k) for k in (3, 9, 4)], worst_case=lambda n: {"x": torch.zeros(n, 99), "n": 7}
    )
    assert not made.uneven
    assert described(made.of(5)) == described({"x": torch.zeros(5, 99), "n": 7})
    assert made.example_bytes == 99 * 4


def test_of_uneven_examples_the_largest_is_repeated_and_they_are_flagged():
    made = batches([torch.zeros(k) for k in (3, 9, 4)])
    assert made.uneven
    assert made.of(5).shape == (5, 9)
    assert made.example_bytes == 9 * 4
    assert not batches([torch.zeros(9)] * 3).uneven
    assert not batches(DATA["numpy"]).uneven


def test_examples_are_sampled_over_the_whole_data_set():
    made = batches(Items(lambda i: torch.zeros(5 if i > 9_000 else 3), examples=10_000))
    assert made.uneven
    assert made.of(4).shape == (4, 5)


def test_bytes_of_an_example_are_those_of_its_tensors():
    assert batches(DATA["tensors"]).example_bytes == 3 * 4 * 4 + 8
    assert batches(DATA["strings"]).example_bytes == 2 * 4
    assert batches(DATA["numpy"]).example_bytes == 3 * 4 * 4 + 8 + 8 + 8


def test_a_batch_of_as_many_tensors_as_examples_is_made_anew():
    made = batches([torch.zeros(4, 2)] * 10, collate=list)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert [t.shape for t in made.of(6)] == [(4, 2)] * 6


@pytest.mark.parametrize(
    "collate",
    [
        lambda examples: torch.zeros(len(examples) ** 2),
        lambda examples: torch.stack(examples)[: len(examples) // 2 * 2],
    ],
)
def test_dimensions_that_grow_otherwise_are_made_anew(collate):
    made = batches([torch.zeros(3)] * 10, collate=collate).of(12)
    assert described(made) == described(collate([torch.zeros(3)] * 12))


@pytest.mark.parametrize("leaf", [len, lambda examples: np.zeros((len(examples), 3))])
def test_numbers_and_arrays_that_follow_the_batch_do_so(leaf):
    made = batches(
        [torch.zeros(3)] * 10, collate=lambda examples: {"x": torch.stack(examples), "more": leaf(examples)}
    ).of(9)
    assert np.array_equal(made["more"], leaf([0] * 9))


def test_collate_may_read_values_at_every_size():
    def collate(examples):
        return [x * int(x.sum().item()) for x in examples]

    made = batches([torch.ones(3)] * 10, collate=collate)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert [t.shape for t in made.of(6)] == [(3,)] * 6


def test_padded_batches_take_what_the_engine_takes():
    def collate(examples):
        return nn.utils.rnn.pad_sequence(examples, batch_first=True)

    case = workload(
        model=lambda: nn.Linear(4, 8),
        train_data=lambda: [torch.ones(9, 4)] * 40,
        collate=collate,
        loss=lambda net, batch: net(batch).square().mean(),
    )
    found = program(case)
    for size in (1, 7, 31):
        assert found.count(size).allocated_bytes == real_peak(case, size)
