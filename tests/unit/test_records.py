import datetime
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scaler.batch import BatchPlan
from scaler.records import (
    RECORD,
    ConfirmationRecord,
    ConvergenceRecord,
    Environment,
    Evaluation,
    MemoryRecord,
    NoiseRecord,
    PredictedCurve,
    PredictedPeak,
    Prediction,
    PredictionRecord,
    ThroughputRecord,
    WorkloadRecord,
    environment,
    now,
    versions,
)

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SEEN = {
    "task": "t1",
    "seed": 3,
    "taken_at": datetime.datetime(2025, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC),
    "environment": Environment(
        device="cpu", world_size=2, machine="Linux x86_64", cpu_count=4, versions={"python": "3.11"}
    ),
}
EVEN = BatchPlan.equal(64, 2, 4, zero_stage=1)
UNEVEN = BatchPlan(micro_batches=(719, 718))
TRAINED = {
    "learning_rate": 0.1,
    "warmup_examples": 0,
    "dataset_examples": 1437,
    "stop": "reached",
    "examples": 2874,
    "steps": 2,
    "curve": (
        Evaluation(examples=1437, train_time_s=0.5, metric=0.9),
        Evaluation(examples=2874, train_time_s=1.0, metric=None),
    ),
}
MEMORY = MemoryRecord(**SEEN, plan=EVEN, out_of_memory=False, peak_bytes=2**40, capacity_bytes=2**41)
OUT_OF_MEMORY = MemoryRecord(**SEEN, plan=EVEN, out_of_memory=True, in_use_bytes=2**39, outside_bytes=0)
RELEASING = MemoryRecord(
    **SEEN,
    plan=UNEVEN,
    out_of_memory=False,
    peak_bytes=2**40,
    rank_peak_bytes=(2**40, 2**39),
    outside_bytes=2**29,
    retries=3,
)
PEAK = PredictedPeak(
    micro_batch=7,
    allocated_bytes=60,
    reserved_bytes=80,
    peak_bytes=100,
    items={"parameters": 60, "rounding": 20, "context": 20},
    regime="forward",
    host_items={"process": 5},
)
CURVE = PredictedCurve(
    workers=4,
    zero_stage=3,
    accumulating=True,
    max_micro_batch=7,
    fixed_bytes=20,
    micro_batches=(1, 7),
    peak_bytes=(50, 100),
    bills=(PEAK,),
)
PREDICTION = PredictionRecord(
    **SEEN,
    prediction=Prediction(curves=(CURVE,), confidence="medium", notes=("examples differ",)),
    capacity_bytes=2**41,
)
UNTRACED = PredictionRecord(
    **SEEN, prediction=Prediction(curves=(), confidence="low", notes=("1 (Leaves): no values",))
)
THROUGHPUT = ThroughputRecord(
    **SEEN,
    plan=UNEVEN,
    nodes=2,
    step_times_s=(0.1, 0.1 + 0.2, 1e-9),
    warmup_steps=1,
    phase_times_s={"data": (0.01, 0.02, 0.0), "sync": (0.0, 0.1, 1e-10)},
    outliers=(1,),
    rank_compute_s=(0.09, 0.08),
)
NOISE = NoiseRecord(
    **SEEN,
    plan=EVEN,
    learning_rate=0.05,
    small_batch=718.5,
    small_squared_norms=(1.5, 2.5),
    big_squared_norms=(0.5, 0.25),
)
CONVERGENCE = ConvergenceRecord(**SEEN, plan=UNEVEN, **TRAINED)
CONFIRMATION = ConfirmationRecord(**SEEN, plan=UNEVEN, **TRAINED, step_times_s=(0.5, 0.25))
WORKLOAD = WorkloadRecord(
    name="net",
    reference_global_batch=32,
    reference_learning_rate=0.1,
    reference_warmup_examples=0,
    target_value=0.9,
    target_direction="max",
    **SEEN,
    train_examples=1437,
    eval_examples=360,
    parameters=9_000,
    batch_statistics=("net.norm",),
)
ALL = [
    *(WORKLOAD, PREDICTION, UNTRACED, MEMORY, OUT_OF_MEMORY, RELEASING),
    *(THROUGHPUT, NOISE, CONVERGENCE, CONFIRMATION),
]


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.kind)
def test_every_record_comes_back_from_json_as_its_own_kind(record):
    found = RECORD.validate_json(record.model_dump_json())
    assert type(found) is type(record)
    assert found == record
    assert RECORD.validate_python(record.model_dump()) == record


