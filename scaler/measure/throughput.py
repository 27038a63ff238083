"""Which plans to time: a few that span the rest, then what narrows the predictions most, in the budget."""

from collections.abc import Sequence

import numpy as np

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
from scaler.stats import Floats

_LAUNCHES = 2  # of the first plans: fresh runs of a plan differ by more than steps within one
MOST_LAUNCHES = 24
"""Before any trial; afterwards launches compete with trials (`learning_rates.py`)."""
_WIDTH = 0.06  # half-width of every predicted mean's interval that is narrow enough
_SHARE = 0.3  # of the budget, memory included: the trials need most of it
_START_S = 0.5  # a launch costs about this beside its steps,
_REGROUP_S = 15.0  # and so much where a sharded engine needs a worker group of another size
_STEPS = 25


class LaunchedTimes:
    """Step times of plans from fresh launches, one at a time: neighbours would share the host."""

    def __init__(
        self, evidence: Evidence, launch: LaunchConfig, fits: MemoryFits, counts: Sequence[int]
    ) -> None:
        self._evidence, self._launch, self._fits, self._counts = evidence, launch, fits, counts
        self._runs: list[ThroughputRecord] = []
        self._fit: StepTimeFit | None = None
        self._plans: dict[int, list[BatchPlan]] = {}

    @property
    def launched(self) -> int:
        """How many launches were made."""
        return len(self._runs)

    @property
    def fit(self) -> StepTimeFit:
        """What the launches (at least one) say."""
        self._fit = self._fit or fit_step_time(self._runs)
        assert self._fit is not None, "a plan was launched"
        return self._fit

    @property
    def noise(self) -> float:
        """By how much a launch differs from what it asks about: standard deviation, log scale."""
        return self.fit.posterior.noise

    def plans(self, batches: Sequence[int]) -> list[BatchPlan]:
        """List the plans of these global batches on every worker count that takes them, each once."""
        if (pinned := self._launch.plan) is not None:
            return [pinned]
        for batch in batches:
            if batch not in self._plans:
                cluster, stage = self._launch.cluster, self._launch.stage
                own = [feasible_plan(batch, count, self._fits, cluster, stage) for count in self._counts]
                self._plans[batch] = [plan for plan in own if plan is not None]
        return list(dict.fromkeys(plan for batch in batches for plan in self._plans[batch]))

    def typical_s(self, plans: Sequence[BatchPlan]) -> Floats:
        """Predict their median steps [plans]."""
        return np.array([found.value for found in self.fit.predict_all(self.shapes(plans))])

    def draw_s(self, plans: Sequence[BatchPlan], draws: int) -> Floats:
        """Draw what their steps may truly take, all together [draws, plans]."""
        return self.fit.draw_s(self.shapes(plans), draws, seed=1)

    def costs_s(self, plans: Sequence[BatchPlan]) -> Floats:
        """Predict how long a launch of each takes [plans]."""
        workers = self._runs[-1].plan.workers
        regroups = [plan.zero_stage > 0 and plan.workers != workers for plan in plans]
        return _START_S + _STEPS * self.typical_s(plans) + _REGROUP_S * np.array(regroups, dtype=float)

    def time_again(self, plan: BatchPlan) -> bool:
        """Launch a plan once more; tells if the budget allowed it."""
        seed = sum(run.plan == plan for run in self._runs)
        task = plan_task(probe_throughput, ThroughputRequest(plan, seed=seed))
        found = self._evidence.ask("throughput", [task], expected=MOST_LAUNCHES // 2)
        self._runs += [record for record in found if isinstance(record, ThroughputRecord)]
        self._fit = None
        return bool(found)

    def shapes(self, plans: Sequence[BatchPlan]) -> list[StepShape]:
        """Give what the plans' step times depend on."""
        return [shape_of(plan, self._launch.cluster.nodes_of(plan.workers)) for plan in plans]


def measure_throughput(
    evidence: Evidence, launch: LaunchConfig, fits: MemoryFits, counts: Sequence[int], batches: Sequence[int]
) -> LaunchedTimes | None:
    """Time fresh launches of plans that may be chosen.

    The ends of the micro-batches on the fewest and the most workers come first. Then, launch by launch, what
    narrows the predictions of all plans most per second, until each mean is known within 6% or the budget's
    share is spent. None where nothing was timed.
    """
    times = LaunchedTimes(evidence, launch, fits, counts)
    plans = times.plans(batches)
    if not plans:
        return None
    for plan in _spanning(plans):
        for _ in range(_LAUNCHES):
            times.time_again(plan)
    shapes = times.shapes(plans)
    while 0 < times.launched < MOST_LAUNCHES:
        if half_widths(times.fit, shapes).max() <= _WIDTH or evidence.share_spent() > _SHARE:
            break
        if not times.time_again(plans[next_shape(times.fit, shapes, times.costs_s(plans))]):
            break
    return times if times.launched else None


def _spanning(plans: Sequence[BatchPlan]) -> list[BatchPlan]:
    """Choose the smallest and the largest micro-batch on the fewest and on the most workers."""
    found = []
    for workers in (min(p.workers for p in plans), max(p.workers for p in plans)):
        own = [plan for plan in plans if plan.workers == workers]
        found += [min(own, key=lambda p: p.micro_batch), max(own, key=lambda p: p.micro_batch)]
    return list(dict.fromkeys(found))
