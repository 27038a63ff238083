import numpy as np
import pytest
from fit_records import SEEN, covers_90_percent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.fit.hinge import HingeFit
from scaler.fit.memory import fit_memory
from scaler.fit.traced import TracedFit
from scaler.records import MemoryRecord, PredictedCurve, PredictedPeak, Prediction, PredictionRecord

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MIB = 2**20
HUGE = 10**15
FLOOR, FIXED, PER_EXAMPLE, GRADIENTS, OUTSIDE = 20 * MIB, 12 * MIB, MIB // 4, 3 * MIB, 5 * MIB
SIZES = (1, 32, 64, 128, 256, 512, 1024)  # the floor ends at 32


def held(micro_batch: float, accumulation: int = 1) -> float:
    """What is predicted of the allocator."""
    return max(FLOOR, FIXED + PER_EXAMPLE * micro_batch) + GRADIENTS * (accumulation > 1)


def predicted(workers=1, zero_stage=0, accumulating=False, sizes=SIZES) -> PredictedCurve:
    peaks = tuple(round(held(m, 1 + accumulating)) + OUTSIDE for m in sizes)
    bill = PredictedPeak(
        micro_batch=1,
        allocated_bytes=FLOOR,
        reserved_bytes=FLOOR,
        peak_bytes=FLOOR + OUTSIDE,
        items={"parameters": FLOOR, "context": OUTSIDE},
        regime="optimizer",
        host_items={},
    )
    return PredictedCurve(
        workers=workers,
        zero_stage=zero_stage,
        accumulating=accumulating,
        max_micro_batch=0,
        fixed_bytes=OUTSIDE,
        micro_batches=tuple(sizes),
        peak_bytes=peaks,
        bills=(bill,),
    )


def prediction(*curves: PredictedCurve) -> PredictionRecord:
    return PredictionRecord(**SEEN, prediction=Prediction(curves=curves, confidence="high"))


def probe(micro_batch, ratio=1.0, accumulation=1, outside=OUTSIDE, workers=1, **fields) -> MemoryRecord:
    """A device that holds `ratio` times what is predicted, and `outside` beside it."""
    peak = round(held(micro_batch, accumulation) * ratio) + (outside if outside is not None else OUTSIDE)
    data = {
        "plan": BatchPlan.equal(micro_batch, accumulation, workers),
        "out_of_memory": False,
        "peak_bytes": peak,
        "outside_bytes": outside,
    }
    return MemoryRecord(**SEEN | data | fields)


def failure(micro_batch, accumulation=1, **fields) -> MemoryRecord:
    plan = BatchPlan.equal(micro_batch, accumulation, 1)
    return MemoryRecord(**SEEN | {"plan": plan, "out_of_memory": True} | fields)


def fitted(*records, capacity_bytes=HUGE) -> TracedFit:
    both = prediction(predicted(), predicted(accumulating=True))
    fit = fit_memory([both, *records], capacity_bytes)[0, 1]
    assert isinstance(fit, TracedFit)
    return fit


def cluster(device_memory: int = HUGE, margin: float = 0.0, reserve: int = 0) -> Cluster:
    return Cluster(
        kind="mock", workers=(1, 8), device_memory_bytes=device_memory, margin=margin, reserve_bytes=reserve
    )


def room(micro_batch: int, ratio: float = 1.0, accumulation: int = 1) -> int:
    """A device on which that micro-batch just fits."""
    return round(held(micro_batch, accumulation) * ratio) + OUTSIDE + 1


# The curve and its correction


def test_without_a_probe_the_prediction_stands():
    fit = fitted()
    assert fit.samples == 0
    for micro_batch in (1, 20, 32, 100, 1000):
        estimate = fit.peak_bytes(micro_batch)
        assert estimate.value == pytest.approx(held(micro_batch) + OUTSIDE)
        assert not estimate.is_identified
        assert "not measured" in estimate.method


