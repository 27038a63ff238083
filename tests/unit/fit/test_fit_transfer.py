"""Step times on devices that were not measured: scaled by figures, and no surer than figures make them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_truths import OVERHEAD_S, PER_EXAMPLE_S, SYNC_S, rows, spread

from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.fit.step_model import StepShape
from scaler.fit.step_time import fit_step_rows
from scaler.fit.transfer import Factor, Transfer

NOISE = 0.05
LINK_S = 0.02  # of the synchronisation across nodes
FIGURES = {
    "device": "A",
    "flops": 100e12,
    "memory_bandwidth": "1TB",
    "local_bandwidth": "300GB",
    "link_bandwidth": "10GB",
}
KNOWN = [*spread((1, 2, 4)), *spread((8,), nodes=2), *spread((16,), nodes=4)]
ONE = StepShape(1, 1, 4096)  # nearly all of it is time an example
NODES = StepShape(2, 8, 8)  # nearly all of it is synchronisation


def cluster(**fields):
    kept = {key: value for key, value in {**FIGURES, **fields}.items() if value is not None}
    return Cluster.model_validate({"name": "c", "workers": [1, 16], "nodes": 4, "kind": "cuda", **kept})


def unknown(**fields):
    return cluster(**{**dict.fromkeys(FIGURES), **fields})


def mock(**emulate):
    fields = {"kind": "mock", "device_memory": "1GiB", "emulate": emulate}
    return unknown(**fields)


def true_s(shape, per_example=1.0, overhead=1.0, local_sync=1.0, link_sync=1.0):
    """A truth of which each part may be so many times as long."""
    pass_s = overhead * OVERHEAD_S + per_example * PER_EXAMPLE_S * shape.micro_batch
    inside_s = local_sync * SYNC_S * float(np.log2(shape.workers))
    return shape.accumulation * pass_s + (link_sync * LINK_S if shape.nodes > 1 else inside_s)


A = cluster()
FIT = fit_step_rows(rows(KNOWN, true_s, NOISE))


def to(measured=A, fit=FIT, **fields):
    return Transfer.between(measured, cluster(device="B", **fields)).applied(fit)


def width(estimate):
    return float(np.log(estimate.high / estimate.low))


# What is the same


@pytest.mark.parametrize(
    ("measured", "asked"),
    [
        (A, cluster()),
        (A, cluster(name="other", price_per_device_hour=3)),
        (A, cluster(workers=1, nodes=1)),
        (A, cluster(workers=4, nodes=1, link_bandwidth=None)),
        (A, cluster(nodes=1, workers=1, local_bandwidth=None, link_bandwidth=None)),
        (unknown(), unknown()),
        (unknown(kind="cpu"), unknown(kind="cpu")),
        (unknown(device="A"), unknown(device="A")),
        (unknown(device="A"), unknown(device="A", flops=1e12)),
        (unknown(), unknown(interconnect="slow", nodes=1, workers=1)),
        (cluster(memory_bandwidth=None), A),
        (mock(speed=1e9, bandwidth="20MiB"), mock(speed=1e9, bandwidth="20MiB")),
    ],
)
def test_the_same_devices_have_the_very_same_fit(measured, asked):
    assert Transfer.between(measured, asked).applied(FIT) is FIT
    assert Transfer.between(measured, asked).words.startswith("nothing is scaled")


@pytest.mark.parametrize(
    ("measured", "asked"),
    [
        (unknown(device="A"), unknown(device="B")),
        (unknown(device="A"), unknown()),
        (unknown(), unknown(kind="cpu")),
        (unknown(), unknown(flops=1e12)),
        (unknown(device="A", flops=1e12), unknown(device="B", memory_bandwidth="1TB")),
        (mock(speed=1e9), mock()),
    ],
)
def test_devices_without_figures_are_not_guessed(measured, asked):
    with pytest.raises(BadInput, match="how fast the devices of c are") as caught:
        Transfer.between(measured, asked).applied(FIT)
    assert "`flops`" in caught.value.hint and "`memory_bandwidth`" in caught.value.hint


# What is scaled


def test_a_device_twice_as_fast_halves_the_time_an_example_and_keeps_the_overhead():
    found = to(flops=200e12, memory_bandwidth="2TB")
    assert found.per_example_s == pytest.approx(FIT.per_example_s / 2)
    assert found.overhead_s == FIT.overhead_s
    assert found.predict(ONE).value == pytest.approx(FIT.predict(ONE).value / 2, rel=0.05)
    assert (found.shapes, found.runs) == (FIT.shapes, FIT.runs)


def test_the_measured_fit_stays_as_it_was():
    parameters, covariance = FIT.posterior.parameters.copy(), FIT.posterior.covariance.copy()
    to(flops=200e12)
    assert (FIT.posterior.parameters == parameters).all() and (FIT.posterior.covariance == covariance).all()


def test_the_interval_holds_both_ends_of_what_binds_the_kernels():
    found = to(flops=400e12, memory_bandwidth="1.5TB")
    assert found.per_example_s == pytest.approx(FIT.per_example_s / np.sqrt(4 * 1.5))
    estimate, before = found.predict(ONE), FIT.predict(ONE)
    compute_s = FIT.per_example_s * ONE.micro_batch
    rest_s = before.value - compute_s
    assert estimate.low < rest_s + compute_s / 4 < rest_s + compute_s / 1.5 < estimate.high
    assert width(estimate) > width(before)


def test_the_deviation_that_is_stated_is_the_one_intervals_show():
    exact = fit_step_rows(rows(spread((1,), (512, 2048, 8192), repeats=4)))
    known, found = (fit.predict(StepShape(1, 1, 8192)) for fit in (exact, to(fit=exact)))
    stated = 2 * np.log(Transfer.between(A, cluster(device="B")).per_example.within)
    assert np.sqrt(width(found) ** 2 - width(known) ** 2) == pytest.approx(stated, rel=0.15)


def test_one_figure_says_less_than_two():
    both = Transfer.between(A, cluster(device="B", flops=200e12, memory_bandwidth="2TB"))
    one = Transfer.between(A, cluster(device="B", flops=200e12, memory_bandwidth=None))
    other = Transfer.between(A, cluster(device="B", flops=None, memory_bandwidth="2TB"))
    assert one.per_example == other.per_example
    assert one.per_example.value == pytest.approx(both.per_example.value)
    assert one.per_example.deviation > both.per_example.deviation


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["flops", "memory_bandwidth", "local_bandwidth", "link_bandwidth"]),
    st.lists(st.integers(10**9, 10**15), min_size=2, max_size=4, unique=True),
)
def test_no_step_is_longer_for_more_of_anything(key, sizes):
    fits = [to(**{key: size}) for size in sorted(sizes)]
    for shape in (ONE, NODES, StepShape(1, 4, 64)):
        times_s = [fit.predict(shape).value for fit in fits]
        assert all(more <= less * (1 + 1e-9) for less, more in itertools.pairwise(times_s))


def test_synchronisation_scales_with_its_own_links():
    inside = StepShape(1, 4, 8)
    wide, fast = to(A, link_bandwidth="20GB"), to(A, local_bandwidth="600GB")
    assert wide.predict(inside).value == pytest.approx(FIT.predict(inside).value)
    assert fast.predict(NODES).value == pytest.approx(FIT.predict(NODES).value)
    assert wide.predict(NODES).value == pytest.approx(FIT.predict(NODES).value - LINK_S / 2, rel=0.15)
    assert fast.predict(inside).value < 0.95 * FIT.predict(inside).value


def test_a_wider_link_of_the_same_device_scales_nothing_else():
    transfer = Transfer.between(A, cluster(link_bandwidth="20GB"))
    assert transfer.link_sync.value == pytest.approx(0.5) and transfer.link_sync.deviation > 0.2
    assert transfer.per_example == transfer.overhead == transfer.local_sync == Factor()


@pytest.mark.parametrize("missing", ["measured", "asked"])
def test_an_unknown_link_leaves_the_synchronisation_and_widens_it(missing):
    measured, asked = A, cluster(device="B", link_bandwidth=None)
    if missing == "measured":
        measured, asked = cluster(link_bandwidth=None), cluster(device="B")
    transfer = Transfer.between(measured, asked)
    assert transfer.link_sync.value == 1 and transfer.link_sync.deviation > 0.5
    assert width(transfer.applied(FIT).predict(NODES)) > 1.3 * width(to().predict(NODES))


def test_another_interconnect_without_figures_is_unknown():
    fields = {"local_bandwidth": None, "link_bandwidth": None}
    here, there = (cluster(**fields, interconnect=name) for name in ("Ethernet", "InfiniBand"))
    assert Transfer.between(here, here).link_sync == Factor()
    assert Transfer.between(here, there).link_sync.deviation > 0.5


def test_node_counts_that_were_not_measured_are_drawn_from_the_scaled_ones():
    fresh = StepShape(8, 32, 8)
    wide = to(link_bandwidth="40GB")
    assert wide.predict(fresh).value < 0.7 * to().predict(fresh).value
    # Levels across nodes are off together: one more node count does not average their error away.
    levels = wide.posterior.layout.levels
    added = (wide.posterior.covariance - FIT.posterior.covariance)[levels, levels]
    assert added[1, 2] == pytest.approx(added[1, 1]) == pytest.approx(added[2, 2])
    assert added[0, 1] == pytest.approx(0) and added[0, 0] > 0


@pytest.mark.parametrize("known", [spread((1,)), [StepShape(1, 1, 64)]], ids=["one worker", "one run"])
def test_runs_that_synchronised_nothing_are_scaled_too(known):
    alone = fit_step_rows(rows(known))
    found = to(fit=alone, flops=200e12, memory_bandwidth="2TB")
    for shape in (StepShape(1, 1, 64), StepShape(1, 4, 64), NODES):
        estimate = found.predict(shape)
        assert 0 < estimate.low < estimate.value < estimate.high < np.inf
        assert estimate.value < alone.predict(shape).value


def test_emulated_devices_and_links_are_scaled_by_what_they_emulate():
    transfer = Transfer.between(mock(speed=1e9, bandwidth="20MiB"), mock(speed=4e9, bandwidth="10MiB"))
    assert transfer.per_example.value == pytest.approx(1 / 4)
    assert transfer.link_sync.value == pytest.approx(2)


def test_what_is_scaled_is_said():
    said = Transfer.between(A, cluster(name="new", device="B", flops=200e12, memory_bandwidth="2TB")).words
    assert said == (
        "step times of c scaled to new: time an example x 0.5 (within 1.28 x), "
        "fixed time of a pass x 1 (within 1.64 x), synchronisation inside a node x 1 (within 1.39 x), "
        "synchronisation across nodes x 1 (within 1.39 x); 90%"
    )


def test_links_that_one_of_the_clusters_has_not_are_not_spoken_of():
    assert "synchronisation" not in Transfer.between(A, cluster(device="B", workers=1, nodes=1)).words
    assert "across" not in Transfer.between(cluster(nodes=1), cluster(device="B")).words


# Against truths


def between_the_ratios(draw, flops, memory, local, link, _):
    share = draw.uniform()
    near = np.exp(draw.normal(0, 0.15, 3))
    return flops**-share * memory ** (share - 1), near[0], near[1] / local, near[2] / link


def as_stated(draw, flops, memory, local, link, transfer):
    factors = (transfer.per_example, transfer.overhead, transfer.local_sync, transfer.link_sync)
    return [factor.value * np.exp(factor.deviation * draw.normal()) for factor in factors]


@pytest.mark.parametrize(("truth", "most"), [(between_the_ratios, 1.0), (as_stated, 0.97)])
def test_intervals_hold_a_fresh_run_on_another_device(truth, most):
    asked = [
        StepShape(1, 1, 256),
        StepShape(1, 4, 64),
        StepShape(1, 4, 1024, 2),
        NODES,
        StepShape(4, 16, 512),
    ]
    held = np.zeros(len(asked))
    draws = 200
    for seed in range(draws):
        draw = np.random.default_rng([seed, 5])
        flops, memory, local, link = ratios = np.exp(draw.uniform(-1, 1.5, 4))
        there = cluster(
            device="B",
            flops=flops * 100e12,
            memory_bandwidth=int(memory * 1e12),
            local_bandwidth=int(local * 300e9),
            link_bandwidth=int(link * 10e9),
        )
        transfer = Transfer.between(A, there)
        parts = truth(draw, *ratios, transfer)
        fit = transfer.applied(fit_step_rows(rows(KNOWN, true_s, NOISE, seed)))
        for i, estimate in enumerate(fit.predict_all(asked)):
            fresh_s = true_s(asked[i], *parts) * np.exp(NOISE * draw.normal())
            held[i] += estimate.low <= fresh_s <= estimate.high
    assert 0.85 * draws <= held.mean() <= most * draws
    assert (held >= 0.8 * draws).all()
