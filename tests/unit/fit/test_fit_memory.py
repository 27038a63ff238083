import numpy as np
import pytest
from fit_records import memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.fit.hinge import HingeFit as MemoryFit
from scaler.fit.memory import fit_memory, memory_for

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MIB = 2**20
FLOOR, FIXED, PER_EXAMPLE, GRADIENTS = 20 * MIB, 12 * MIB, 0.25 * MIB, 3 * MIB
LADDER = (4, 8, 16, 32, 64, 128, 256)
HUGE = 10**15


def true_peak(micro_batch: int, accumulation: int = 1) -> float:
    return max(FLOOR, FIXED + PER_EXAMPLE * micro_batch) + GRADIENTS * (accumulation > 1)


def peaks(workers=1, zero_stage=0, ladder=LADDER, capacity_bytes=HUGE, wobble=None):
    factors = np.ones(len(ladder)) if wobble is None else wobble
    return [
        memory(BatchPlan.equal(m, 1, workers, zero_stage), true_peak(m) * factor, capacity_bytes)
        for m, factor in zip(ladder, factors, strict=True)
    ]


def accumulating(micro_batch=8, workers=1, peak=None):
    return memory(BatchPlan.equal(micro_batch, 2, workers), peak or true_peak(micro_batch, 2), HUGE)


def cluster(device_memory: int = HUGE, margin: float = 0.0, reserve: int = 0) -> Cluster:
    return Cluster(
        kind="mock", workers=(1, 8), device_memory_bytes=device_memory, margin=margin, reserve_bytes=reserve
    )


def curve(**changes) -> MemoryFit:
    data = {
        "floor_bytes": FLOOR,
        "fixed_bytes": FIXED,
        "per_example_bytes": PER_EXAMPLE,
        "accumulating_bytes": GRADIENTS,
        "spread_bytes": None,
        "largest_measured": 256,
        "smallest_failed": None,
        "capacity_bytes": HUGE,
        "samples": 7,
    }
    # Whatever else a curve holds has the value of one fitted without failures.
    return fit_memory(peaks())[0, 1].model_copy(update=data | changes)


def test_floor_fixed_and_per_example_are_recovered():
    fit = fit_memory(peaks())[0, 1]
    assert fit.floor_bytes == pytest.approx(FLOOR)
    assert fit.fixed_bytes == pytest.approx(FIXED)
    assert fit.per_example_bytes == pytest.approx(PER_EXAMPLE)
    assert fit.accumulating_bytes == 0
    assert (fit.largest_measured, fit.smallest_failed, fit.samples) == (256, None, 7)
    for micro_batch in (1, 8, 50, 200, 1000):
        assert fit.peak_bytes(micro_batch).value == pytest.approx(true_peak(micro_batch))


def test_wobbling_peaks_are_recovered_within_their_wobble():
    wobble = 1 + 0.01 * np.random.default_rng(0).normal(size=len(LADDER))
    fit = fit_memory(peaks(wobble=wobble))[0, 1]
    for micro_batch in (*LADDER, 512):
        assert fit.peak_bytes(micro_batch).value == pytest.approx(true_peak(micro_batch), rel=0.05)


def test_peaks_on_a_line_have_no_floor_to_find():
    records = [memory(BatchPlan.equal(m, 1, 1), MIB * (10 + m), HUGE) for m in LADDER]
    fit = fit_memory(records)[0, 1]
    for micro_batch in LADDER:
        assert fit.peak_bytes(micro_batch).value == pytest.approx(MIB * (10 + micro_batch))


def test_a_peak_never_falls_as_the_micro_batch_grows():
    records = [memory(BatchPlan.equal(m, 1, 1), MIB * (100 - k), HUGE) for k, m in enumerate(LADDER)]
    fit = fit_memory(records)[0, 1]
    predicted = [fit.peak_bytes(m).value for m in range(1, 1000)]
    assert predicted == sorted(predicted)


def test_gradients_held_while_accumulating_are_added():
    fit = fit_memory([*peaks(), accumulating(64)])[0, 1]
    assert fit.accumulating_bytes == pytest.approx(GRADIENTS)
    assert fit.peak_bytes(64, 2).value - fit.peak_bytes(64).value == pytest.approx(GRADIENTS)
    assert fit.peak_bytes(64, 8).value == fit.peak_bytes(64, 2).value


def test_accumulating_never_takes_memory_away():
    assert fit_memory([*peaks(), accumulating(64, peak=MIB)])[0, 1].accumulating_bytes == 0


def test_a_spread_needs_more_points_than_the_curve_has_numbers():
    wobble = 1 + 0.01 * np.random.default_rng(1).normal(size=len(LADDER))
    for count in range(1, len(LADDER) + 1):
        fit = fit_memory(peaks(ladder=LADDER[:count], wobble=wobble[:count]))[0, 1]
        estimate = fit.peak_bytes(8)
        assert estimate.is_identified is (count > 3)
        if estimate.is_identified:
            assert 0 <= estimate.low < estimate.value < estimate.high