def test_between_predicted_sizes_peaks_lie_on_lines_and_beyond_on_the_last():
    fit = fitted()
    for micro_batch in (*range(33, 1024, 13), 1025, 2048, 10_000):
        assert fit.peak_bytes(micro_batch).value == pytest.approx(held(micro_batch) + OUTSIDE)


def test_one_probe_scales_every_size_by_measured_over_predicted():
    fit = fitted(probe(256, 1.04))
    assert (fit.samples, fit.largest_measured) == (1, 256)
    for micro_batch in (1, 64, 256, 1024, 4096):
        estimate = fit.peak_bytes(micro_batch)
        assert estimate.value == pytest.approx(1.04 * held(micro_batch) + OUTSIDE, rel=1e-6)
        assert (estimate.is_identified, estimate.samples) == (False, 1)


def test_the_ratio_is_the_nearest_probes_outside_of_them_and_lies_between_inside():
    fit = fitted(probe(64, 1.10), probe(512, 1.02))
    ratio = {m: (fit.peak_bytes(m).value - OUTSIDE) / held(m) for m in (1, 64, 288, 512, 4096)}
    assert ratio == pytest.approx({1: 1.10, 64: 1.10, 288: 1.06, 512: 1.02, 4096: 1.02}, rel=1e-6)


@quiet
@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(0.9, 1.1)), min_size=1, max_size=5))
def test_corrected_peaks_stay_within_the_measured_ratios(probes):
    fit = fitted(*(probe(size, ratio) for size, ratio in probes))
    lowest, highest = min(r for _, r in probes), max(r for _, r in probes)
    for size in range(1, 2000, 97):
        ratio = (fit.peak_bytes(size).value - OUTSIDE) / held(size)
        assert lowest - 1e-6 <= ratio <= highest + 1e-6
    for size, _ in probes:  # of several at one size, the largest counts
        most = max(ratio for at, ratio in probes if at == size)
        assert fit.peak_bytes(size).value == pytest.approx(held(size) * most + OUTSIDE, rel=1e-6)


def test_accumulating_has_a_curve_of_its_own():
    fit = fitted(probe(256, 1.04))
    for micro_batch in (1, 100, 2048):
        assert fit.peak_bytes(micro_batch, 2).value == pytest.approx(
            1.04 * held(micro_batch, 2) + OUTSIDE, rel=1e-6
        )
        assert fit.peak_bytes(micro_batch, 8).value == fit.peak_bytes(micro_batch, 2).value
    also = fitted(probe(256, 1.04, accumulation=2))
    assert also.peak_bytes(512).value == pytest.approx(1.04 * held(512) + OUTSIDE, rel=1e-6)


def test_without_an_accumulating_curve_the_single_one_is_used():
    fit = fit_memory([prediction(predicted()), probe(64)], HUGE)[0, 1]
    assert fit.peak_bytes(512, 2).value == fit.peak_bytes(512).value


def test_measured_outside_bytes_take_the_place_of_the_predicted_ones():
    fit = fitted(probe(64, outside=2 * OUTSIDE), probe(512, outside=3 * OUTSIDE))
    assert fit.outside_bytes == 3 * OUTSIDE
    assert fit.peak_bytes(2048).value == pytest.approx(held(2048) + 3 * OUTSIDE)
    assert fitted().outside_bytes == OUTSIDE


def test_what_lies_outside_is_known_even_where_the_device_ran_out():
    """Others hold most of the device: what is left is known from the first failure."""
    fit = fitted(failure(1000, outside_bytes=60 * MIB, in_use_bytes=100 * MIB), capacity_bytes=100 * MIB)
    assert fit.outside_bytes == 60 * MIB
    assert held(fit.max_micro_batch(cluster(100 * MIB))) <= 40 * MIB


