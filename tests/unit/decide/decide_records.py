"""Studies by hand: the records of a workload whose step times, peaks and examples to target are known."""

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.records import (
    CONFIRMING_SEED,
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

MIB = 2**20
BATCHES = (32, 64, 128, 256, 512, 1024)
REFERENCE_BATCH, REFERENCE_RATE, WARMUP_EXAMPLES = 64, 0.07, 1000
VERSIONS = {"python": "3.11.2", "torch": "2.9.0"}


def seen(task: str, seed: int = 0) -> dict:
    return {
        "task": task,
        "seed": seed,
        "taken_at": datetime.datetime(2025, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "environment": Environment(
            device="mock", world_size=4, machine="Linux x86_64", cpu_count=4, versions=VERSIONS
        ),
    }


def cluster_of(workers: int | tuple[int, int] = (1, 4), memory_mib: float = 256, **more) -> Cluster:
    data = {"name": "mock-4", "kind": "mock", "workers": workers, "device_memory": int(memory_mib * MIB)}
    return Cluster.model_validate(data | more)


@dataclass(frozen=True)
class Study:
    """What the workload truly does, and the records that measuring it gives."""

    overhead_s: float = 0.002
    per_example_s: float = 2e-5
    sync_s: float = 0.0008
    floor_mib: float = 20.0
    fixed_mib: float = 12.0
    per_example_mib: float = 0.1
    gradients_mib: float = 4.0
    min_examples: float = 10_000.0
    critical_batch: float = 300.0
    train_examples: int = 10_000
    memory_mib: float = 256.0

    def step_time_s(self, plan: BatchPlan) -> float:
        compute_s = plan.accumulation * (self.overhead_s + self.per_example_s * plan.micro_batch)
        return compute_s + self.sync_s * float(np.log2(plan.workers))

    def peak_bytes(self, plan: BatchPlan) -> int:
        peak_mib = max(self.floor_mib, self.fixed_mib + self.per_example_mib * plan.micro_batch)
        return round((peak_mib + self.gradients_mib * (plan.accumulation > 1)) * MIB)

    def examples(self, global_batch: int) -> float:
        return self.min_examples * (1 + global_batch / self.critical_batch)

    def workload(self) -> WorkloadRecord:
        return WorkloadRecord(
            **seen("w"),
            name="digits",
            reference_global_batch=REFERENCE_BATCH,
            reference_learning_rate=REFERENCE_RATE,
            reference_warmup_examples=WARMUP_EXAMPLES,
            target_value=0.949,
            target_direction="max",
            train_examples=self.train_examples,
            eval_examples=1_000,
            parameters=101_770,
            batch_statistics=(),
        )

    def memory(self, workers: Iterable[int] = (1, 2), zero_stage: int = 0) -> list[MemoryRecord]:
        records = []
        for count in workers:
            for k in range(12):
                plan = BatchPlan.equal(2**k, 1, count, zero_stage)
                records.append(self.peak(plan))
                if records[-1].out_of_memory:
                    break
            records.append(self.peak(BatchPlan.equal(1, 2, count, zero_stage)))
        return records

    def peak(self, plan: BatchPlan) -> MemoryRecord:
        peak_bytes, capacity_bytes = self.peak_bytes(plan), int(self.memory_mib * MIB)
        out = peak_bytes > capacity_bytes
        return MemoryRecord(
            **seen(f"m{plan.arithmetic()}"),
            plan=plan,
            out_of_memory=out,
            peak_bytes=None if out else peak_bytes,
            capacity_bytes=capacity_bytes,
        )

    def throughput(self, workers: Iterable[int] = (1, 2, 4), zero_stage: int = 0) -> list[ThroughputRecord]:
        return [
            self.run(BatchPlan.equal(micro_batch, 1, count, zero_stage), seed, wobble)
            for count in workers
            for micro_batch in (8, 32, 128, 512)
            for seed, wobble in enumerate((0.99, 1.01))
        ]

    def run(self, plan: BatchPlan, seed: int = 0, wobble: float = 1.0) -> ThroughputRecord:
        step_s = wobble * self.step_time_s(plan)
        return ThroughputRecord(
            **seen(f"t{plan.arithmetic()}-{plan.zero_stage}-{seed}", seed),
            plan=plan,
            step_times_s=(9.0, 0.9 * step_s, step_s, 1.2 * step_s),
            warmup_steps=1,
        )

    def trials(
        self, batches: Sequence[int] = BATCHES, reached: Callable[[int], bool] = lambda _batch: True
    ) -> list[ConvergenceRecord]:
        records = []
        for batch in batches:
            best = best_rate(batch)
            for rate, penalty in ((best / 3, 1.6), (best, 1.0), (best * 3, 1.3)):
                for seed, wobble in enumerate((1.03, 0.98)):
                    examples = round(self.examples(batch) * penalty * wobble)
                    records.append(trial(batch, float(f"{rate:.4g}"), seed, examples, reached(batch)))
        return records

    def records(self, **trials) -> list[Record]:
        return [self.workload(), *self.memory(), *self.throughput(), noise(), *self.trials(**trials)]


def best_rate(batch: int) -> float:
    return float(f"{0.05 * (batch / 32) ** 0.5:.4g}")


def trial(batch: int, rate: float, seed: int, examples: int, reached: bool = True) -> ConvergenceRecord:
    metric = 0.95 if reached else 0.6
    return ConvergenceRecord(
        **seen(f"c{batch}-{rate}-{seed}", seed),
        plan=BatchPlan.equal(batch, 1, 1),
        learning_rate=rate,
        warmup_examples=WARMUP_EXAMPLES,
        dataset_examples=10_000,
        stop="reached" if reached else "limit",
        examples=examples,
        steps=max(1, examples // batch),
        curve=tuple(
            Evaluation(examples=examples * i // 4, train_time_s=0.1 * i, metric=metric - 0.5 / 4**i)
            for i in range(1, 5)
        ),
    )


def confirmation(
    plan: BatchPlan,
    rate: float,
    examples: int,
    step_times_s: Sequence[float],
    reached: bool = True,
    seed: int = CONFIRMING_SEED,
) -> ConfirmationRecord:
    """`step_times_s` are those of the steps to the target; the confirming evaluation takes two more."""
    run = trial(plan.global_batch, rate, seed, examples, reached).model_dump()
    return ConfirmationRecord(
        **run
        | {
            "kind": "confirmation",
            "task": f"confirm-{seed}",
            "plan": plan,
            "steps": len(step_times_s),
            "step_times_s": (*step_times_s, 77.0, 77.0),
        }
    )


def noise() -> NoiseRecord:
    generator = np.random.default_rng(5)
    small, big = 3 + 0.1 * generator.normal(size=40), 1.5 + 0.05 * generator.normal(size=40)
    return NoiseRecord(
        **seen("n"),
        plan=BatchPlan.equal(16, 1, 4),
        learning_rate=REFERENCE_RATE,
        small_batch=16.0,
        small_squared_norms=tuple(small),
        big_squared_norms=tuple(big),
    )
