"""Whether powers of two are looked into, and which batches are tried because they fill the devices."""

import itertools

import pytest
from asking import Asked
from devices import Devices, SimulatedRuntime
from fake_time import FakeTime
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan, candidates
from scaler.cluster import Cluster
from scaler.decide.plans import largest_passes, split_batch
from scaler.fit.memory import fit_memory
from scaler.measure.evidence import Evidence
from scaler.measure.stages import ask_sizes, measure_powers, with_full_devices
from scaler.probe.powers import probe_powers
from scaler.runs import RunFolder

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FIXED, EXAMPLE = 1000, 100


def cluster_for(*largest, workers=1):
    """Devices that hold so many examples in one pass: equal ones, or one of each."""
    memories = [FIXED + EXAMPLE * size for size in largest]
    data = {"kind": "mock", "workers": workers, "margin": 0.0, "device_memory": memories[0]}
    if len(memories) > 1:
        groups = [{"device": f"of {m}", "workers": 1, "device_memory": m} for m in memories]
        data |= {"workers": len(memories), "device_memory": None, "devices": groups}
    return Cluster.model_validate(data)


def fits_of(cluster, workers=1):
    """Peaks that are known to the byte, and were measured for small and for filled devices."""
    fit = Devices(cluster, FIXED, EXAMPLE).fit(8192, [])
    return {(0, count): fit for count in {1, workers}}


# Powers of two


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    fake.monotonic = fake.perf_counter
    monkeypatch.setattr("scaler.measure.evidence.time", fake)
    return fake


class Study:
    """A device on which micro-batches up to `largest` were measured."""

    def __init__(self, folder, largest, odd=1.0, examples=8192):
        devices = Devices(cluster_for(max(largest, 1)), FIXED, EXAMPLE)
        self.run, self.runtime = RunFolder(folder), Asked(SimulatedRuntime(devices, odd=odd))
        measured = [devices.measure(BatchPlan.equal(m, 1, 1)) for m in (1, largest)] if largest else []
        self.fits = fit_memory(measured, devices.cluster.capacity_bytes())
        self.examples = examples

    def measure(self, budget_s=None):
        evidence = Evidence(self.runtime, self.run, None)
        sizes = ask_sizes(evidence).model_copy(update={"train_examples": self.examples})
        return measure_powers(Evidence(self.runtime, self.run, budget_s), self.fits, sizes)

    @property
    def asked(self):
        return [task.request.power for task in self.runtime.tasks if task.probe is probe_powers]


@pytest.fixture
def study(tmp_path):
    return lambda *args, **fields: Study(tmp_path, *args, **fields)


@pytest.mark.parametrize(
    ("largest", "examples", "power"),
    [
        (32, 8192, 16),
        (63, 8192, 16),
        (64, 8192, 32),
        (1000, 8192, 256),
        (1024, 8192, 512),
        (8000, 8192, 512),
        (8000, 100, 32),  # no pass takes more examples than there are
    ],
)
def test_the_largest_power_whose_double_was_measured_is_looked_into(study, largest, examples, power):
    here = study(largest, examples=examples)
    assert here.measure() == 1
    assert here.asked == [power]


@pytest.mark.parametrize(("largest", "examples"), [(31, 8192), (1, 8192), (8000, 31), (0, 8192)])
def test_without_room_for_small_powers_nothing_is_asked(study, largest, examples):
    here = study(largest, odd=1.5, examples=examples)
    assert here.measure() == 1
    assert here.asked == []


@pytest.mark.parametrize(("odd", "grain"), [(1.0, 1), (1.01, 1), (0.9, 1), (1.1, 8), (3.0, 8)])
def test_sizes_had_better_be_multiples_of_8_where_odd_ones_are_slower(study, odd, grain):
    assert study(1024, odd=odd).measure() == grain


