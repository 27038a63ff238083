"""Answers to export, without a run behind them."""

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer, BatchConfig, Choice, Findings
from scaler.export.job import Job
from scaler.stats import Estimate

UNEQUAL = BatchPlan(micro_batches=(719, 718))


def answer_of(plan: BatchPlan, learning_rate: float = 0.05, warmup_steps: int = 0) -> Answer:
    known = Estimate(value=1.0, samples=1, method="given")
    return Answer(
        plan=plan,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        warmup_examples=warmup_steps * plan.global_batch,
        step_time_s=known,
        samples_per_s=known,
        bound_by="no evidence",
        reasons={},
    )


def cluster_of(workers: int = 8, nodes: int = 1, kind: str = "cpu", **fields) -> Cluster:
    return Cluster(name="here", workers=(1, workers), nodes=nodes, kind=kind, **fields)


def job_of(plan: BatchPlan, cluster: Cluster | None = None, **fields) -> Job:
    names = {key: fields.pop(key) for key in ("name", "workload", "script", "image") if key in fields}
    return Job(answer_of(plan, **fields), cluster or cluster_of(), **names)


def config_of(*plans: BatchPlan, chosen: int | None = None, **cluster) -> BatchConfig:
    return BatchConfig(
        workload="digits",
        cluster=cluster_of(**cluster),
        chosen_workers=chosen or plans[0].workers,
        choice=Choice(objective="time", feasible_plans=1),
        answers=tuple(map(answer_of, plans)),
        findings=Findings(train_examples=1437, parameters=1),
        records=1,
        versions={},
    )
