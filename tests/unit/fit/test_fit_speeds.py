"""Speeds of unequal devices, from ranks whose compute times are known."""

import pytest
from fit_records import throughput
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.fit.speeds import with_measured_speeds

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)


def cluster_of(*workers, **fields):
    """A group of devices for each number of workers, with speeds that nobody measured."""
    groups = [
        {"device": f"type {i}", "workers": count, "device_memory": "1GiB", "speed": 1 + i}
        for i, count in enumerate(workers)
    ]
    data = {"kind": "mock", "workers": sum(workers), "devices": groups, "margin": 0.1}
    return Cluster.model_validate(data | fields)


def run(entries, compute_s, accumulation=1):
    plan = BatchPlan(micro_batches=tuple(entries), accumulation=accumulation)
    return throughput(plan, 9.0, 9.0).model_copy(update={"rank_compute_s": tuple(compute_s)})


def speeds(cluster):
    return [group.speed for group in cluster.devices]


@quiet
@given(
    st.lists(st.tuples(st.integers(1, 3), st.floats(0.1, 10)), min_size=1, max_size=4),
    st.lists(st.integers(1, 500), min_size=12, max_size=12),
    st.integers(1, 4),
)
def test_speeds_are_the_true_ones_over_the_fastest(groups, sizes, accumulation):
    """Examples per second of each group, whatever each rank was given."""
    cluster = cluster_of(*(workers for workers, _ in groups))
    rates = [rate for workers, rate in groups for _ in range(workers)]
    entries = sizes[: len(rates)]
    compute_s = [accumulation * m / rate for m, rate in zip(entries, rates, strict=True)]
    found = with_measured_speeds(cluster, [run(entries, compute_s, accumulation)])
    fastest = max(rate for _, rate in groups)
    assert speeds(found) == pytest.approx([rate / fastest for _, rate in groups])
    assert max(speeds(found)) == 1


def test_only_the_speeds_change():
    cluster = cluster_of(1, 2)
    found = with_measured_speeds(cluster, [run((8, 8, 8), (0.1, 0.2, 0.2))])
    same = [group.model_copy(update={"speed": 1.0}) for group in cluster.devices]
    assert [group.model_copy(update={"speed": 1.0}) for group in found.devices] == same
    assert found.model_copy(update={"devices": cluster.devices}) == cluster
    assert speeds(cluster) == [1, 2]  # which is another cluster


def test_waiting_for_the_others_is_no_part_of_a_speed():
    record = run((10, 10), (0.1, 0.2)).model_copy(update={"step_times_s": (5.0, 5.0)})
    assert speeds(with_measured_speeds(cluster_of(1, 1), [record])) == pytest.approx([1, 0.5])


def test_large_passes_count_most():
    """A fixed time makes a small pass slow; training will have the large ones."""

    def compute_s(m, per_example_s):
        return 0.1 + per_example_s * m

    small, large = ([compute_s(m, 0.001), compute_s(m, 0.002)] for m in (1, 1000))
    records = [run((1, 1), small), run((1000, 1000), large)]
    alone = speeds(with_measured_speeds(cluster_of(1, 1), records[1:]))
    together = speeds(with_measured_speeds(cluster_of(1, 1), records))
    assert alone == pytest.approx([1, 1.1 / 2.1])
    assert together == pytest.approx(alone, rel=0.05)


def test_ranks_of_a_group_are_taken_together():
    found = with_measured_speeds(cluster_of(2, 1), [run((10, 30, 20), (0.1, 0.3, 0.4))])
    assert speeds(found) == pytest.approx([1, 0.5])


@pytest.mark.parametrize(
    "records",
    [
        [],
        [run((8, 8), ())],  # an engine that does not tell
        [run((8,), (0.1,))],  # a trial on one worker
        [run((8, 8, 8), (0.1, 0.2, 0.3))],  # another number of workers
    ],
)
def test_without_the_time_of_every_rank_the_cluster_is_as_it_was(records):
    cluster = cluster_of(1, 1)
    assert with_measured_speeds(cluster, records) == cluster


def test_runs_that_do_not_tell_do_not_hide_those_that_do():
    records = [run((8,), (0.1,)), run((8, 8), (0.1, 0.4)), run((8, 8), ())]
    assert speeds(with_measured_speeds(cluster_of(1, 1), records)) == pytest.approx([1, 0.25])


def test_equal_devices_are_as_they_were():
    cluster = Cluster.model_validate({"kind": "mock", "workers": 2, "device_memory": "1GiB"})
    assert with_measured_speeds(cluster, [run((8, 8), (0.1, 0.2))]) == cluster


def test_measuring_again_with_the_measured_speeds_changes_nothing():
    record = run((8, 24), (0.1, 0.2))
    once = with_measured_speeds(cluster_of(1, 1), [record])
    assert with_measured_speeds(once, [record]) == once
