"""Which plans are timed, on a cluster whose step times are known."""

import itertools

import numpy as np
import pytest
from devices import Devices
from fake_time import FakeTime

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.fit.memory import fit_memory
from scaler.fit.step_design import half_widths
from scaler.fit.step_time import fit_step_time, shape_of
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.throughput import measure_throughput
from scaler.records import ThroughputRecord, environment, now
from scaler.runs import RunFolder
from scaler.runtime.protocol import Outcome

BATCHES = (32, 128, 512, 2048)
CAPACITY = 1000 + 100 * 600  # 600 examples in one pass


def plain_s(plan: BatchPlan) -> float:
    return plan.accumulation * (0.002 + 2e-5 * plan.micro_batch) + 0.001 * float(np.log2(plan.workers))


class TimedRuntime:
    """Answers with known step times, whose medians differ between launches by `wobble`."""

    def __init__(self, true_s=plain_s, wobble=0.01, time=None, costs_s=0.0):
        self.workers = 64
        self.asked = []
        self.together = []
        self._true_s, self._wobble, self._time, self._costs_s = true_s, wobble, time, costs_s

    def run(self, tasks):
        self.together.append(0)
        for task in tasks:
            self.together[-1] += 1
            self.asked.append((task.request.plan, task.request.seed))
            if self._time is not None:
                self._time.sleep(self._costs_s)
            seen = [task.request.seed, task.request.plan.global_batch, task.request.plan.workers]
            factor = np.exp(self._wobble * np.random.default_rng(seen).normal())
            yield Outcome(
                task,
                ThroughputRecord(
                    task=task.key,
                    seed=task.request.seed,
                    taken_at=now(),
                    environment=environment("mock", task.workers),
                    plan=task.request.plan,
                    step_times_s=(float(factor * self._true_s(task.request.plan)),) * 5,
                    warmup_steps=0,
                ),
            )


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr("scaler.measure.evidence.time", fake)
    fake.monotonic = fake.perf_counter
    return fake


@pytest.fixture
def study(tmp_path):
    """A function that measures with a runtime; gives the launches in the order asked."""

    def measured(runtime, budget_s=None, capacity=CAPACITY, batches=BATCHES, folder="run", **launch):
        counts = (1, 2, 3, 4)
        cluster = Cluster(
            name="mock",
            kind="mock",
            workers=(counts[0], counts[-1]),
            device_memory_bytes=capacity,
            margin=0.0,
        )
        stage = launch.get("zero_stage", 0)
        probes = [BatchPlan.equal(m, 1, w, stage) for w in {1, *counts} for m in (1, 100, 400, 700)]
        fits = fit_memory([Devices(cluster).measure(plan) for plan in probes], capacity)
        (tmp_path / folder).mkdir(exist_ok=True)
        run = RunFolder(tmp_path / folder)
        config = LaunchConfig(workload="digits", cluster=cluster, **launch)
        measure_throughput(Evidence(runtime, run, budget_s), config, fits, counts, batches)
        return runtime.asked

    return measured


def switches(asked):
    """How often the number of workers changes between launches."""
    return sum(one.workers != other.workers for (one, _), (other, _) in itertools.pairwise(asked))


def test_the_ends_of_the_micro_batches_on_the_fewest_and_most_workers_are_timed_first(study):
    asked = study(TimedRuntime())
    assert asked[:8] == [
        (BatchPlan.equal(micro_batch, accumulation, workers), launched)
        for micro_batch, accumulation, workers in ((32, 1, 1), (512, 1, 1), (8, 1, 4), (512, 1, 4))
        for launched in (0, 1)
    ]


def test_launches_are_asked_one_at_a_time_and_each_once(study):
    runtime = TimedRuntime(wobble=0.1)
    asked = study(runtime)
    assert set(runtime.together) == {1}
    assert len(asked) == len(set(asked))
    for plan in {plan for plan, _ in asked}:
        seeds = [seed for other, seed in asked if other == plan]
        assert seeds == list(range(len(seeds)))


def test_only_plans_that_may_be_chosen_are_timed(study):
    asked = study(TimedRuntime(wobble=0.1))
    assert {plan.global_batch for plan, _ in asked} <= set(BATCHES)
    assert {plan.workers for plan, _ in asked} <= {1, 2, 3, 4}
    assert max(plan.micro_batch for plan, _ in asked) <= 600


@pytest.mark.parametrize("wobble", [0.01, 0.1])
def test_launches_are_added_until_every_step_time_is_known_or_there_are_many(study, tmp_path, wobble):
    asked = study(TimedRuntime(wobble=wobble))
    fit = fit_step_time(RunFolder(tmp_path / "run").records())
    plans = [BatchPlan.split(batch, workers, 600) for workers in (1, 2, 3, 4) for batch in BATCHES]
    widest = half_widths(fit, [shape_of(plan) for plan in plans]).max()
    assert 8 <= len(asked) <= 24
    assert widest <= 0.06 or len(asked) == 24


def test_launches_that_agree_are_fewer_than_launches_that_do_not(study):
    calm, wild = (study(TimedRuntime(wobble=w), folder=str(w)) for w in (0.005, 0.2))
    assert 8 <= len(calm) < len(wild) == 24


def test_a_plan_that_was_pinned_is_the_only_one_timed(study):
    plan = BatchPlan.equal(16, 2, 2)
    asked = study(TimedRuntime(), plan=plan)
    assert {timed for timed, _ in asked} == {plan}
    assert 2 <= len(asked) <= 24


def test_a_sharded_engine_changes_its_workers_less_often(study):
    """Every change is a worker group of its own, which takes as long as many steps."""
    plain = TimedRuntime(wobble=0.05)
    study(plain)
    sharded = TimedRuntime(wobble=0.05)
    study(sharded, zero_stage=2, folder="sharded")
    assert {plan.zero_stage for plan, _ in sharded.asked} == {2}
    assert len(sharded.asked) > 8 and len(plain.asked) > 8
    assert switches(sharded.asked) < switches(plain.asked)


def test_where_nothing_fits_nothing_is_timed(study):
    assert study(TimedRuntime(), capacity=1050) == []


def test_a_share_of_the_budget_is_left_to_the_trials(study, time):
    """The first launches are taken anyway; they are spread over all that is asked."""
    for costs_s, launches in ((1.0, 24), (3.0, 11), (6.0, 8)):
        runtime = TimedRuntime(wobble=0.2, time=time, costs_s=costs_s)
        assert len(study(runtime, budget_s=100.0, folder=str(costs_s))) == launches


def test_without_budget_nothing_is_timed(study, time):
    assert study(TimedRuntime(time=time, costs_s=1.0), budget_s=0.0) == []
    assert len(study(TimedRuntime(time=time, costs_s=1.0), budget_s=3.5)) == 4


def test_what_was_answered_is_not_asked_again(study):
    assert len(study(TimedRuntime(wobble=0.1))) > 8
    assert study(TimedRuntime(wobble=0.1)) == []
