"""Records by hand for the fits, and the bounds that a coverage count is held to."""

import datetime

from scipy import stats

from scaler.batch import BatchPlan
from scaler.records import (
    ConvergenceRecord,
    Environment,
    MemoryRecord,
    NoiseRecord,
    PowersRecord,
    ThroughputRecord,
)

SEEN = {
    "task": "t",
    "seed": 0,
    "taken_at": datetime.datetime(2025, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    "environment": Environment(
        device="mock", world_size=4, machine="Linux x86_64", cpu_count=4, versions={"python": "3.11"}
    ),
}


def covers_90_percent(hits: int, repeats: int) -> bool:
    """Whether the exact 95% binomial interval of the coverage holds 90%."""
    interval = stats.binomtest(hits, repeats).proportion_ci(0.95, method="exact")
    return interval.low <= 0.90 <= interval.high


def memory(plan: BatchPlan, peak_bytes: float | None, capacity_bytes: int | None = None) -> MemoryRecord:
    """Without a peak, the device ran out."""
    return MemoryRecord(
        **SEEN,
        plan=plan,
        out_of_memory=peak_bytes is None,
        peak_bytes=None if peak_bytes is None else round(peak_bytes),
        capacity_bytes=capacity_bytes,
    )


def throughput(plan: BatchPlan, *step_times_s: float, warmup_steps: int = 0) -> ThroughputRecord:
    return ThroughputRecord(**SEEN, plan=plan, step_times_s=step_times_s, warmup_steps=warmup_steps)


def powers(power: int, rounds) -> PowersRecord:
    """`rounds` holds a row of five times for each round, of the sizes in the record's order."""
    return PowersRecord(
        **SEEN,
        micro_batches=(power - 1, power, power + 1, 3 * power // 2, 2 * power),
        step_times_s=tuple(tuple(map(float, own)) for own in zip(*rounds, strict=True)),
    )


def norms(small_batch: int, big_batch: int, small, big) -> NoiseRecord:
    return NoiseRecord(
        **SEEN,
        plan=BatchPlan.equal(small_batch, 1, big_batch // small_batch),
        learning_rate=0.1,
        small_batch=small_batch,
        small_squared_norms=tuple(map(float, small)),
        big_squared_norms=tuple(map(float, big)),
    )


def trial(batch: int, rate: float, examples: int, stop: str = "reached", seed: int = 0) -> ConvergenceRecord:
    return ConvergenceRecord(
        **SEEN | {"seed": seed},
        plan=BatchPlan.equal(batch, 1, 1),
        learning_rate=rate,
        warmup_examples=0,
        dataset_examples=10_000,
        stop=stop,
        examples=examples,
        steps=examples // batch,
        curve=(),
    )