@quiet
@given(
    device_memory=st.integers(1 * MIB, 300 * MIB),
    margin=st.floats(0, 1),
    reserve=st.integers(0, MIB - 1),
    accumulation=st.integers(1, 4),
    failed=st.none() | st.integers(1, 2000),
    largest=st.integers(1, 300),
)
def test_the_largest_micro_batch_fits_and_one_more_does_not(
    device_memory, margin, reserve, accumulation, failed, largest
):
    fit = curve(largest_measured=largest, capacity_bytes=device_memory)
    if failed is not None:
        failures = [memory(BatchPlan.equal(failed, 1, 1), None)]
        measured = fit_memory([*peaks(ladder=(1,)), *failures], device_memory)[0, 1]
        fit = measured.model_copy(
            update=fit.model_dump(include={"floor_bytes", "fixed_bytes", "per_example_bytes"})
            | {"accumulating_bytes": GRADIENTS, "largest_measured": largest}
        )
    found = fit.max_micro_batch(cluster(device_memory, margin, reserve), accumulation)

    def fits(micro_batch):
        return true_peak(micro_batch, accumulation) * (1 + margin) + reserve <= device_memory

    cap = min(4 * largest, failed - 1 if failed is not None else 2**62)
    assert 0 <= found <= cap
    assert found == 0 or fits(found)
    assert found == cap or not fits(found + 1)


def test_no_micro_batch_fits_where_the_model_itself_does_not():
    assert curve(capacity_bytes=FLOOR // 2).max_micro_batch(cluster()) == 0
    assert curve(capacity_bytes=FLOOR // 2).max_micro_batch(cluster(), accumulation=2) == 0


def test_the_guess_stops_at_four_times_what_was_measured():
    assert curve(largest_measured=10).max_micro_batch(cluster()) == 40


def test_what_failed_is_not_tried_again():
    failures = [memory(BatchPlan.equal(m, 1, 1), None) for m in (600, 300)]
    fit = fit_memory([*peaks(), *failures])[0, 1]
    assert fit.smallest_failed == 300
    assert fit.max_micro_batch(cluster()) == 299


def test_what_had_to_release_cached_memory_is_not_tried_again():
    released = memory(BatchPlan.equal(300, 1, 1), true_peak(300), HUGE).model_copy(update={"retries": 1})
    fit = fit_memory([*peaks(), released])[0, 1]
    assert fit.smallest_failed == 300
    assert fit.max_micro_batch(cluster()) == 299


def test_failures_count_for_their_own_workers_and_stage():
    failures = [memory(BatchPlan.equal(8, 1, 2), None), memory(BatchPlan.equal(4, 1, 1, 2), None)]
    fit = fit_memory([*peaks(), *failures])[0, 1]
    assert fit.smallest_failed is None
    assert fit.max_micro_batch(cluster()) > 256


def test_running_out_while_accumulating_leaves_what_fits_in_one_pass():
    failed = memory(BatchPlan.equal(8, 2, 1), None)
    fit = fit_memory([*peaks(), failed])[0, 1]
    assert fit.max_micro_batch(cluster()) >= 256
    assert fit.max_micro_batch(cluster(), accumulation=2) < 8


def test_there_is_one_curve_per_stage_and_worker_count():
    records = [*peaks(), *peaks(workers=2), *peaks(workers=2, zero_stage=1)]
    assert set(fit_memory(records)) == {(0, 1), (0, 2), (1, 2)}


def test_the_capacity_is_what_is_given_or_else_the_smallest_device():
    records = [*peaks(ladder=(4, 8), capacity_bytes=300), *peaks(ladder=(16,), capacity_bytes=200)]
    assert fit_memory(records)[0, 1].capacity_bytes == 200
    assert fit_memory(records, 77)[0, 1].capacity_bytes == 77


def test_uneven_plans_count_by_their_largest_pass():
    uneven = memory(BatchPlan(micro_batches=(719, 718)), 5 * MIB, HUGE)
    assert fit_memory([uneven])[0, 2].largest_measured == 719


@pytest.mark.parametrize(
    "records",
    [
        [],
        [memory(BatchPlan.equal(8, 1, 1), None, HUGE), memory(BatchPlan.equal(1, 1, 1), None, HUGE)],
        [accumulating(8)],
        [memory(BatchPlan.equal(8, 1, 1), MIB)],
    ],
    ids=["nothing", "only out of memory", "only accumulating", "no capacity known"],
)
def test_without_evidence_there_is_no_curve(records):
    assert fit_memory(records) == {}


def test_the_largest_measured_worker_count_not_above_is_used():
    fits = fit_memory([*peaks(workers=1), *peaks(workers=2), *peaks(workers=8), *peaks(2, zero_stage=3)])
    chosen = {workers: memory_for(fits, workers) for workers in range(1, 11)}
    assert chosen == {w: fits[0, 1 if w == 1 else 2 if w < 8 else 8] for w in range(1, 11)}
    assert memory_for(fits, 4, zero_stage=3) is fits[3, 2]


def test_fewer_workers_than_measured_have_no_curve():
    fits = fit_memory(peaks(workers=4))
    assert memory_for(fits, 3) is None
    assert memory_for(fits, 4, zero_stage=1) is None
    assert memory_for({}, 1) is None
