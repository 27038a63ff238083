"""What measuring will cost, said before it starts, and a budget that is a share of the training run."""

from collections.abc import Sequence

from scaler.errors import BadInput
from scaler.fit.memory import MemoryFits
from scaler.fit.step_time import StepTimeFit
from scaler.launch import Budget, LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.throughput import fastest_step_s
from scaler.units import format_seconds
from scaler.workload import Workload


def expected_cost(launch: LaunchConfig, workers: int) -> str:
    """Say before anything is measured what will be, and what bounds it."""
    parts = "memory by at most 3 probes for each way of spreading, up to 24 timed launches, then "
    if launch.from_checkpoint is not None:
        parts += "branches of the checkpoint"
    else:
        parts += "training runs of about 10 times the examples of one to the target"
    if launch.budget is None:
        return f"to be measured on up to {workers} workers: {parts}; --budget bounds it"
    bound = f"at most {launch.budget}"
    if launch.budget_s is not None:
        bound += f", {launch.budget_s * workers / 3600:.2g} device-hours"
    return f"to be measured on up to {workers} workers, in {bound}: {parts}"


def with_run_share(
    evidence: Evidence,
    workload: Workload,
    launch: LaunchConfig,
    fits: MemoryFits,
    counts: Sequence[int],
    step_time: StepTimeFit | None,
) -> LaunchConfig:
    """Say how long a training run takes at most, and bound measuring to its share where that is the budget.

    Raises:
        BadInput: the budget is a share, and the target does not say how long a run may be.
    """
    most, batch = workload.target.max_examples, workload.reference.global_batch
    share = launch.budget.run_share if launch.budget is not None else None
    if share is not None and most is None:
        raise BadInput(
            f"a budget of {launch.budget} of a training run: how long a run may be is not known",
            hint="give the workload's target max_examples, or a budget in time or device-hours",
        )
    if most is None or step_time is None:
        return launch
    run_s = most / batch * fastest_step_s(launch, fits, counts, step_time, batch)
    evidence.say(f"a run at the reference takes at most {format_seconds(run_s)} of training")
    if share is None:
        return launch
    evidence.limit_to(share * run_s)
    return launch.model_copy(update={"budget": Budget(seconds=share * run_s)})