def test_unequal_devices_are_corrected_by_the_one_that_takes_most_of_its_share():
    plan = BatchPlan(micro_batches=(64, 512))
    peaks = (round(held(64) * 1.05) + OUTSIDE, round(held(512) * 1.02) + OUTSIDE)
    record = probe(512, workers=2, plan=plan, peak_bytes=max(peaks), rank_peak_bytes=peaks)
    fit = fit_memory([prediction(predicted(workers=2)), record], HUGE)[0, 2]
    assert fit.peak_bytes(512).value == pytest.approx(held(512) * 1.05 + OUTSIDE, rel=1e-6)
    assert fit.peak_bytes(64).value == pytest.approx(held(64) * 1.05 + OUTSIDE, rel=1e-6)


def test_each_of_unequal_devices_has_its_own_largest():
    groups = [{"device": f"d{m}", "workers": 1, "device_memory": room(m)} for m in (100, 700)]
    uneven = Cluster.model_validate({"workers": 2, "kind": "mock", "devices": groups, "margin": 0.0})
    fit = fit_memory([prediction(predicted(workers=2))], uneven.capacity_bytes())[0, 2]
    limits = [fit.max_micro_batch(uneven, 1, uneven.capacity_bytes(rank)) for rank in range(2)]
    assert limits == [100, 700]


# The interval


def test_an_interval_needs_two_probes():
    assert not fitted(probe(64, 1.02)).peak_bytes(100).is_identified
    estimate = fitted(probe(64, 1.02), probe(512, 1.03)).peak_bytes(100)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.low > OUTSIDE  # which is measured, and has no interval


def test_probes_that_agree_leave_half_a_percent():
    estimate = fitted(probe(64, 1.02), probe(512, 1.02)).peak_bytes(512)
    half = np.log((estimate.high - OUTSIDE) / (estimate.value - OUTSIDE))
    assert half == pytest.approx(0.005, rel=0.01)


@pytest.mark.parametrize("probes", [2, 3, 5])
def test_the_interval_covers_a_new_probe_nine_times_in_ten(probes):
    generator = np.random.default_rng(7)
    sizes = (64, 128, 256, 512, 1024)[-probes:]
    hits, repeats = 0, 600
    for _ in range(repeats):
        *known, new = np.exp(generator.normal(0.03, 0.02, probes + 1))
        fit = fitted(*(probe(size, ratio) for size, ratio in zip(sizes, known, strict=True)))
        size = int(generator.integers(64, 2048))
        estimate = fit.peak_bytes(size)
        hits += estimate.low <= held(size) * new + OUTSIDE <= estimate.high
    assert covers_90_percent(hits, repeats), hits / repeats


# The largest that fits


@quiet
@given(
    capacity=st.integers(FLOOR, 400 * MIB),
    margin=st.floats(0, 1),
    reserve=st.integers(0, MIB),
    accumulation=st.integers(1, 4),
    ratio=st.floats(0.9, 1.1),
    largest=st.integers(1, 3000),
)
def test_the_largest_fits_and_one_more_does_not(capacity, margin, reserve, accumulation, ratio, largest):
    fit = fitted(probe(largest, ratio), capacity_bytes=capacity)
    limits = cluster(capacity, margin, reserve)
    found = fit.max_micro_batch(limits, accumulation)
    known = max(1024, largest)  # beyond what was predicted or measured nothing is promised
    assert 0 <= found <= known
    assert found == 0 or limits.fits(fit.peak_bytes(found, accumulation).value, capacity)
    assert found == known or not limits.fits(fit.peak_bytes(found + 1, accumulation).value, capacity)


def test_what_failed_is_not_tried_again():
    fit = fitted(probe(64), failure(600), failure(300))
    assert (fit.smallest_failed, fit.largest_measured) == (300, 64)
    assert fit.max_micro_batch(cluster()) == 64  # nothing between was tried


def test_running_out_while_accumulating_leaves_what_fits_in_one_pass():
    fit = fitted(probe(64), failure(300, accumulation=2))
    assert (fit.smallest_failed, fit.smallest_failed_accumulating) == (None, 300)
    assert fit.max_micro_batch(cluster()) == 1024
    assert fit.max_micro_batch(cluster(), accumulation=2) == 64


