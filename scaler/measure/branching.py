"""Long runs: does one fit the budget, and if not, which batches do not lose on a short stretch of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scaler.batch import BatchPlan
from scaler.fit.branching import BranchingFit, fit_branching
from scaler.fit.step_time import fit_step_time, shape_of
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence, plan_task
from scaler.measure.learning_rates import trial_limit
from scaler.probe.branch import (
    REFERENCE_SEED,
    BranchRequest,
    CheckpointRequest,
    probe_branch,
    probe_checkpoint,
)
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.records import BranchRecord, CheckpointRecord, ConvergenceRecord, ThroughputRecord, WorkloadRecord
from scaler.runtime.protocol import Task
from scaler.workload import Workload

REFERENCE_SHARE = 0.3  # of the budget: a reference run that takes longer leaves no time for a search
_BRANCHES_SHARE = 0.8  # of what is left then, by the predicted step times
_STEPS = 32  # of the largest batch in a stretch; as many points of its curve
_MOST_GROWTH = 64  # over the reference's batch
_FEWEST_SEEDS = 2
_REWARM_SHARE = 1 / 8  # of a stretch, where the optimizer's state is not there
_HELD_OUT_SHARE, _HELD_OUT = 1 / 8, (512, 8192)  # of a stretch; fewest and most examples

PlanFor = Callable[[int], BatchPlan | None]
"""Global batch -> the plan that trains it, None where nothing fits."""


@dataclass(frozen=True)
class Start:
    """The state that branches go on from."""

    checkpoint: str
    examples: int | None
    is_ours: bool = True
    has_optimizer: bool = True


def users_start(evidence: Evidence, path: str) -> Start | None:
    """Look whether a user's checkpoint fits the workload; None where the budget is spent.

    Raises:
        WorkloadError: it does not.
    """
    for record in evidence.ask("workload", [Task(probe_checkpoint, CheckpointRequest(path))]):
        if isinstance(record, CheckpointRecord):
            return Start(path, record.examples, is_ours=False, has_optimizer=record.optimizer_state)
    return None


def try_reference(
    evidence: Evidence,
    workload: Workload,
    launch: LaunchConfig,
    sizes: WorkloadRecord,
    plan: BatchPlan | None,
) -> ConvergenceRecord | None:
    """Train the reference for at most 30% of the budget, as the search's first trial.

    None where the budget is spent, and where nothing is to be chosen: a pinned plan, or one that shards.
    """
    if launch.plan is not None or plan is None or plan.zero_stage:
        return None
    limit_s = REFERENCE_SHARE * launch.budget_s if launch.budget_s is not None else math.inf
    request = ConvergenceRequest(
        plan=plan,
        learning_rate=float(f"{workload.reference.learning_rate:.4g}"),
        warmup_examples=workload.reference.warmup_examples,
        max_examples=trial_limit(workload, sizes),
        seed=REFERENCE_SEED,
        time_limit_s=limit_s,
        checkpoint=str(evidence.checkpoint),
    )
    task = plan_task(probe_convergence, request)
    if (cut := _cut_short(evidence, task, limit_s)) is None:
        for record in evidence.ask("convergence", [task]):
            if isinstance(record, ConvergenceRecord):
                return record
        cut = _cut_short(evidence, task, limit_s)
    return cut


def start_of(evidence: Evidence, reference: ConvergenceRecord | None) -> Start | None:
    """Give the state that the reference's run left; None if it diverged, or a trial reached the target."""
    if reference is None or reference.stop not in ("deadline", "limit"):
        return None
    if any(isinstance(r, ConvergenceRecord) and r.reached for r in evidence.records):
        return None
    return Start(str(evidence.checkpoint), reference.examples)


def _cut_short(evidence: Evidence, task: Task, limit_s: float) -> ConvergenceRecord | None:
    """Find the latest run of a trial that was cut short after no less time than it has now."""
    runs = [r for r in evidence.records if isinstance(r, ConvergenceRecord) and r.task == task.key]
    if evidence.knows(task) or not runs or runs[-1].time_limit_s is None:
        return None
    return runs[-1] if runs[-1].time_limit_s >= 0.9 * min(limit_s, evidence.left_s()) else None


