"""The finder against devices whose memory is known to the byte, whatever they conceal."""

from functools import partial

import pytest
from devices import Devices
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scaler.cluster import Cluster, ConcealedBias
from scaler.measure.largest import find_largest

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cluster(device_memory: int, margin: float = 0.0, reserve: int = 0) -> Cluster:
    return Cluster(
        workers=1, kind="mock", device_memory_bytes=device_memory, margin=margin, reserve_bytes=reserve
    )


def search(devices: Devices, largest: int, ask=None):
    """(the probes, the answer that they lead to)."""
    fit = partial(devices.fit, largest)
    measured = find_largest(ask or devices.ask, fit, devices.cluster, largest)
    return measured, min(largest, fit(measured).max_micro_batch(devices.cluster))


def sizes(measured):
    return [record.plan.micro_batch for record in measured]


@st.composite
def biased(draw, steps: bool = True):
    """Devices that count up to 10% more than the live bytes, and perhaps more from some size on."""
    share = draw(st.floats(0, 0.1))
    capacity = draw(st.integers(20_000, 400_000))
    step_at = draw(st.integers(1, int(1.2 * capacity))) if steps else None
    return Devices(
        cluster(capacity, draw(st.floats(0, 0.3)), draw(st.integers(0, 5_000))),
        fixed_bytes=draw(st.integers(0, 8_000)),
        example_bytes=draw(st.integers(50, 2_000)),
        floor_bytes=draw(st.integers(0, 16_000)),
        granule_bytes=draw(st.integers(1, 4_000)),
        known_in_use=draw(st.booleans()),
        concealed=ConcealedBias(
            share=share,
            step_at_bytes=step_at,
            step_share=draw(st.floats(0, 0.1 - share)) if steps else 0.0,
        ),
    )


def not_on_the_edge(devices: Devices, truth: int) -> None:
    """A peak within two bytes of the limit is decided by how floats are rounded."""
    limit = devices.cluster
    for size in (truth, truth + 1):
        need = devices.peak_bytes(size) * (1 + limit.margin) + limit.reserve_bytes
        assume(abs(need - limit.capacity_bytes()) > 2)


@quiet
@given(biased(), st.integers(1, 5_000))
def test_few_probes_one_failure_and_never_too_much(devices, largest):
    measured, answer = search(devices, largest)
    truth = devices.largest(largest)
    not_on_the_edge(devices, truth)
    assert 1 <= len(measured) <= 3
    assert sum(record.too_large for record in measured) <= 1
    assert answer <= truth, sizes(measured)


@quiet
@given(biased(steps=False), st.integers(1, 5_000))
def test_without_a_step_the_answer_is_exact(devices, largest):
    measured, answer = search(devices, largest)
    truth = devices.largest(largest)
    not_on_the_edge(devices, truth)
    assert answer == truth
    assert not any(record.too_large for record in measured) or truth == 0
    assert truth == 0 or truth in sizes(measured)  # the answer itself was tried


@quiet
@given(biased(), st.integers(1, 5_000))
def test_the_answer_is_exact_unless_a_step_lies_beyond_the_first_probe(devices, largest):
    measured, answer = search(devices, largest)
    truth = devices.largest(largest)
    not_on_the_edge(devices, truth)
    first = devices.live_bytes(sizes(measured)[0])
    reach = range(min(sizes(measured)), largest + 1)
    steps = {devices.live_bytes(size) >= devices.concealed.step_at_bytes for size in reach}
    assume(len(steps) == 1 and first <= devices.live_bytes(largest))
    assert answer == truth
