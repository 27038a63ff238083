"""A small study by hand: records of every kind and the configuration they lead to."""

import datetime

import pytest

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer, BatchConfig, Comparison, Confirmation, Findings, RuleOfThumb
from scaler.records import (
    ConfirmationRecord,
    ConvergenceRecord,
    Environment,
    Evaluation,
    MemoryRecord,
    NoiseRecord,
    Record,
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


def answer(workers: int) -> Answer:
    plan = BatchPlan.split(1437 if workers == 2 else 512, workers, 1000)
    step_s = 0.012 / workers
    return Answer(
        plan=plan,
        learning_rate=0.2,
        warmup_examples=1000,
        warmup_steps=2,
        step_time_s=estimate(step_s),
        samples_per_s=estimate(plan.global_batch / step_s),
        examples_to_target=estimate(27_070),
        steps_to_target=estimate(52.9),
        time_to_target_s=estimate(53 * step_s, None, samples=1) if workers == 1 else estimate(53 * step_s),
        peak_memory_bytes=None if workers == 4 else estimate(118 * MIB, 0.05),
        bound_by="critical batch",
        reasons={
            "global_batch": "the least predicted time to the target of 7 batches tried",
            "micro_batch": "the largest that splits the batch evenly; 256 MiB would hold 1,219 examples",
            "learning_rate": "the fewest examples to target of 3 rates tried, each with 2 seeds",
            "step_time": "fitted to 24 launches",
            "time_to_target": "steps to target times step time",
            "some_other": "a reason under a name that no line has",
        },
    )


@pytest.fixture
def records() -> list[Record]:
    workload = WorkloadRecord(
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
    return [
        workload,
        *memory_records(),
        *throughput_records(),
        noise_record(),
        *convergence_records(),
        confirmation_record(),
    ]


@pytest.fixture
def config() -> BatchConfig:
    cluster = Cluster(name="mock-4", workers=(1, 5), kind="mock", device_memory_bytes=CAPACITY)
    comparisons = (
        Comparison(quantity="step_time_s", predicted=estimate(0.003), observed=0.00312, inside=True),
        Comparison(quantity="samples_per_s", predicted=estimate(170_667.0), observed=9_000.0, inside=False),
        Comparison(quantity="examples_to_target", predicted=estimate(27_070, None, 1), observed=27_000),
    )
    return BatchConfig(
        workload="digits",
        cluster=cluster,
        chosen_workers=4,
        answers=tuple(answer(workers) for workers in (1, 2, 3, 4)),
        infeasible={5: "a global batch of 512 does not split over 5 workers"},
        findings=Findings(
            train_examples=10_000,
            parameters=101_770,
            noise_scale=estimate(412.0, 0.3),
            learning_rate_exponent=estimate(0.5, 0.2, 6),
            notes=("The critical batch is not identifiable: the curve has not bent.",),
        ),
        rules_of_thumb=(
            RuleOfThumb(
                rule="the largest batch that fits in memory",
                global_batch=4096,
                agrees=False,
                time_ratio=2.7,
                verdict="takes 2.7 times as long: examples grow faster than throughput beyond 512",
            ),
            RuleOfThumb(rule="32 per worker", global_batch=128, agrees=False, verdict="no time to compare"),
        ),
        confirmation=Confirmation(
            reached=True, examples=27_000, steps=53, final_metric=0.953, comparisons=comparisons
        ),
        records=len(memory_records()) + 60,
        versions={"python": "3.11.2", "scaler": "0.1.0"},
    )