def measure_branches(
    evidence: Evidence,
    workload: Workload,
    launch: LaunchConfig,
    sizes: WorkloadRecord,
    start: Start,
    plan_for: PlanFor,
    workers: int,
) -> None:
    """Double the batch from the reference until its branches lose, several data orders each.

    A stretch is 32 steps of the largest batch for which all branches fit the budget. A batch that is not
    shown to keep up with the square root of its growth on the rate is tried with the whole growth as well.
    """
    seeds = max(_FEWEST_SEEDS, launch.seeds)
    growths = [2**i for i in range(_MOST_GROWTH.bit_length())]
    plans = _plans(workload.reference.global_batch, growths, sizes, plan_for)
    examples = _stretch(evidence, launch, workload, sizes, start, plans, seeds / workers)
    found: list[BranchRecord] = []
    batch = workload.reference.global_batch
    for growth, plan in zip(growths, plans, strict=False):
        if growth * batch * _STEPS > examples:
            break
        for exponent in (0.5, 1.0) if growth > 1 else (0.5,):
            tasks = [
                plan_task(probe_branch, _request(workload, start, plan, exponent, examples, seed))
                for seed in range(REFERENCE_SEED + 1, REFERENCE_SEED + 1 + seeds)
            ]
            records = evidence.ask("branches", tasks, expected=seeds * len(plans))
            found += [record for record in records if isinstance(record, BranchRecord)]
            if _keeps_up(fit_branching(found), growth * batch):
                break
        fit = fit_branching(found)
        if evidence.out_of_budget() or (fit is not None and fit.losing is not None):
            break


def _plans(batch: int, growths: Sequence[int], sizes: WorkloadRecord, plan_for: PlanFor) -> list[BatchPlan]:
    """Plan the reference's batch and its multiples, up to the first that no plan without sharding trains."""
    plans = []
    for growth in growths:
        plan = plan_for(growth * batch) if growth * batch <= sizes.train_examples else None
        if plan is None or plan.zero_stage:
            break
        plans.append(plan)
    return plans


def _stretch(
    evidence: Evidence,
    launch: LaunchConfig,
    workload: Workload,
    sizes: WorkloadRecord,
    start: Start,
    plans: Sequence[BatchPlan],
    seeds_per_worker: float,
) -> int:
    """Choose how many examples a branch trains: 0 where not even twice the reference's batch fits."""
    for record in evidence.records:  # a run that is resumed goes on with what it chose
        if isinstance(record, BranchRecord) and record.start_examples == start.examples:
            return record.examples
    runs = [r for r in evidence.records if isinstance(r, ThroughputRecord) and not r.plan.zero_stage]
    fit = fit_step_time(runs)
    if fit is None:
        return 0
    left_s = _BRANCHES_SHARE * evidence.left_s()
    example_s = [
        fit.predict(shape_of(p, launch.cluster.nodes_of(p.workers))).value / p.global_batch * p.workers
        for p in plans
    ]
    fitting = [
        _STEPS * plan.global_batch
        for count, plan in enumerate(plans[1:], 2)
        if _STEPS * plan.global_batch <= trial_limit(workload, sizes)
        and _STEPS * plan.global_batch * sum(example_s[:count]) * seeds_per_worker <= left_s
    ]
    return max(fitting, default=0)


def _request(
    workload: Workload, start: Start, plan: BatchPlan, exponent: float, examples: int, seed: int
) -> BranchRequest:
    reference = workload.reference
    rate = reference.learning_rate * (plan.global_batch / reference.global_batch) ** exponent
    fewest, most = _HELD_OUT
    return BranchRequest(
        plan=plan,
        learning_rate=float(f"{rate:.4g}"),
        rate_rule="square root" if exponent < 1 else "linear",
        reference_batch=reference.global_batch,
        reference_rate=reference.learning_rate,
        examples=examples,
        points=_STEPS,
        held_out_examples=min(most, max(fewest, int(examples * _HELD_OUT_SHARE))),
        rewarm_examples=0 if start.has_optimizer else int(examples * _REWARM_SHARE),
        start_examples=start.examples,
        seed=seed,
        checkpoint=start.checkpoint,
        is_ours=start.is_ours,
    )


def _keeps_up(fit: BranchingFit | None, batch: int) -> bool:
    """Whether a batch is shown not to lose; the reference always keeps up with itself."""
    results = fit.results if fit is not None else ()
    return any(r.global_batch == batch and r.verdict == "does not lose" for r in results)
