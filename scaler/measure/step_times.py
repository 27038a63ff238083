"""Step times of the plans that may be chosen: what the search for a batch needs to know of them."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from scaler.batch import BatchPlan
from scaler.stats import Floats


class StepTimes(Protocol):
    """Step times of plans, which another launch may tell more of."""

    @property
    def noise(self) -> float:
        """By how much a launch differs from what it asks about: standard deviation, log scale."""

    def plans(self, batches: Sequence[int]) -> list[BatchPlan]:
        """List the plans of these global batches, on every worker count."""

    def typical_s(self, plans: Sequence[BatchPlan]) -> Floats:
        """Predict their median steps [plans]."""

    def draw_s(self, plans: Sequence[BatchPlan], draws: int) -> Floats:
        """Draw what their steps may truly take, all together [draws, plans]."""

    def costs_s(self, plans: Sequence[BatchPlan]) -> Floats:
        """Predict how long a launch of each takes [plans]; infinite where none can be made."""

    def time_again(self, plan: BatchPlan) -> bool:
        """Launch a plan once more; tells if it was."""


class GivenTimes:
    """Step times that are known, of one plan a batch; without a function every step takes as long."""

    noise = 0.0

    def __init__(self, step_time_s: Callable[[int], float] = lambda _: 1.0) -> None:
        self._step_time_s = step_time_s

    def plans(self, batches: Sequence[int]) -> list[BatchPlan]:
        """Give a plan on one worker for each."""
        return [BatchPlan.equal(batch, 1, 1) for batch in batches]

    def typical_s(self, plans: Sequence[BatchPlan]) -> Floats:
        """Give their steps [plans]."""
        return np.array([self._step_time_s(plan.global_batch) for plan in plans])

    def draw_s(self, plans: Sequence[BatchPlan], draws: int) -> Floats:
        """Give the same in every draw [draws, plans]."""
        return np.broadcast_to(self.typical_s(plans), (draws, len(plans)))

    def costs_s(self, plans: Sequence[BatchPlan]) -> Floats:
        """Say that none can be launched [plans]."""
        return np.full(len(plans), np.inf)

    def time_again(self, _plan: BatchPlan) -> bool:
        """Launch nothing."""
        return False


def log_price(objective: str | None, plans: Sequence[BatchPlan], step_time_s: Floats) -> Floats:
    """Give the logarithm of what an example costs [..., plans], with steps [..., plans], by an objective.

    Seconds, or device-seconds where cost is to be least; nothing where examples themselves are.
    """
    if objective == "examples":
        return np.zeros(np.shape(step_time_s))
    devices = np.array([plan.workers if objective == "cost" else 1.0 for plan in plans])
    batches = np.array([plan.global_batch for plan in plans])
    return np.asarray(np.log(step_time_s * devices / batches))


def least_log_price(times: StepTimes, objective: str | None, batch: int) -> float:
    """Give the least logarithm of an example's price at a batch; 0 where no plan takes it."""
    plans = times.plans([batch])
    return float(log_price(objective, plans, times.typical_s(plans)).min()) if plans else 0.0
