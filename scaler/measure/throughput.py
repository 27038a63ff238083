"""Which plans to time: a few that span the rest, then what narrows the predictions most, in the budget."""

from collections.abc import Sequence

from scaler.batch import BatchPlan
from scaler.decide.plans import feasible_plan
from scaler.fit.memory import MemoryFits
from scaler.fit.step_design import half_widths, next_shape
from scaler.fit.step_model import StepShape
from scaler.fit.step_time import StepTimeFit, fit_step_time, shape_of
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence, plan_task
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.records import ThroughputRecord

_LAUNCHES = 2  # of the first plans: fresh runs of a plan differ by more than steps within one
_MOST_RUNS = 24
_WIDTH = 0.06  # half-width of every predicted mean's interval that is narrow enough
_SHARE = 0.3  # of the budget, memory included: the trials need most of it
_START_S = 0.5  # a launch costs about this beside its steps,
_REGROUP_S = 15.0  # and so much where a sharded engine needs a worker group of another size
_STEPS = 25


def measure_throughput(
    evidence: Evidence, launch: LaunchConfig, fits: MemoryFits, counts: Sequence[int], batches: Sequence[int]
) -> StepTimeFit | None:
    """Time fresh launches of plans that may be chosen, one at a time: neighbours would share the host.

    The ends of the micro-batches on the fewest and the most workers come first. Then, launch by launch, what
    narrows the predictions of all plans most per second, until each mean is known within 6% or the budget's
    share is spent. Gives the fit, None where nothing was timed.
    """
    plans = _candidates(launch, fits, counts, batches)
    if not plans:
        return None
    runs: list[ThroughputRecord] = []
    for plan in _spanning(plans):
        for launched in range(_LAUNCHES):
            runs += _time(evidence, plan, launched)
    shapes = [shape_of(plan, launch.cluster.nodes_of(plan.workers)) for plan in plans]
    workers = plans[0].workers
    while (fit := fit_step_time(runs)) is not None and len(runs) < _MOST_RUNS:
        if half_widths(fit, shapes).max() <= _WIDTH or evidence.share_spent() > _SHARE:
            break
        plan = plans[next_shape(fit, shapes, _costs_s(fit, plans, shapes, workers))]
        launched = sum(run.plan == plan for run in runs)
        more = _time(evidence, plan, launched)
        if not more:
            break
        runs += more
        workers = plan.workers
    return fit


def fastest_step_s(
    launch: LaunchConfig, fits: MemoryFits, counts: Sequence[int], step_time: StepTimeFit | None, batch: int
) -> float:
    """Predict the step time of a batch on the worker count where it is fastest; 1 where nothing was timed."""
    plans = [feasible_plan(batch, count, fits, launch.cluster, launch.stage) for count in counts]
    if launch.plan is not None:
        plans = [launch.plan]
    shapes = [shape_of(plan, launch.cluster.nodes_of(plan.workers)) for plan in plans if plan is not None]
    if step_time is None or not shapes:
        return 1.0
    return min(found.value for found in step_time.predict_all(shapes))


def _candidates(
    launch: LaunchConfig, fits: MemoryFits, counts: Sequence[int], batches: Sequence[int]
) -> list[BatchPlan]:
    """List the plans that may be chosen, each once."""
    if launch.plan is not None:
        return [launch.plan]
    plans = [
        feasible_plan(batch, workers, fits, launch.cluster, launch.stage)
        for workers in counts
        for batch in batches
    ]
    return list(dict.fromkeys(plan for plan in plans if plan is not None))


def _spanning(plans: Sequence[BatchPlan]) -> list[BatchPlan]:
    """Choose the smallest and the largest micro-batch on the fewest and on the most workers."""
    found = []
    for workers in (min(p.workers for p in plans), max(p.workers for p in plans)):
        own = [plan for plan in plans if plan.workers == workers]
        found += [min(own, key=lambda p: p.micro_batch), max(own, key=lambda p: p.micro_batch)]
    return list(dict.fromkeys(found))


def _costs_s(
    fit: StepTimeFit, plans: Sequence[BatchPlan], shapes: Sequence[StepShape], workers: int
) -> list[float]:
    steps = fit.predict_all(shapes)
    return [
        _START_S + _STEPS * step.value + (_REGROUP_S if plan.zero_stage and plan.workers != workers else 0.0)
        for plan, step in zip(plans, steps, strict=True)
    ]


def _time(evidence: Evidence, plan: BatchPlan, launched: int) -> list[ThroughputRecord]:
    """Ask for one launch: its record, or none where the budget is spent."""
    task = plan_task(probe_throughput, ThroughputRequest(plan, seed=launched))
    found = evidence.ask("throughput", [task], expected=_MOST_RUNS // 2)
    return [record for record in found if isinstance(record, ThroughputRecord)]