def test_a_confirmation_is_told_from_a_trial():
    assert json.loads(CONFIRMATION.model_dump_json())["kind"] == "confirmation"
    assert json.loads(CONVERGENCE.model_dump_json())["kind"] == "convergence"
    data = CONVERGENCE.model_dump() | {"kind": "confirmation"}
    with pytest.raises(ValidationError, match="step_times_s"):
        RECORD.validate_python(data)
    with pytest.raises(ValidationError, match="step_times_s"):
        RECORD.validate_python(CONFIRMATION.model_dump() | {"kind": "convergence"})


@quiet
@given(
    st.lists(st.floats(min_value=0, exclude_min=True, allow_infinity=False), max_size=8),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8),
    st.lists(st.integers(1, 10**9), min_size=1, max_size=4),
    st.integers(),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_every_number_comes_back_exactly(times, norms, micro_batches, seed, task):
    seen = SEEN | {"seed": seed, "task": task}
    plan = BatchPlan(micro_batches=tuple(micro_batches))
    for record in (
        ThroughputRecord(**seen, plan=plan, step_times_s=times, warmup_steps=0),
        NoiseRecord(
            **seen,
            plan=plan,
            learning_rate=0.1,
            small_batch=1,
            small_squared_norms=norms,
            big_squared_norms=norms,
        ),
    ):
        assert RECORD.validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.kind)
def test_records_are_frozen(record):
    with pytest.raises(ValidationError, match="frozen"):
        record.seed = 4
    with pytest.raises(ValidationError, match="frozen"):
        record.environment.device = "cuda"


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.kind)
def test_unknown_keys_are_refused(record):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        RECORD.validate_python(record.model_dump() | {"colour": "red"})


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.kind)
def test_missing_keys_are_refused(record):
    needed = {name for name, field in type(record).model_fields.items() if field.is_required()}
    assert {"task", "seed", "taken_at", "environment"} <= needed
    for key in needed | {"kind"}:
        data = record.model_dump()
        del data[key]
        with pytest.raises(ValidationError, match=key):
            RECORD.validate_python(data)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("record", "change"),
    [
        (THROUGHPUT, lambda bad: {"step_times_s": (0.1, bad)}),
        (THROUGHPUT, lambda bad: {"phase_times_s": {"sync": (bad,)}}),
        (THROUGHPUT, lambda bad: {"rank_compute_s": (bad,)}),
        (NOISE, lambda bad: {"small_squared_norms": (bad,)}),
        (NOISE, lambda bad: {"learning_rate": bad}),
        (CONVERGENCE, lambda bad: {"learning_rate": bad}),
        (CONVERGENCE, lambda bad: {"curve": ({"examples": 1, "train_time_s": 1.0, "metric": bad},)}),
        (CONFIRMATION, lambda bad: {"step_times_s": (bad,)}),
    ],
)
def test_numbers_that_are_not_finite_are_refused(record, change, bad):
    with pytest.raises(ValidationError):
        RECORD.validate_python(record.model_dump() | change(bad))


