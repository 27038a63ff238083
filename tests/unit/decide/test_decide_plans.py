import pytest
from decide_records import MIB, Study, cluster_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.cluster import Cluster
from scaler.decide.plans import feasible_plan, split_batch
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.memory import fit_memory, memory_for

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

STUDY = Study(memory_mib=40)
CLUSTER = cluster_of((1, 16), memory_mib=40)
FITS = fit_memory(STUDY.memory())


def takes(plan) -> bool:
    peak_bytes = memory_for(FITS, plan.workers).peak_bytes(plan.micro_batch, plan.accumulation).value
    return CLUSTER.fits(peak_bytes, 40 * MIB)


def splits(global_batch, workers, accumulation) -> bool:
    """Whether so many equal passes over all workers fit; the largest entry decides."""
    if global_batch % accumulation or global_batch // accumulation < workers:
        return False
    micro_batch = -(-global_batch // accumulation // workers)
    peak_bytes = memory_for(FITS, workers).peak_bytes(micro_batch, accumulation).value
    return CLUSTER.fits(peak_bytes, 40 * MIB)


@quiet
@given(st.integers(1, 3000), st.integers(1, 16))
def test_a_batch_takes_the_least_accumulation_that_fits(global_batch, workers):
    plan = feasible_plan(global_batch, workers, FITS, CLUSTER, 0)
    possible = [a for a in range(1, global_batch + 1) if splits(global_batch, workers, a)]
    if plan is None:
        assert not possible
    else:
        assert (plan.global_batch, plan.workers) == (global_batch, workers)
        assert max(plan.micro_batches) - min(plan.micro_batches) <= 1
        assert takes(plan)
        assert plan.accumulation == possible[0]


def test_the_zero_stage_is_the_one_measured_and_asked():
    fits = fit_memory(STUDY.memory((2,), zero_stage=2))
    assert split_batch(64, 4, fits, CLUSTER, 2).zero_stage == 2
    with pytest.raises(NothingFeasible, match="no memory was measured at ZeRO stage 0 on 4 workers"):
        split_batch(64, 4, fits, CLUSTER, 0)
    with pytest.raises(NothingFeasible, match="on 1 workers or fewer"):
        split_batch(64, 1, fits, CLUSTER, 2)


def test_accumulation_that_does_not_fit_is_not_used():
    cluster = cluster_of(memory_mib=40)
    fits = fit_memory(Study(gradients_mib=1000, memory_mib=10_000).memory(), cluster.capacity_bytes())
    assert split_batch(128, 1, fits, cluster, 0).accumulation == 1
    with pytest.raises(NothingFeasible, match="accumulating does not fit at micro-batch 1"):
        split_batch(1024, 1, fits, cluster, 0)
    assert feasible_plan(1024, 1, fits, cluster, 0) is None


def test_a_batch_that_no_accumulation_divides_is_refused_with_the_ones_near_it():
    with pytest.raises(NothingFeasible, match="does not split") as caught:
        split_batch(1439, 2, FITS, CLUSTER, 0)
    assert "split" in caught.value.hint


def test_every_worker_needs_an_example():
    with pytest.raises(BadInput, match="leaves 4 of 8 workers without an example"):
        split_batch(4, 8, FITS, CLUSTER, 0)
    assert feasible_plan(4, 8, FITS, CLUSTER, 0) is None


# Unequal devices

UNEQUAL = Cluster.model_validate(
    {
        "name": "unequal",
        "workers": 3,
        "kind": "mock",
        "devices": [
            {"device": "old", "workers": 1, "device_memory": 40 * MIB},
            {"device": "new", "workers": 2, "device_memory": 80 * MIB},
        ],
    }
)
UNEQUAL_FITS = fit_memory(Study(memory_mib=256).memory((1, 3)), UNEQUAL.capacity_bytes())
LIMITS = [UNEQUAL_FITS[0, 3].max_micro_batch(UNEQUAL, 1, memory * MIB) for memory in (40, 80, 80)]


def test_each_device_type_has_a_limit_of_its_own():
    assert LIMITS == [260, 641, 641]  # (memory / 1.05 - 12 MiB) / 0.1 MiB


@pytest.mark.parametrize("slow", [1.0, 0.25])
@pytest.mark.parametrize("global_batch", [3, 100, 1_000, 1_542])
def test_unequal_devices_have_entries_in_proportion_to_their_speed_as_far_as_fits(global_batch, slow):
    devices = tuple(
        group.model_copy(update={"speed": speed})
        for group, speed in zip(UNEQUAL.devices, (slow, 1.0), strict=True)
    )
    cluster = UNEQUAL.model_copy(update={"devices": devices})
    plan = split_batch(global_batch, 3, UNEQUAL_FITS, cluster, 0)
    assert (plan.global_batch, plan.accumulation) == (global_batch, 1)
    first, *others = plan.micro_batches
    share = global_batch * slow / (slow + 2)
    needed = global_batch - sum(LIMITS[1:])  # what the others cannot take
    assert first == pytest.approx(max(1, min(share, LIMITS[0]), needed), abs=1)
    assert max(others) - min(others) <= 1


def test_the_smallest_device_does_not_bound_the_others():
    equal = cluster_of(3, memory_mib=40)
    fits = fit_memory(Study(memory_mib=256).memory((3,)), equal.capacity_bytes())
    assert split_batch(1_500, 3, UNEQUAL_FITS, UNEQUAL, 0).accumulation == 1
    assert split_batch(1_500, 3, fits, equal, 0).accumulation > 1


@quiet
@given(st.integers(3, 6_000))
def test_no_device_takes_more_than_fits_it(global_batch):
    plan = feasible_plan(global_batch, 3, UNEQUAL_FITS, UNEQUAL, 0)
    if plan is None:
        assert global_batch > sum(LIMITS)  # else one pass is enough
        return
    assert plan.global_batch == global_batch
    for rank, entry in enumerate(plan.micro_batches):
        peak_bytes = UNEQUAL_FITS[0, 3].peak_bytes(entry, plan.accumulation).value
        assert UNEQUAL.fits(peak_bytes, UNEQUAL.capacity_bytes(rank))
