"""Long runs: does one fit the budget, and if not, which batches do not lose on a short stretch of it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from scaler.batch import BatchPlan
from scaler.fit.branching import fit_branching
from scaler.fit.optimizer import optimizer_of
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
from scaler.units import round_rate
from scaler.workload import Workload

REFERENCE_SHARE = 0.3  # of the budget: a reference run that takes longer leaves no time for a search
_BRANCHES_SHARE = 0.8  # of what is left then, by the predicted step times
_STEPS = 32  # of the largest batch in a stretch; as many points of its curve
_GROWTHS = (4, 16, 64)  # of the largest batch over the reference's, a study each
_START_S = 0.3  # a branch costs about this beside its steps
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
        learning_rate=round_rate(workload.reference.learning_rate),
        warmup_examples=workload.reference.warmup_examples,
        max_examples=trial_limit(workload, sizes),
        seed=REFERENCE_SEED,
        time_limit_s=limit_s,
        checkpoint=evidence.checkpoint,
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
    return Start(evidence.checkpoint, reference.examples)


def _cut_short(evidence: Evidence, task: Task, limit_s: float) -> ConvergenceRecord | None:
    """Find the latest run of a trial that was cut short after no less time than it has now."""
    runs = [r for r in evidence.records if isinstance(r, ConvergenceRecord) and r.task == task.key]
    if not runs or runs[-1].time_limit_s is None:
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

    A stretch is 32 steps of its largest batch: short ones with up to 4 times the reference's batch first, and
    where none of them loses 16 and 64 times, as far as data, device and budget go.
    """
    seeds = max(_FEWEST_SEEDS, launch.seeds)
    plans = _plans(workload.reference.global_batch, sizes, plan_for)
    cost_s = _branch_times_s(evidence, launch, plans)
    exponents = (1.0, 0.5) if optimizer_of([sizes]).is_sgd else (0.5, 1.0)
    done = 0
    for most in _GROWTHS:
        study = plans[: most.bit_length()]
        if not done and len(study) > 2 and _too_long(evidence, study, cost_s, seeds / workers):
            study = study[:2]
        examples = _STEPS * study[-1].global_batch if study else 0
        if len(study) <= max(done, 1) or examples > trial_limit(workload, sizes):
            break
        if _too_long(evidence, study, cost_s, seeds / workers):
            break
        branches = partial(_request, workload, start, examples)
        orders = range(REFERENCE_SEED + 1, REFERENCE_SEED + 1 + seeds)
        if _is_settled(evidence, study, branches, exponents, orders):
            break
        done = len(study)


def _is_settled(
    evidence: Evidence,
    study: Sequence[BatchPlan],
    branches: Callable[[BatchPlan, float, int], BranchRequest],
    exponents: tuple[float, float],
    seeds: Iterable[int],
) -> bool:
    """Branch each plan until one loses; tell whether one did, or the budget is spent.

    `exponents`: how the rate grows with the batch; the second where a batch is not shown to keep up by the
    first.
    """
    found: list[BranchRecord] = []
    fit = None
    for plan in study:
        for exponent in exponents if plan is not study[0] else exponents[:1]:
            tasks = [plan_task(probe_branch, branches(plan, exponent, seed)) for seed in seeds]
            records = evidence.ask("branches", tasks, expected=len(study) * len(tasks))
            found += [record for record in records if isinstance(record, BranchRecord)]
            fit = fit_branching(found)
            if fit is not None and fit.results[-1].verdict == "does not lose":
                break
        if evidence.out_of_budget() or (fit is not None and fit.losing is not None):
            return True
    return False


def _plans(batch: int, sizes: WorkloadRecord, plan_for: PlanFor) -> list[BatchPlan]:
    """Plan the reference's batch and its multiples, up to the first that no plan without sharding trains."""
    plans = []
    for growth in range(_GROWTHS[-1].bit_length()):
        size = batch * 2**growth
        plan = plan_for(size) if size <= sizes.train_examples else None
        if plan is None or plan.zero_stage:
            break
        plans.append(plan)
    return plans


def _branch_times_s(
    evidence: Evidence, launch: LaunchConfig, plans: Sequence[BatchPlan]
) -> dict[BatchPlan, float]:
    """Predict worker-seconds per example of each plan; none where no step was timed."""
    timed = [r for r in evidence.records if isinstance(r, ThroughputRecord) and not r.held_out]
    fit = fit_step_time([run for run in timed if not run.plan.zero_stage])
    if fit is None:
        return {}
    shapes = [shape_of(plan, launch.cluster.nodes_of(plan.workers)) for plan in plans]
    return {
        plan: step.value * plan.workers / plan.global_batch
        for plan, step in zip(plans, fit.predict_all(shapes), strict=True)
    }


def _too_long(
    evidence: Evidence,
    study: Sequence[BatchPlan],
    cost_s: Mapping[BatchPlan, float],
    seeds_per_worker: float,
) -> bool:
    """Whether a study does not fit what is left of the budget, or nobody knows."""
    if not study or study[-1] not in cost_s:
        return True
    examples = _STEPS * study[-1].global_batch
    needed_s = seeds_per_worker * sum(examples * cost_s[plan] + _START_S for plan in study)
    return needed_s > _BRANCHES_SHARE * evidence.left_s()


def _request(
    workload: Workload, start: Start, examples: int, plan: BatchPlan, exponent: float, seed: int
) -> BranchRequest:
    reference = workload.reference
    rate = reference.learning_rate * (plan.global_batch / reference.global_batch) ** exponent
    fewest, most = _HELD_OUT
    return BranchRequest(
        plan=plan,
        learning_rate=round_rate(rate),
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
