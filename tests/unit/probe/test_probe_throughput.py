"""The step times of one launch; time is what a fake clock says."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from fake_time import FakeTime
from torch import nn

from scaler.batch import BatchPlan
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.runtime.protocol import Task

PLAN = BatchPlan.equal(8, 1, 1)
PASSES = BatchPlan.equal(4, 2, 1)
QUICK = ThroughputRequest(PLAN, width=100.0)


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    for module in ("scaler.engine.clock", "scaler.probe.throughput"):
        monkeypatch.setattr(f"{module}.time", fake)
    return fake


@pytest.fixture
def launch(tiny, ask, time):
    """A function that times steps which take the given seconds, one after the other."""

    def start(step_times_s, request=QUICK):
        remaining = iter(step_times_s)

        class Timed(torch.optim.SGD):
            def step(self, closure=None):
                time.sleep(next(remaining))
                return super().step(closure)

        workload = tiny(optimizer=lambda parameters, rate: Timed(parameters, lr=rate))
        return ask(workload, probe_throughput, request)

    return start


def steady(step_s=0.001, spread=0.01, seed=0):
    """Steps without an end, around one time."""
    generator = np.random.default_rng(seed)
    while True:
        yield step_s * float(np.exp(spread * generator.normal()))


def slow_start(count, factor=5.0):
    steps = steady()
    return itertools.chain((factor * next(steps) for _ in range(count)), steps)


# How many steps


def test_every_step_time_is_kept(launch):
    expected = [*itertools.islice(slow_start(10), 500)]
    record = launch(expected)
    assert record.step_times_s == pytest.approx(expected[: len(record.step_times_s)], abs=1e-8)


def test_steps_of_one_length_are_enough_at_twenty(launch):
    assert 20 <= len(launch(itertools.repeat(0.001)).step_times_s) <= 30


@pytest.mark.parametrize("width", [0.02, 0.1])
def test_steps_are_added_until_the_median_is_known(launch, width):
    request = ThroughputRequest(PLAN, width=width, time_limit_s=1e9)
    found = [len(launch(steady(spread=spread), request).step_times_s) for spread in (0.01, 0.2, 0.6)]
    assert found == sorted(found)
    assert found[0] < 50 < found[2] <= 510


def test_a_narrower_width_takes_more_steps(launch):
    wide, narrow = (
        len(launch(steady(spread=0.1), ThroughputRequest(PLAN, width=width)).step_times_s)
        for width in (0.2, 0.02)
    )
    assert wide < narrow


@pytest.mark.parametrize(("step_s", "steps"), [(100.0, 6), (1.0, 6), (0.1, 60)])
def test_slow_steps_end_at_the_time_limit(launch, step_s, steps):
    record = launch(steady(step_s, spread=0.5), ThroughputRequest(PLAN, width=0.001, time_limit_s=5.0))
    assert steps / 2 <= len(record.step_times_s) <= 1.5 * steps
    assert len(record.step_times_s) >= 6


def test_a_quick_launch_does_not_wait_for_the_time_limit(launch, time):
    began_s = time.now_s
    launch(itertools.repeat(0.001), ThroughputRequest(PLAN, time_limit_s=1e6))
    assert time.now_s - began_s < 1


# What is made of them


@pytest.mark.parametrize("count", [5, 10])
def test_a_slow_start_is_warm_up(launch, count):
    record = launch(slow_start(count), ThroughputRequest(PLAN, width=0.005))
    assert count <= record.warmup_steps <= len(record.step_times_s) / 2
    assert np.median(record.step_times_s[record.warmup_steps :]) == pytest.approx(0.001, rel=0.02)
    assert record.rank_compute_s == pytest.approx([0.001], rel=0.02)


def test_far_slower_steps_are_outliers_and_are_kept(launch):
    times = [*itertools.islice(steady(), 500)]
    times[17] *= 30
    record = launch(times)
    assert record.step_times_s[17] == pytest.approx(times[17])
    assert record.outliers == (17,)
    assert record.warmup_steps <= 17


def test_phases_add_up_to_the_step(tiny, ask, time):
    """Every phase takes a time of its own; the examples of a step are fetched one by one."""

    class Slow(list):
        def __getitem__(self, index):
            time.sleep(1.0)
            return super().__getitem__(index)

    class Timed(nn.Linear):
        def forward(self, x):
            time.sleep(100.0)
            found = super().forward(x)
            if found.requires_grad:
                found.register_hook(lambda gradient: time.sleep(10_000.0))
            return found

    class Optimizer(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(1_000_000.0)
            return super().step(closure)

    workload = tiny(
        train_data=lambda: Slow([(torch.ones(4), torch.ones(1))] * 64),
        model=lambda: Timed(4, 1),
        optimizer=lambda parameters, rate: Optimizer(parameters, lr=rate),
    )
    record = ask(workload, probe_throughput, dataclasses.replace(QUICK, plan=PASSES))
    steps = len(record.step_times_s)
    assert {phase: set(times) for phase, times in record.phase_times_s.items()} == {
        "data": {8.0},
        "forward": {200.0},
        "backward": {20_000.0},
        "optimizer": {1_000_000.0},
    }
    assert {len(times) for times in record.phase_times_s.values()} == {steps}
    assert set(record.step_times_s) == {1_020_208.0}


def test_one_rank_runs_on_one_machine_and_synchronises_with_nobody(launch):
    record = launch(steady())
    assert record.nodes == 1
    assert "sync" not in record.phase_times_s
    settled = record.step_times_s[record.warmup_steps :]
    assert record.rank_compute_s == pytest.approx([float(np.median(settled))])


def test_by_the_real_clock_phases_are_parts_of_their_steps(tiny, ask):
    record = ask(tiny(), probe_throughput, ThroughputRequest(PASSES))
    parts = np.sum(list(record.phase_times_s.values()), axis=0)
    assert (parts > 0).all() and (parts <= record.step_times_s).all()
    assert set(record.phase_times_s) == {"data", "forward", "backward", "optimizer"}


def test_the_question_is_the_plan_the_width_and_the_launch():
    def key(**changes):
        return Task(probe_throughput, ThroughputRequest(**({"plan": PLAN} | changes))).key

    assert key(time_limit_s=1.0) == key()
    assert len({key(), key(width=0.1), key(seed=1), key(plan=PASSES)}) == 4
