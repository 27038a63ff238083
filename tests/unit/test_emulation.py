import pytest
import torch

from scaler import emulation
from scaler.cluster import Cluster, Emulation
from scaler.emulation import EmulatedCompute, EmulatedLink
from scaler.errors import BadInput
from scaler.schema import parse


class Clock:
    """Time that only passes while somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def sleep(self, duration_s):
        self.now += duration_s


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(emulation, "time", fake)
    return fake


def multiply(device):
    device.begin_pass()
    with device:
        torch.ones(100, 100) @ torch.ones(100, 10)  # 200,000 operations
        torch.ones(3) + 1  # no arithmetic that counts
    device.finish()


def test_arithmetic_takes_the_time_of_the_stated_speed(clock):
    multiply(EmulatedCompute(Emulation(flops_per_s=2e6)))
    assert clock.now == pytest.approx(100.1)


def test_a_pass_has_a_fixed_time(clock):
    device = EmulatedCompute(Emulation(flops_per_s=2e6, overhead_s=0.25))
    for _ in range(2):
        multiply(device)
    assert clock.now == pytest.approx(100 + 2 * (0.1 + 0.25))


def test_without_a_speed_only_the_fixed_time_is_slept(clock):
    multiply(EmulatedCompute(Emulation(overhead_s=0.25)))
    assert clock.now == pytest.approx(100.25)


def test_a_backward_pass_is_computed_at_that_speed_too(clock):
    device = EmulatedCompute(Emulation(flops_per_s=2e6))
    layer = torch.nn.Linear(100, 100, bias=False)
    with device:
        layer(torch.ones(10, 100)).sum().backward()
    device.finish()
    assert clock.now == pytest.approx(100 + 2 * 2e5 / 2e6)  # of the weights only: the input needs none


def test_a_link_is_held_up_by_latency_and_bytes():
    link = Emulation(bandwidth_bytes=1000, latency_s=0.01)
    shaped, delayed = (EmulatedLink(link, workers=4, nodes=4, shaped=shaped) for shaped in (True, False))
    assert shaped.hold_s(500) == pytest.approx(
        6 * 0.01
    )  # six turns of a ring; its bytes are shaped elsewhere
    assert delayed.hold_s(500) == pytest.approx(6 * 0.01 + 1.5 * 500 / 1000, rel=0.3)
    assert EmulatedLink(link, 8, 4, shaped=False).hold_s(500) > delayed.hold_s(500)


def test_a_held_up_future_has_the_same_value(clock):
    link = EmulatedLink(Emulation(latency_s=0.5), workers=2, nodes=2, shaped=True)
    sent = torch.futures.Future()
    sent.set_result([torch.ones(2)])
    held = link.hold(sent, 8)
    assert held.wait()[0].tolist() == [1.0, 1.0]
    assert clock.now == pytest.approx(101.0)
    link.close()


def test_an_error_of_the_collective_is_passed_on():
    link = EmulatedLink(Emulation(), workers=2, nodes=2, shaped=True)
    sent = torch.futures.Future()
    sent.set_exception(RuntimeError("peer lost"))
    with pytest.raises(RuntimeError, match="peer lost"):
        link.hold(sent, 8).wait()
    link.close()


def test_sizes_and_durations_are_read_with_their_units():
    data = {"kind": "mock", "workers": 4, "nodes": 2, "device_memory": "1GiB"}
    emulate = {"speed": "1e9", "overhead": "2ms", "bandwidth": "20MiB", "latency": "150us"}
    cluster = parse(Cluster, {**data, "emulate": emulate}, "test")
    assert cluster.emulate == Emulation(
        flops_per_s=1e9, overhead_s=0.002, bandwidth_bytes=20 * 2**20, latency_s=1.5e-4
    )
    with pytest.raises(BadInput, match="only mock devices are emulated"):
        parse(Cluster, {**data, "kind": "cpu", "emulate": emulate}, "test")


def test_a_group_of_unequal_devices_may_have_a_speed_of_its_own():
    group = {"workers": 1, "device_memory": "1GiB"}
    devices = [{**group, "device": "a", "emulate": {"speed": 1e9}}, {**group, "device": "b"}]
    data = {"kind": "mock", "workers": 2, "devices": devices, "emulate": {"speed": 2e9}}
    cluster = parse(Cluster, data, "test")
    assert [cluster.emulation(rank).flops_per_s for rank in (0, 1)] == [1e9, 2e9]
