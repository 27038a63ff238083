"""A small study by hand: records of every kind."""

import datetime

from scaler.batch import BatchPlan
from scaler.records import (
    ConfirmationRecord,
    ConvergenceRecord,
    Environment,
    Evaluation,
    MemoryRecord,
    NoiseRecord,
    ThroughputRecord,
    WorkloadRecord,
)
from scaler.stats import Estimate

MIB = 2**20
CAPACITY = 256 * MIB
EVIL = "<script>alert(1)</script>"


def seen(task: str, seed: int = 0) -> dict:
    return {
        "task": task,
        "seed": seed,
        "taken_at": datetime.datetime(2025, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "environment": Environment(
            device="mock <0>",
            world_size=4,
            machine="Linux x86_64",
            cpu_count=4,
            versions={"python": "3.11.2", "torch": "2.9.0"},
        ),
    }


def memory_records() -> list[MemoryRecord]:
    records = []
    for workers in (1, 2):
        for k in range(3, 12):
            peak = int(max(20 * MIB, (12 + 4 * (workers > 1)) * MIB + 0.2 * MIB * 2**k))
            out = peak > CAPACITY
            records.append(
                MemoryRecord(
                    **seen(f"m{workers}-{k}"),
                    plan=BatchPlan.equal(2**k, 1, workers),
                    out_of_memory=out,
                    peak_bytes=None if out else peak,
                    capacity_bytes=CAPACITY,
                )
            )
            if out:
                break
    accumulating = BatchPlan.equal(8, 2, 1)
    records.append(
        MemoryRecord(
            **seen("ma"), plan=accumulating, out_of_memory=False, peak_bytes=24 * MIB, capacity_bytes=CAPACITY
        )
    )
    return records


def throughput_records() -> list[ThroughputRecord]:
    records = []
    for workers in (1, 2, 4):
        for micro_batch in (8, 32, 128, 512):
            for seed, wobble in enumerate((0.97, 1.04)):
                step_s = wobble * (0.002 + 2e-5 * micro_batch + 0.0008 * (workers.bit_length() - 1))
                records.append(
                    ThroughputRecord(
                        **seen(f"t{workers}-{micro_batch}-{seed}", seed),
                        plan=BatchPlan.equal(micro_batch, 1, workers),
                        step_times_s=(9.0, step_s, 1.1 * step_s, 0.9 * step_s),
                        warmup_steps=1,
                    )
                )
    return records


def trial(batch: int, rate: float, seed: int, examples: int, reached: bool = True) -> ConvergenceRecord:
    evaluations = range(1, 9)
    return ConvergenceRecord(
        **seen(f"c{batch}-{rate}-{seed}", seed),
        plan=BatchPlan.equal(batch, 1, 1),
        learning_rate=rate,
        warmup_examples=0,
        dataset_examples=10_000,
        stop="reached" if reached else "limit",
        examples=examples,
        steps=examples // batch,
        curve=tuple(
            Evaluation(
                examples=examples * i // 8,
                train_time_s=0.1 * i,
                metric=(0.95 if reached else 0.6) - 0.5 / 4**i,
            )
            for i in evaluations
        ),
    )


def convergence_records() -> list[ConvergenceRecord]:
    records = []
    for batch in (32, 64, 128, 256, 512, 1024):
        best = 0.05 * (batch / 32) ** 0.5
        for rate, penalty in ((best / 3, 1.6), (best, 1.0), (best * 3, 1.3)):
            for seed, wobble in enumerate((1.06, 0.95)):
                examples = int(10_000 * (1 + batch / 300) * penalty * wobble)
                records.append(trial(batch, float(f"{rate:.4g}"), seed, examples))
    records += [trial(2048, 0.4, seed, 120_000, reached=False) for seed in (0, 1)]
    return records


def noise_record() -> NoiseRecord:
    return NoiseRecord(
        **seen("n"),
        plan=BatchPlan.equal(16, 1, 4),
        learning_rate=0.05,
        small_batch=16.0,
        small_squared_norms=(3.0, 3.1, 2.9),
        big_squared_norms=(1.0, 1.2, 1.1),
    )


def confirmation_record() -> ConfirmationRecord:
    run = trial(512, 0.2, 7, 27_000).model_dump() | {"kind": "confirmation", "step_times_s": (0.006, 0.007)}
    return ConfirmationRecord(**run)


def estimate(value: float, spread: float | None = 0.1, samples: int = 24) -> Estimate:
    low, high = (None, None) if spread is None else (value * (1 - spread), value * (1 + spread))
    return Estimate(value=value, low=low, high=high, samples=samples, method="t on the log scale")


def workload_record() -> WorkloadRecord:
    return WorkloadRecord(
        **seen("w"),
        name="digits",
        reference_global_batch=64,
        reference_learning_rate=0.07,
        reference_warmup_examples=1000,
        target_value=0.949,
        target_direction="max",
        train_examples=10_000,
        eval_examples=1_000,
        parameters=101_770,
        batch_statistics=(),
    )
