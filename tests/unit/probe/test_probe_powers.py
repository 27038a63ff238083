"""Passes around a power of two, taken in turn; time is what a fake clock says."""

import itertools

import numpy as np
import pytest
import torch
from fake_time import FakeTime
from torch import nn

from scaler.errors import BadInput, WorkloadError
from scaler.fit.powers import fit_powers
from scaler.probe.powers import PowersRequest, probe_powers
from scaler.records import RECORD, PowersRecord
from scaler.runtime.protocol import Task

SIZES = (15, 16, 17, 24, 32)
REQUEST = PowersRequest(16)


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr("scaler.probe.powers.time", fake)
    return fake


@pytest.fixture
def passes(tiny, rank, time):
    """A function that probes with passes of known times; gives the record and the sizes of every pass."""

    def probe(pass_s, request=REQUEST, **fields):
        taken = []

        class Timed(nn.Linear):
            def forward(self, x):
                time.sleep(pass_s(len(x), len(taken)))
                taken.append(len(x))
                return super().forward(x)

        return probe_powers(rank, tiny(model=lambda: Timed(4, 1), **fields), request), taken

    return probe


def line_s(size, number):
    return 1e-3 + 1e-5 * size


def test_the_record_answers_the_question_in_this_process(tiny, ask):
    """By the real clock, and within its own time limit."""
    record = ask(tiny(), probe_powers, PowersRequest(16, time_limit_s=0.0, seed=3))
    assert type(record) is PowersRecord
    assert record.micro_batches == SIZES
    assert record.task == Task(probe_powers, PowersRequest(16, seed=3)).key
    assert (record.seed, record.environment.world_size, record.environment.device) == (3, 1, "cpu")
    assert [len(times) for times in record.step_times_s] == [20] * 5
    assert np.min(record.step_times_s) > 0
    assert RECORD.validate_json(record.model_dump_json()) == record
    assert fit_powers([record]).power == 16


def test_every_size_has_the_times_of_its_own_passes(passes):
    record, _ = passes(line_s)
    assert record.micro_batches == SIZES
    for size, times_s in zip(SIZES, record.step_times_s, strict=True):
        assert times_s == pytest.approx([line_s(size, 0)] * len(times_s))


def test_what_a_size_costs_is_found_again(passes):
    record, _ = passes(lambda size, number: line_s(size, number) * (1.2 if size % 8 else 1.0))
    fit = fit_powers([record])
    assert (fit.neighbours.value, fit.between.value) == pytest.approx((1.2, 1.0))
    assert fit.grain == 8


def test_sizes_take_turns_and_each_is_first_as_often_as_others(passes):
    _, taken = passes(line_s)
    rounds = [tuple(taken[i : i + 5]) for i in range(0, len(taken), 5)]
    assert {tuple(sorted(turn)) for turn in rounds} == {SIZES}
    firsts = [turn[0] for turn in rounds]
    assert max(map(firsts.count, SIZES)) - min(map(firsts.count, SIZES)) <= 1


def test_drift_and_a_slow_start_hit_all_sizes_alike(passes):
    def drifting_s(size, number):
        return line_s(size, number) * (1 + number / 200) * (50 if number < 15 else 1)

    record, _ = passes(drifting_s)
    assert np.max(record.step_times_s) < 10 * np.median(record.step_times_s)  # the first rounds are left out
    fit = fit_powers([record])
    assert (fit.neighbours.value, fit.between.value) == pytest.approx((1, 1), abs=0.01)


@pytest.mark.parametrize(
    ("step_s", "limit_s", "rounds"),
    [(1e-6, 4.0, (200, 200)), (10.0, 4.0, (20, 20)), (1e-2, 4.0, (70, 85)), (1e-2, 2.0, (30, 45))],
)
def test_rounds_are_many_of_quick_passes_and_few_of_slow_ones(passes, step_s, limit_s, rounds):
    record, _ = passes(lambda size, number: step_s, PowersRequest(16, time_limit_s=limit_s))
    counts = {len(times) for times in record.step_times_s}
    assert len(counts) == 1
    assert rounds[0] <= counts.pop() <= rounds[1]


def test_fetching_is_no_part_of_a_pass(passes, time):
    class Slow(list):
        def __getitem__(self, index):
            time.sleep(0.5)
            return super().__getitem__(index)

    examples = Slow([(torch.ones(4), torch.ones(1))] * 64)
    record, _ = passes(line_s, train_data=lambda: examples)
    assert np.max(record.step_times_s) < 0.01


def test_the_optimizers_step_is_a_part_and_trains_nothing(passes, time):
    """Weights that ran away would give times of another model."""
    seen = []

    class Timed(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(1.0)
            super().step(closure)
            (weight, _), *_ = (group["params"] for group in self.param_groups)
            seen.append(weight.detach().clone())

    record, _ = passes(line_s, optimizer=lambda parameters, rate: Timed(parameters, lr=rate))
    assert np.min(record.step_times_s) > 1.0
    assert all(torch.equal(left, right) for left, right in itertools.pairwise(seen))


@pytest.mark.parametrize("power", [16, 32])
def test_the_largest_pass_may_take_all_the_data(passes, power):
    record, taken = passes(line_s, PowersRequest(power))
    assert record.micro_batches[-1] == max(taken) == 2 * power


def test_more_examples_than_there_are_is_bad_input(rank, tiny):
    with pytest.raises(BadInput, match="128 needs as many training examples, and there are 64"):
        probe_powers(rank, tiny(), PowersRequest(64))


def test_an_error_of_the_workload_is_told_as_such(rank, tiny):
    def loss(net, batch):
        raise ZeroDivisionError("in my loss")

    with pytest.raises(WorkloadError, match="in my loss"):
        probe_powers(rank, tiny(loss=loss), REQUEST)


def test_the_question_is_the_power_and_the_seed():
    def key(*request, **fields):
        return Task(probe_powers, PowersRequest(*request, **fields)).key

    assert key(16) == key(16, time_limit_s=1.0)
    assert len({key(16), key(32), key(16, seed=1)}) == 3
