"""The finder against devices whose memory is known to the byte, whatever they conceal."""

import dataclasses
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
    step_at = int(draw(st.floats(0.5, 1.1)) * capacity) if steps else None
    return Devices(
        cluster(capacity, draw(st.sampled_from((0.0, 0.02, 0.05, 0.1, 0.3))), draw(st.integers(0, 5_000))),
        fixed_bytes=draw(st.integers(0, 8_000)),
        example_bytes=draw(st.integers(50, 2_000)),
        floor_bytes=draw(st.integers(0, 16_000)),
        granule_bytes=draw(st.integers(1, 4_000)),
        **draw(st.sampled_from(({}, {"known_in_use": False}, {"releases": True}))),
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


@settings(quiet, max_examples=400)
@given(biased(), st.sampled_from((64, 1_024, 5_000)))
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
    reach = (min(*sizes(measured), truth or 1), largest)
    assume(len({devices.live_bytes(m) >= devices.concealed.step_at_bytes for m in reach}) == 1)
    assert answer == truth


STEP = ConcealedBias(step_at_bytes=93_000, step_share=0.05)
STEPPED = Devices(cluster(100_000), fixed_bytes=0, granule_bytes=500, concealed=STEP)


@pytest.mark.parametrize("how", [{}, {"known_in_use": False}, {"releases": True}])
def test_after_a_failure_only_what_surely_fits_is_promised(how):
    """The step lies where the second probe goes: what was in use then says little of the sizes below."""
    devices = dataclasses.replace(STEPPED, **how)
    measured, answer = search(devices, 5_000)
    assert [record.too_large for record in measured] in ([False, True], [False, True, False])
    assert sizes(measured)[0] <= answer <= devices.largest(5_000) < sizes(measured)[1]


def test_between_two_probes_the_step_is_taken_to_be_low():
    """A probe over a step fits the device, without the margin: the answer is below it."""
    devices = Devices(
        cluster(100_000, margin=0.05), concealed=ConcealedBias(step_at_bytes=92_000, step_share=0.05)
    )
    measured, answer = search(devices, 5_000)
    assert not any(record.too_large for record in measured)
    assert max(sizes(measured)) > devices.largest(5_000)
    assert answer <= devices.largest(5_000)


def test_where_everything_fits_one_probe_at_the_largest_is_enough():
    devices = Devices(cluster(10**9), concealed=ConcealedBias(share=0.1))
    measured, answer = search(devices, 700)
    assert sizes(measured) == [700]
    assert answer == 700


def test_without_a_bias_two_probes_are_the_most():
    measured, answer = search(Devices(cluster(100_000)), 5_000)
    assert sizes(measured) == [899, 990]
    assert answer == 990


@pytest.mark.parametrize("affordable", [0, 1, 2])
def test_the_budget_ends_the_search_with_what_is_known(affordable):
    devices = Devices(cluster(100_000), concealed=ConcealedBias(share=0.02))
    left = iter(range(affordable))
    measured, answer = search(
        devices, 5_000, lambda size: devices.ask(size) if next(left, None) is not None else []
    )
    assert len(measured) == affordable
    truth = devices.largest(5_000)
    assert answer == (truth if affordable else 990)  # unmeasured, the prediction stands
    assert truth == 970


def test_micro_batch_1_is_tried_although_nothing_is_predicted_to_fit():
    roomy = Devices(cluster(10_000), fixed_bytes=9_000, example_bytes=500)
    measured, answer = search(roomy, 100)
    assert (sizes(measured)[0], answer) == (1, 2)
    full = Devices(cluster(10_000), fixed_bytes=20_000)
    measured, answer = search(full, 100)
    assert (sizes(measured), answer) == ([1], 0)
    assert measured[0].too_large


def test_a_device_that_takes_much_more_than_predicted_is_halved_down_to():
    """Another process holds most of it: nothing is known of what fits, but 1 does."""
    devices = Devices(cluster(100_000), others_bytes=80_000)
    measured, answer = search(devices, 5_000)
    assert not measured[-1].too_large
    assert 1 <= answer <= devices.largest(5_000)