@pytest.mark.parametrize(("budget_s", "asked"), [(0.0, []), (79.0, []), (81.0, [512]), (None, [512])])
def test_powers_are_no_question_where_they_take_much_of_the_budget(study, time, budget_s, asked):
    here = study(1024, odd=1.5)
    assert here.measure(budget_s) == (8 if asked else 1)
    assert here.asked == asked


def test_what_was_answered_is_not_asked_again(study):
    here = study(1024, odd=1.5)
    assert [here.measure(), here.measure()] == [8, 8]
    assert here.asked == [512]


def test_a_resumed_run_with_little_budget_knows_what_was_answered(study, time):
    here = study(1024, odd=1.5)
    assert here.measure() == 8
    assert here.measure(budget_s=60.0) == 8


# Batches that fill the devices


@quiet
@given(
    largest=st.integers(1, 4000),
    counts=st.lists(st.integers(1, 16), min_size=1, max_size=3, unique=True).map(sorted),
    reference=st.integers(1, 200),
    grain=st.sampled_from([1, 8]),
)
def test_what_fills_equal_devices_is_tried_too(largest, counts, reference, grain):
    cluster = cluster_for(largest, workers=(counts[0], counts[-1]))
    fits = fits_of(cluster, counts[-1])
    batches = candidates(8192, reference, counts[0])
    assume(len(batches) > 1)
    found = with_full_devices(batches, cluster, fits, counts, 0, grain)
    assert found == sorted(found)
    added = sorted(set(found) - set(batches))
    assert len(found) == len(batches) + len(added)
    full = {workers: workers * (largest // grain * grain) for workers in (counts[0], counts[-1])}
    assert set(added) <= set(full.values())
    assert all(min(batches) < batch < max(batches) for batch in added)
    assert all(abs(new - old) >= 0.1 * old for new in added for old in batches)
    assert all(high - low >= 0.1 * min(low, high) for low, high in itertools.pairwise(added))
    for workers, batch in full.items():
        near = any(abs(batch - other) < 0.1 * other for other in found)
        assert near or not min(batches) < batch < max(batches)
        if batch in added:
            plan = split_batch(batch, workers, fits, cluster, 0)
            assert (plan.accumulation, plan.is_equal) == (1, True)
            assert plan.micro_batch % grain == 0 and plan.micro_batch + grain > largest


@pytest.mark.parametrize(
    ("largest", "grain", "added"),
    [
        (350, 1, {350, 1400}),
        (350, 8, {344, 1376}),
        (384, 1, {384, 1536}),
        (270, 1, set()),  # 270 lies near 256, 1,080 near 1,024
        (30, 1, set()),  # 30 lies below the smallest batch, 120 near 128
        (9000, 1, set()),  # beyond the largest
    ],
)
def test_only_what_is_not_near_another_batch_within_the_ladder_is_new(largest, grain, added):
    batches = [32, 64, 128, 256, 512, 1024, 2048]
    cluster = cluster_for(largest, workers=(1, 4))
    found = with_full_devices(batches, cluster, fits_of(cluster, 4), [1, 2, 3, 4], 0, grain)
    assert set(found) - set(batches) == added


def test_where_memory_was_not_measured_the_batches_are_as_they_were():
    cluster = cluster_for(350, workers=2)
    assert with_full_devices([32, 64, 512], cluster, {}, [2], 0, 1) == [32, 64, 512]
    assert with_full_devices([32, 64, 512], cluster, fits_of(cluster, 2), [2], 3, 1) == [32, 64, 512]


def test_each_of_unequal_devices_is_filled():
    cluster = cluster_for(100, 250)
    fits = fits_of(cluster, 2)
    assert largest_passes(2, fits, cluster, 0) == [100, 250]
    found = with_full_devices([32, 64, 512], cluster, fits, [2], 0, 1)
    assert found == [32, 64, 350, 512]
    assert split_batch(350, 2, fits, cluster, 0).micro_batches == (100, 250)