@pytest.mark.parametrize(
    ("record", "change"),
    [
        (WORKLOAD, {"train_examples": 0}),
        (MEMORY, {"peak_bytes": 0}),
        (MEMORY, {"peak_bytes": -1}),
        (MEMORY, {"capacity_bytes": 0}),
        (MEMORY, {"rank_peak_bytes": (0,)}),
        (MEMORY, {"outside_bytes": -1}),
        (MEMORY, {"in_use_bytes": -1}),
        (MEMORY, {"retries": -1}),
        (PREDICTION, {"prediction": {"curves": (), "confidence": "certain"}}),
        (
            PREDICTION,
            {"prediction": {"curves": (CURVE.model_dump() | {"zero_stage": 4},), "confidence": "low"}},
        ),
        (PREDICTION, {"prediction": {"curves": (), "confidence": "low", "curve": ()}}),
        (THROUGHPUT, {"step_times_s": (0.0,)}),
        (THROUGHPUT, {"warmup_steps": -1}),
        (THROUGHPUT, {"nodes": 0}),
        (THROUGHPUT, {"phase_times_s": {"idle": (0.1,)}}),
        (THROUGHPUT, {"phase_times_s": {"data": (-0.1,)}}),
        (THROUGHPUT, {"outliers": (-1,)}),
        (THROUGHPUT, {"rank_compute_s": (0.0,)}),
        (NOISE, {"small_batch": 0}),
        (CONVERGENCE, {"stop": "bored"}),
        (CONVERGENCE, {"examples": -1}),
        (CONVERGENCE, {"learning_rate": 0}),
        (CONVERGENCE, {"plan": {"micro_batch": 64, "workers": 2, "global_batch": 100}}),
        (CONVERGENCE, {"kind": "divination"}),
    ],
)
def test_impossible_values_are_refused(record, change):
    with pytest.raises(ValidationError):
        RECORD.validate_python(record.model_dump() | change)


@pytest.mark.parametrize(
    ("stop", "reached"), [("reached", True), ("limit", False), ("diverged", False), ("deadline", False)]
)
def test_only_a_run_that_reached_the_target_is_uncensored(stop, reached):
    assert CONVERGENCE.model_copy(update={"stop": stop}).reached is reached


def test_the_environment_is_described():
    found = environment("cpu", 2)
    assert (found.device, found.world_size) == ("cpu", 2)
    assert found.machine
    assert found.cpu_count >= 1
    assert found.versions == versions()
    assert {"python", "numpy"} <= set(versions())


def test_observations_are_dated_in_utc():
    assert now().utcoffset() == datetime.timedelta(0)


@pytest.mark.parametrize(("record", "too_large"), [(MEMORY, False), (OUT_OF_MEMORY, True), (RELEASING, True)])
def test_a_plan_that_ran_out_or_had_to_release_memory_is_too_large(record, too_large):
    assert record.too_large is too_large


@pytest.mark.parametrize(
    "change",
    [
        {"items": PEAK.items | {"activation": 1}},
        {"items": PEAK.items | {"parameters": -1}},
        {"host_items": {"swap": 1}},
        {"regime": "evaluation"},
        {"micro_batch": 0},
    ],
)
def test_a_bill_has_known_items_and_parts_of_a_step(change):
    with pytest.raises(ValidationError):
        PredictedPeak.model_validate(PEAK.model_dump() | change)


def test_the_records_of_before_have_no_more_than_a_peak():
    """A run of an earlier version is read: what it did not say is absent."""
    data = MEMORY.model_dump()
    for key in ("rank_peak_bytes", "outside_bytes", "in_use_bytes", "retries"):
        del data[key]
    assert RECORD.validate_python(data) == MEMORY


def test_the_step_times_of_before_were_not_split():
    data = THROUGHPUT.model_dump()
    for key in ("nodes", "phase_times_s", "outliers", "rank_compute_s"):
        del data[key]
    found = RECORD.validate_python(data)
    assert (found.step_times_s, found.nodes) == (THROUGHPUT.step_times_s, 1)
    assert (found.phase_times_s, found.outliers, found.rank_compute_s) == ({}, (), ())
