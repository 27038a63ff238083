"""What measuring will cost, said before it starts, and a budget that is a share of the training run."""

from scaler.errors import BadInput
from scaler.launch import Budget, LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.largest import MOST_PROBES
from scaler.measure.learning_rates import MOST_RUNS
from scaler.measure.throughput import MOST_LAUNCHES, LaunchedTimes
from scaler.units import format_seconds
from scaler.workload import Workload


def expected_cost(launch: LaunchConfig, workers: int) -> str:
    """Say before anything is measured what will be, and what bounds it."""
    parts = (
        f"memory by at most {MOST_PROBES} probes for each way of spreading, up to {MOST_LAUNCHES} timed "
        "launches, then "
    )
    if launch.from_checkpoint is not None:
        parts += "branches of the checkpoint"
    else:
        parts += f"trials of about {MOST_RUNS:.0f} times the examples of one run to the target at most"
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
    times: LaunchedTimes | None,
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
    if most is None or times is None or not (plans := times.plans([batch])):
        return launch
    run_s = most / batch * float(times.typical_s(plans).min())
    evidence.say(f"a run at the reference takes at most {format_seconds(run_s)} of training")
    if share is None:
        return launch
    evidence.limit_to(share * run_s)
    return launch.model_copy(update={"budget": Budget(seconds=share * run_s)})