def test_after_a_failure_what_was_in_use_bounds_what_fits():
    """The device ran out at 1000 with room for 500 in use: it takes more there than the probe at 64 says."""
    in_use = room(500)
    bounded = fitted(probe(64), failure(1000, in_use_bytes=in_use), capacity_bytes=room(2000))
    found = bounded.max_micro_batch(cluster(room(2000)))
    assert bounded.in_use_bytes == in_use
    assert 64 <= found <= 500
    assert bounded.peak_bytes(found).value <= in_use


def test_a_size_that_was_measured_fits_whatever_was_in_use_at_a_failure():
    fit = fitted(probe(512), failure(600, in_use_bytes=room(100)), capacity_bytes=room(1000))
    assert fit.max_micro_batch(cluster(room(1000))) == 512


def test_a_size_that_had_to_release_cached_memory_is_too_large():
    fit = fitted(probe(64), probe(300, retries=1))
    assert (fit.smallest_failed, fit.largest_measured) == (300, 64)
    assert fit.max_micro_batch(cluster()) == 64  # nothing between was tried


def test_the_peak_of_such_a_size_corrects_nothing():
    """The device cut it off at what it had: it took less than it would have."""
    cut = probe(1000, retries=1, peak_bytes=round(held(1000) * 0.9) + OUTSIDE)
    fit = fitted(probe(64, 1.03), cut)
    assert fit.peak_bytes(900).value == pytest.approx(1.03 * held(900) + OUTSIDE, rel=1e-6)


@pytest.mark.parametrize("traced", [True, False])
def test_a_failure_on_a_smaller_device_says_nothing_of_a_larger_one(traced):
    probes = [probe(m, capacity_bytes=room(400)) for m in (64, 256)]
    records = [*probes, failure(420, capacity_bytes=room(400), in_use_bytes=room(390))]
    if traced:
        records.append(prediction(predicted()))
    fits = {capacity: fit_memory(records, capacity)[0, 1] for capacity in (room(200), room(400), room(900))}
    assert fits[room(900)].smallest_failed is None
    assert fits[room(900)].max_micro_batch(cluster(room(900))) in range(880, 902)
    assert fits[room(400)].max_micro_batch(cluster(room(400))) in range(256, 420)
    assert fits[room(200)].max_micro_batch(cluster(room(200))) in range(190, 202)


# Which fit


def test_a_prediction_is_used_where_there_is_one_and_a_hinge_elsewhere():
    curves = prediction(predicted(), predicted(workers=2), predicted(workers=2, zero_stage=1))
    records = [curves, probe(64), probe(64, workers=4), probe(8, workers=4)]
    kinds = {shape: type(fit) for shape, fit in fit_memory(records, HUGE).items()}
    assert kinds == {(0, 1): TracedFit, (0, 2): TracedFit, (1, 2): TracedFit, (0, 4): HingeFit}


def test_a_prediction_without_curves_leaves_the_hinge():
    bills_only = predicted(sizes=())
    for record in (prediction(), prediction(bills_only)):
        assert isinstance(fit_memory([record, probe(64), probe(8)], HUGE)[0, 1], HingeFit)
        assert fit_memory([record], HUGE) == {}


def test_without_a_capacity_a_prediction_alone_is_no_fit():
    assert fit_memory([prediction(predicted())]) == {}
    fit = fit_memory([prediction(predicted()), probe(64, capacity_bytes=room(300))])[0, 1]
    assert fit.capacity_bytes == room(300)


def test_probes_correct_their_own_workers_and_stage():
    curves = prediction(predicted(), predicted(workers=2))
    fits = fit_memory([curves, probe(64, 1.05), failure(300), probe(64, 1.01, workers=2)], HUGE)
    assert fits[0, 2].smallest_failed is None
    assert fits[0, 2].peak_bytes(64).value == pytest.approx(held(64) * 1.01 + OUTSIDE, rel=1e-6)
    assert fits[0, 1].peak_bytes(64).value == pytest.approx(held(64) * 1.05 + OUTSIDE, rel=1e-6)
