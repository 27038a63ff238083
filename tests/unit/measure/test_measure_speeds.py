"""How unequal devices are timed before passes are divided between them."""

import pytest
from asking import Asked
from devices import Devices, SimulatedRuntime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.plans import split_batch
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.memory import measure_memory
from scaler.measure.stages import ask_sizes, with_speeds
from scaler.probe.throughput import probe_throughput
from scaler.records import ThroughputRecord
from scaler.runs import RunFolder

quiet = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=25,
)

BATCHES = [32, 128, 512]


def unequal(*memories, **fields):
    groups = [{"device": f"type {i}", "workers": 1, "device_memory": m} for i, m in enumerate(memories)]
    data = {"kind": "mock", "workers": len(memories), "margin": 0.0, "devices": groups}
    return Cluster.model_validate(data | fields)


class Study:
    """A launch whose ranks compute so many examples a second."""

    def __init__(self, folder, cluster, rates, rank_times=True, **launch):
        devices = Devices(cluster, fixed_bytes=2000)
        runtime = SimulatedRuntime(devices, rates, rank_times=rank_times)
        self.runtime, self.run = Asked(runtime, devices.predict), RunFolder(folder)
        self.launch = LaunchConfig(workload="tiny", cluster=cluster, **launch)
        evidence = Evidence(self.runtime, self.run, None)
        self.fits = measure_memory(evidence, self.launch, ask_sizes(evidence), [cluster.max_workers], BATCHES)

    def measure(self, budget_s=None):
        return with_speeds(Evidence(self.runtime, self.run, budget_s), self.launch, self.fits, BATCHES)

    @property
    def timed(self):
        tasks = [task for task in self.runtime.tasks if task.probe is probe_throughput]
        return [(task.request.plan, task.request.seed) for task in tasks]


@pytest.fixture
def study(tmp_path_factory):
    return lambda *args, **fields: Study(tmp_path_factory.mktemp("run"), *args, **fields)


def speeds(launch):
    return [group.speed for group in launch.cluster.devices]


def test_equal_devices_are_not_timed_for_their_speed(study):
    equal = Cluster.model_validate({"kind": "mock", "workers": 2, "device_memory": 100_000, "margin": 0.0})
    here = study(equal, (1.0, 1.0))
    assert here.measure() is here.launch
    assert here.timed == []


def test_a_pinned_plan_is_not_divided_anew(study):
    here = study(unequal(100_000, 100_000), (1.0, 3.0), plan=BatchPlan(micro_batches=(100, 20)))
    assert here.measure() is here.launch
    assert here.timed == []


@quiet
@given(st.lists(st.floats(0.5, 20), min_size=2, max_size=4))
def test_unequal_devices_get_the_speeds_that_were_measured(study, rates):
    here = study(unequal(*(100_000 for _ in rates)), rates)
    found = here.measure()
    assert speeds(found) == pytest.approx([rate / max(rates) for rate in rates])
    assert found.model_copy(update={"cluster": here.launch.cluster}) == here.launch


def test_the_largest_batch_is_timed_as_stated_and_then_as_measured(study):
    here = study(unequal(100_000, 100_000), (100.0, 300.0))
    found = here.measure()
    assert here.timed == [
        (BatchPlan(micro_batches=(256, 256)), 0),
        (BatchPlan(micro_batches=(128, 384)), 1),
    ]
    assert split_batch(512, 2, here.fits, found.cluster, 0) == here.timed[1][0]


def test_passes_end_together_afterwards(study):
    rates = (70.0, 100.0, 330.0)
    here = study(unequal(*(100_000,) * 3), rates)
    here.measure()
    first, second = (r.rank_compute_s for r in here.run.records() if isinstance(r, ThroughputRecord))
    assert max(first) > 4 * min(first)
    assert second == pytest.approx((sum(second) / 3,) * 3, rel=0.03)


def test_a_stated_speed_divides_the_first_batch(study):
    cluster = unequal(100_000, 100_000)
    fast = cluster.devices[1].model_copy(update={"speed": 3.0})
    stated = cluster.model_copy(update={"devices": (cluster.devices[0], fast)})
    here = study(stated, (1.0, 1.0))
    assert speeds(here.measure()) == pytest.approx([1.0, 1.0])
    assert [plan.micro_batches for plan, _ in here.timed] == [(128, 384), (256, 256)]


def test_memory_bounds_what_a_fast_device_takes(study):
    here = study(unequal(100_000, 22_000), (1.0, 9.0))
    found = here.measure()
    assert speeds(found) == pytest.approx([1 / 9, 1.0])
    assert [plan.micro_batches for plan, _ in here.timed] == [(312, 200), (312, 200)]


def test_a_smaller_batch_is_timed_where_the_largest_does_not_split(study):
    here = study(unequal(12_000, 9_000, 9_000), (1.0, 1.0, 1.0))
    with_speeds(Evidence(here.runtime, here.run, None), here.launch, here.fits, [32, 64, 509])
    assert {plan.global_batch for plan, _ in here.timed} == {64}


def test_an_engine_that_does_not_tell_leaves_the_stated_speeds(study):
    here = study(unequal(100_000, 100_000), (1.0, 3.0), rank_times=False)
    assert here.measure() == here.launch


def test_without_memory_or_budget_nothing_is_timed(study):
    here = study(unequal(100_000, 100_000), (1.0, 3.0))
    assert here.measure(budget_s=0.0) == here.launch
    here.fits = {}
    assert here.measure() == here.launch
    assert here.timed == []


def test_what_was_answered_is_not_asked_again(study):
    here = study(unequal(100_000, 100_000), (1.0, 3.0))
    found = here.measure()
    assert here.measure() == found
    assert here.measure(budget_s=0.0) == found
    assert len(here.timed) == 2
