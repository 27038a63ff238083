from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from scaler.batch import BatchPlan
from scaler.engine.data import evaluation_batches, load_data, load_train_data, rank_indices, rank_steps
from scaler.errors import BadInput, WorkloadError

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

plans = st.builds(
    lambda entries, accumulation: BatchPlan(micro_batches=tuple(entries), accumulation=accumulation),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 4),
)


class Numbers(Dataset):
    """Each example is its own index."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        return index


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


class SizedStream(Stream):
    def __len__(self):
        return 100


def indices(examples, plan, rank, passes, seed=0):
    return list(islice(rank_indices(examples, plan, rank, seed), passes))


def steps(workload, plan, rank=0, count=1, seed=0):
    return list(islice(rank_steps(workload, workload.train_data(), plan, rank, seed), count))


# Which examples a step takes


@quiet
@given(plans, st.integers(1, 60), st.integers(0, 5), st.integers(1, 6))
def test_all_ranks_together_cover_one_permutation_after_the_other(plan, examples, seed, count):
    passes = [
        torch.cat(parts)
        for parts in zip(
            *(indices(examples, plan, rank, count * plan.accumulation, seed) for rank in range(plan.workers)),
            strict=True,
        )
    ]
    stream = torch.cat(passes)
    assert len(stream) == count * plan.global_batch
    for epoch in stream.split(examples):
        # No example twice in an epoch; all of them once it is complete.
        assert len(set(epoch.tolist())) == len(epoch)
    assert set(stream.tolist()) <= set(range(examples))


@quiet
@given(plans, st.integers(0, 5))
def test_every_spread_of_a_global_batch_takes_the_same_examples(plan, seed):
    examples = 2 * plan.global_batch + 3
    whole = BatchPlan.equal(plan.global_batch, 1, 1)
    ranks = [indices(examples, plan, rank, 3 * plan.accumulation, seed) for rank in range(plan.workers)]
    for step, expected in enumerate(indices(examples, whole, 0, 3, seed)):
        own = slice(step * plan.accumulation, (step + 1) * plan.accumulation)
        assert torch.equal(
            expected.sort().values, torch.cat([torch.cat(rank[own]) for rank in ranks]).sort().values
        )


@quiet
@given(plans)
def test_a_rank_takes_its_own_entry(plan):
    for rank, entry in enumerate(plan.micro_batches):
        assert [len(chunk) for chunk in indices(50, plan, rank, 4)] == [entry] * 4


def test_the_seed_decides_the_order_and_epochs_differ():
    plan = BatchPlan.equal(20, 1, 1)
    first, second = indices(20, plan, 0, 2)
    assert not torch.equal(first, second)
    assert torch.equal(first, indices(20, plan, 0, 1)[0])
    assert not torch.equal(first, indices(20, plan, 0, 1, seed=1)[0])


@pytest.mark.parametrize("entries", [(8,), (4, 4), (5, 3), (719, 718)])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_step_has_exactly_the_global_batch(tiny, entries, accumulation):
    plan = BatchPlan(micro_batches=entries, accumulation=accumulation)
    examples = plan.global_batch + 7  # the epoch ends within the second step
    workload = tiny(train_data=lambda: TensorDataset(torch.arange(examples)))
    ranks = [steps(workload, plan, rank, count=3) for rank in range(plan.workers)]
    for parts in zip(*ranks, strict=True):
        assert all(len(part) == accumulation for part in parts)
        assert sum(len(batch[0]) for part in parts for batch in part) == plan.global_batch


# What the batches are


def test_a_tensor_dataset_and_a_plain_one_give_the_same_batches(tiny):
    plan = BatchPlan(micro_batches=(5, 3), accumulation=2)
    x, y = torch.randn(30, 4), torch.arange(30)
    sliced = tiny(train_data=lambda: TensorDataset(x, y))
    listed = tiny(train_data=lambda: list(zip(x, y, strict=True)))
    for rank in range(2):
        for one, other in zip(steps(sliced, plan, rank, 4), steps(listed, plan, rank, 4), strict=True):
            for (x1, y1), (x2, y2) in zip(one, other, strict=True):
                assert torch.equal(x1, x2)
                assert torch.equal(y1, y2)


def test_collate_makes_the_batches(tiny):
    workload = tiny(train_data=lambda: Numbers(30), collate=lambda items: {"sorted": sorted(items)})
    (batches,) = steps(workload, BatchPlan.equal(4, 2, 1))
    expected = indices(30, BatchPlan.equal(4, 2, 1), 0, 2)
    assert [batch["sorted"] for batch in batches] == [sorted(chunk.tolist()) for chunk in expected]


@pytest.mark.parametrize("data", [lambda: TensorDataset(torch.arange(10)), lambda: Numbers(10)])
def test_evaluation_takes_everything_once_in_order(tiny, data):
    workload = tiny(eval_data=data)
    batches = list(evaluation_batches(workload, workload.eval_data(), 4))
    batches = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat(batches).tolist() == list(range(10))


# What is refused


def test_data_smaller_than_one_global_batch_is_refused(tiny):
    workload = tiny(train_data=lambda: Numbers(7))
    assert len(load_train_data(workload, 7)) == 7
    with pytest.raises(
        BadInput, match="a global batch of 8 needs as many training examples, and there are 7"
    ):
        load_train_data(workload, 8)


@pytest.mark.parametrize(
    "data", [Stream, SizedStream, list, lambda: None, lambda: iter([1, 2]), lambda: {1, 2}]
)
@pytest.mark.parametrize("function", ["train_data", "eval_data"])
def test_data_without_items_is_refused(tiny, function, data):
    with pytest.raises(BadInput, match=rf"{function}\(\) returned \w+, without items") as caught:
        load_data(tiny(**{function: data}), function)
    assert "map-style" in caught.value.hint


def test_data_that_raises_names_the_function_and_the_line(tiny):
    def train_data():
        raise OSError("no such bucket")

    with pytest.raises(WorkloadError, match=r"train_data\(\) raised OSError: no such bucket") as caught:
        load_train_data(tiny(train_data=train_data), 1)
    assert "test_engine_data.py" in caught.value.message


def test_an_example_that_raises_names_the_function(tiny):
    class Broken(Numbers):
        def __getitem__(self, index):
            raise KeyError("row")

    with pytest.raises(WorkloadError, match=r"train_data\(\) raised KeyError"):
        steps(tiny(train_data=lambda: Broken(9)), BatchPlan.equal(3, 1, 1))


def test_data_is_loaded_once_per_process(tiny):
    calls = []
    workload = tiny(train_data=lambda: calls.append(1) or Numbers(9))
    assert load_data(workload, "train_data") is load_data(workload, "train_data")
    assert len(calls) == 1
