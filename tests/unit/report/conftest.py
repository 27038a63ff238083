"""The fixtures of the report's tests: a study and the configuration that it leads to."""

import pytest
from report_study import (
    CAPACITY,
    MIB,
    confirmation_record,
    convergence_records,
    estimate,
    memory_records,
    noise_record,
    throughput_records,
    workload_record,
)

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer, BatchConfig, Choice, Comparison, Confirmation, Findings, RuleOfThumb
from scaler.records import Record


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


@pytest.fixture(scope="session")
def records() -> list[Record]:
    return [
        workload_record(),
        *memory_records(),
        *throughput_records(),
        noise_record(),
        *convergence_records(),
        confirmation_record(),
    ]


@pytest.fixture(scope="session")
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
        choice=Choice(objective="the least time to target", feasible_plans=12),
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


@pytest.fixture
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
