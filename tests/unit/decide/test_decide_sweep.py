from functools import partial
from pathlib import Path

import pytest

from scaler.cluster import Cluster
from scaler.decide.decide import decide
from scaler.decide.sweep import parse_sweep, sweep_memory, with_memory
from scaler.errors import BadInput
from scaler.runs import RunFolder

KIB = 2**10
RECORDS = RunFolder.open(Path(__file__).parents[2] / "recorded" / "digits-mock-2").records()
DECIDE = partial(decide, RECORDS)
CLUSTER = Cluster(workers=(1, 2), kind="mock", device_memory=2048 * KIB)


def test_more_memory_of_a_device_never_takes_longer():
    points = sweep_memory(DECIDE, CLUSTER, [200 * KIB, 300 * KIB, 600 * KIB, 2048 * KIB, 8192 * KIB])
    times = [point.time_to_target_s.value for point in points if point.time_to_target_s is not None]
    assert len(times) == 5
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_each_plan_fits_its_memory():
    for size in (200 * KIB, 500 * KIB, 2048 * KIB):
        (point,) = sweep_memory(DECIDE, CLUSTER, [size])
        assert point.device_memory_bytes == size
        assert point.peak_memory_bytes.value * (1 + CLUSTER.margin) <= size


def test_memory_for_nothing_says_so():
    (point,) = sweep_memory(DECIDE, CLUSTER, [20 * KIB])
    assert point.plan is None and point.time_to_target_s is None
    assert "does not fit" in point.infeasible


def test_sizes_are_read_with_the_unit_that_follows():
    assert parse_sweep(["device-memory", "8,16,24GiB"]) == (8 * 2**30, 16 * 2**30, 24 * 2**30)
    assert parse_sweep(["device-memory", "1GiB,512MiB,512MiB"]) == (512 * 2**20, 2**30)


@pytest.mark.parametrize("words", [("workers", "1,2"), ("device-memory", "8,x"), ("device-memory", "8,16")])
def test_what_cannot_be_swept_is_named(words):
    with pytest.raises(BadInput) as caught:
        parse_sweep(words)
    assert words[1] in str(caught.value) or words[0] in str(caught.value)
    assert "device-memory" in caught.value.hint


def test_a_memory_below_the_reserve_and_unequal_devices_are_refused():
    with pytest.raises(BadInput, match="not above the reserve"):
        with_memory(CLUSTER.model_copy(update={"reserve_bytes": 2**20}), 2**20)
    devices = [{"device": "a", "workers": 2, "device_memory": "1MiB"}]
    with pytest.raises(BadInput, match="unequal devices"):
        with_memory(Cluster(workers=2, kind="mock", devices=devices), 2**20)
