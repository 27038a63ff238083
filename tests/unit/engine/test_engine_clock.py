"""A step is split into phases that add up to it; time is what a fake clock says."""

import pytest
from fake_time import FakeTime

from scaler.device import Device
from scaler.engine.clock import StepClock, step_clock


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr("scaler.engine.clock.time", fake)
    return fake


@pytest.fixture
def clock(time):
    return StepClock()


def step(clock, time, *phases):
    """One step of (phase, seconds), which ends with the last phase."""
    clock.start()
    for phase, seconds in phases:
        time.sleep(seconds)
        clock.lap(phase)
    clock.end()


def test_laps_add_up_to_the_step(clock, time):
    step(clock, time, ("data", 1.0), ("forward", 2.0), ("backward", 4.0), ("sync", 8.0), ("optimizer", 16.0))
    assert clock.step_times_s == [31.0]
    assert clock.times_s == {
        "data": [1.0],
        "forward": [2.0],
        "backward": [4.0],
        "sync": [8.0],
        "optimizer": [16.0],
    }


def test_passes_of_one_step_are_summed(clock, time):
    passes = [("data", 1.0), ("forward", 2.0), ("backward", 4.0)]
    step(clock, time, *passes, *passes, ("optimizer", 8.0))
    assert clock.times_s == {"data": [2.0], "forward": [4.0], "backward": [8.0], "optimizer": [8.0]}
    assert clock.step_times_s == [22.0]


def test_every_step_begins_anew(clock, time):
    step(clock, time, ("forward", 1.0))
    time.sleep(100.0)
    step(clock, time, ("forward", 2.0))
    assert clock.step_times_s == [1.0, 2.0]
    assert clock.times_s == {"forward": [1.0, 2.0]}


def test_what_follows_the_last_lap_is_in_the_step_and_in_no_phase(clock, time):
    clock.start()
    time.sleep(1.0)
    clock.lap("forward")
    time.sleep(2.0)
    clock.end()
    step(clock, time, ("forward", 4.0))
    assert clock.step_times_s == [3.0, 4.0]
    assert clock.times_s == {"forward": [1.0, 4.0]}


def test_waiting_moves_time_to_the_synchronisation(clock, time):
    clock.start()
    time.sleep(1.0)
    with clock.waiting():
        time.sleep(2.0)
    time.sleep(4.0)
    clock.lap("backward")
    time.sleep(8.0)
    clock.lap("optimizer")
    clock.end()
    assert clock.times_s == {"sync": [2.0], "backward": [5.0], "optimizer": [8.0]}
    assert clock.step_times_s == [15.0]


def test_waiting_is_taken_from_the_phase_that_it_lies_in(clock, time):
    clock.start()
    for phase, waits in (("forward", (1.0,)), ("backward", (2.0, 4.0)), ("optimizer", ())):
        for seconds in waits:
            with clock.waiting():
                time.sleep(seconds)
        time.sleep(16.0)
        clock.lap(phase)
    clock.end()
    assert clock.times_s == {"sync": [7.0], "forward": [16.0], "backward": [16.0], "optimizer": [16.0]}
    assert clock.step_times_s == [55.0]


def test_a_phase_that_begins_later_was_not_there_before(clock, time):
    step(clock, time, ("forward", 1.0))
    step(clock, time, ("forward", 2.0))
    step(clock, time, ("forward", 3.0), ("sync", 4.0))
    assert clock.times_s == {"forward": [1.0, 2.0, 3.0], "sync": [0.0, 0.0, 4.0]}


def test_a_phase_may_leave_out_a_step(clock, time):
    step(clock, time, ("sync", 1.0))
    step(clock, time, ("forward", 2.0))
    step(clock, time, ("sync", 4.0), ("forward", 8.0))
    assert clock.times_s == {"sync": [1.0, 0.0, 4.0], "forward": [0.0, 2.0, 8.0]}
    assert clock.step_times_s == [1.0, 2.0, 12.0]


def test_a_device_without_streams_is_timed_by_the_host():
    assert type(step_clock(Device("cpu", None))) is StepClock
    assert type(step_clock(Device("mock", None))) is StepClock
