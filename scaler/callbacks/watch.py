"""PlanWatch: a training run held against the plan it is to use, whatever library trains."""

import math
import time
import warnings
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from scaler.batch import BatchPlan
from scaler.decide.config import Findings
from scaler.decide.source import PlanSource, find_plan
from scaler.errors import BadInput
from scaler.fit.noise import NoiseFit
from scaler.report.wording import interval
from scaler.stats import Estimate
from scaler.units import format_count

_WINDOW = 100  # steps that the observed step time looks back
_LEAST = 8  # of them, before it is told
_RATE_TOLERANCE = 1e-3  # rates are printed with four digits
_FAR = 4.0
"""With time = steps x (a + b B) and McCandlish's steps, the best batch grows like the root of the noise
scale: four times moves it by two, the spacing of the batches that are compared."""


class Use(NamedTuple):
    """How a run sets one field of a plan."""

    setting: str
    """The library's name for it."""
    value: float


class PlanWatch:
    """Checks a run's batch and rate once, then follows its throughput and noise scale.

    Args:
        source: what the plan is taken from.
        workers: of several answers the one for so many workers. Default: the one to use.
        strict: whether a run that does not use the plan is refused, or only warned of.

    Raises:
        BadInput: the source has no such plan.
    """

    def __init__(self, source: PlanSource, workers: int | None = None, strict: bool = True) -> None:
        self.plan, self._answer, self._config = find_plan(source, workers)
        self._strict = strict
        self._global_batch = self.plan.global_batch
        self._step_times_s: deque[float] = deque(maxlen=_WINDOW)
        self._last_end_s: float | None = None
        self._warned: set[str] = set()

    def check(self, library: str, uses: Mapping[str, Use]) -> None:
        """Hold a run's settings against the plan: `micro_batch`, `accumulation`, `workers`, `zero_stage`.

        `learning_rate` is held against the answer's, where there is one.

        Raises:
            BadInput: they differ, and the watch is strict; names every field with both values.
        """
        micro_batch, accumulation, workers = (
            int(uses[n].value) for n in ("micro_batch", "accumulation", "workers")
        )
        self._global_batch = BatchPlan.equal(micro_batch, accumulation, workers).global_batch
        planned: dict[str, float] = {
            "micro_batch": self.plan.micro_batch,
            "accumulation": self.plan.accumulation,
            "workers": self.plan.workers,
            "zero_stage": self.plan.zero_stage,
        }
        if self._answer is not None:
            planned["learning_rate"] = self._answer.learning_rate
        faults = [
            f"{name}: the plan has {value:g}, {uses[name].setting} is {uses[name].value:g}"
            for name, value in planned.items()
            if not math.isclose(uses[name].value, value, rel_tol=_RATE_TOLERANCE)
            and (self.plan.is_equal or name != "micro_batch")
        ]
        if not self.plan.is_equal:
            entries = ", ".join(map(str, self.plan.micro_batches))
            faults.insert(
                0, f"micro_batches: the plan has {entries}, and {library} gives every worker the same"
            )
        if not faults:
            return
        message = "\n".join([f"the {library} run does not use the plan:", *(f"  - {f}" for f in faults)])
        if self._strict:
            equal = (
                "" if self.plan.is_equal else "; scaler.apply trains unequal entries in a loop of your own"
            )
            raise BadInput(message, hint=f"set them so, or give PlanCallback(strict=False){equal}")
        warnings.warn(message, stacklevel=3)

    def without_noise(self, why: BadInput) -> None:
        """Tell once that the noise scale is not watched."""
        warnings.warn(f"PlanCallback: the noise scale is not watched: {why}", stacklevel=3)

    def step_done(self) -> None:
        """Note that an optimizer step ended."""
        now_s = time.perf_counter()
        if self._last_end_s is not None:
            self._step_times_s.append(now_s - self._last_end_s)
        self._last_end_s = now_s

    def throughput(self) -> dict[str, float]:
        """Give samples/s by the median of the last 100 steps, beside the answer's prediction and interval."""
        if len(self._step_times_s) < _LEAST:
            return {}
        figures = {"samples_per_s": self._global_batch / float(np.median(self._step_times_s))}
        if self._answer is not None:
            predicted = self._answer.samples_per_s
            figures["predicted_samples_per_s"] = predicted.value
            if predicted.low is not None and predicted.high is not None:
                figures |= {
                    "predicted_samples_per_s_low": predicted.low,
                    "predicted_samples_per_s_high": predicted.high,
                }
        return figures

    def judge(self, noise: NoiseFit) -> None:
        """Warn, once for each direction, when the batch should change.

        That is when the interval of the noise scale lies wholly beyond four times that of what the plan was
        chosen with: the noise scale in its run, and the critical batch over whole trainings.
        """
        known = _known(self._config.findings) if self._config is not None else []
        scale = noise.scale
        if not known or scale is None or scale.low is None or scale.high is None:
            return
        if scale.low > _FAR * max(high for _, _, high in known):
            change = "larger batch would now lose little"
        elif scale.high < min(low for _, low, _ in known) / _FAR:
            change = "smaller batch would now reach as much with fewer examples"
        else:
            return
        if change not in self._warned:
            self._warned.add(change)
            then = "; ".join(words for words, _, _ in known)
            warnings.warn(
                f"the gradient noise scale is now {_words(scale)}, in examples: more than {_FAR:g} times "
                f"away from what a batch of {self._global_batch} was chosen with ({then}); a {change}\n\n"
                "hint: `scaler tune WORKLOAD --cluster FILE --from-checkpoint STATE.pt` measures which batch "
                "keeps up from here",
                stacklevel=3,
            )


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """Give the rate of the first group, without what a schedule makes of it."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def _known(findings: Findings) -> list[tuple[str, float, float]]:
    """Say what the batch was chosen with, each with its interval."""
    estimates = {"noise scale": findings.noise_scale, "critical batch": findings.critical_batch}
    return [
        (f"{name} {_words(found)}", found.low or found.value, found.high or found.value)
        for name, found in estimates.items()
        if found is not None
    ]


def _words(found: Estimate) -> str:
    return f"{format_count(found.value)} (90% interval {interval(found, format_count)})"
