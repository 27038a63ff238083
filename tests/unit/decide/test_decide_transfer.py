"""Decisions for clusters that were never measured, from what the files say of the devices."""

import math

import pytest
from decide_records import Study, cluster_of

from scaler.decide.decide import decide
from scaler.errors import BadInput

STUDY = Study(overhead_s=1e-4, per_example_s=2e-4)
RECORDS = STUDY.records()
OWN = cluster_of(device="old", flops=1e12, memory_bandwidth="100GB")


def other(factor: float, **fields):
    figures = {"flops": 1e12 * factor, "memory_bandwidth": f"{100 * factor:g}GB"}
    return cluster_of(device="new", **(figures | fields))


def width(estimate) -> float:
    return math.log(estimate.high / estimate.low)


def test_the_measured_cluster_is_decided_as_ever():
    assert decide(RECORDS, OWN, measured_on=OWN) == decide(RECORDS, OWN)


def test_devices_twice_as_fast_take_half_the_time_within_a_wider_interval():
    own, faster = decide(RECORDS, OWN), decide(RECORDS, other(2), measured_on=OWN)
    for before, after in zip(own.answers, faster.answers, strict=True):
        if before.plan == after.plan and before.plan.workers == 1:
            assert after.step_time_s.value == pytest.approx(before.step_time_s.value / 2, rel=0.1)
            assert after.examples_to_target == before.examples_to_target
        assert width(after.step_time_s) > width(before.step_time_s)
        assert width(after.time_to_target_s) > width(before.time_to_target_s)


def test_the_reason_says_what_was_scaled_and_how_much_wider_the_interval_is():
    reason = decide(RECORDS, other(2), measured_on=OWN).chosen.reasons["step_time"]
    assert "scaled to mock-4: time an example x 0.5" in reason
    assert "x as wide as there" in reason
    assert "scaled" not in decide(RECORDS, OWN, measured_on=OWN).chosen.reasons["step_time"]


def test_slower_links_ask_for_fewer_workers():
    fast = decide(RECORDS, other(1, local_bandwidth="100GB"), measured_on=OWN).chosen_workers
    own = cluster_of(device="old", flops=1e12, memory_bandwidth="100GB", local_bandwidth="100GB")
    slow = decide(RECORDS, other(1, local_bandwidth="20MB"), measured_on=own).chosen_workers
    assert slow < fast


def test_devices_that_nothing_compares_are_refused():
    with pytest.raises(BadInput, match="nothing says how fast") as caught:
        decide(RECORDS, cluster_of(device="new"), measured_on=cluster_of(device="old"))
    assert "flops" in caught.value.hint
