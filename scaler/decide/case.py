"""What one decision is about: the fits, the plans to choose among, by what, and within what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.fits import Fits, fit_all, workload_record
from scaler.decide.lifts import Lift, lifted
from scaler.decide.limits import Limits
from scaler.decide.objectives import Objective, load_objective
from scaler.decide.space import Space
from scaler.errors import BadInput
from scaler.fit.memory import said_bytes
from scaler.fit.speeds import with_measured_speeds
from scaler.records import Record, ThroughputRecord, WorkloadRecord
from scaler.workload import Reference

_DEFAULT = "time"
_EVERY = 64  # worker counts up to which each has an answer
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Case:
    """A decision before it is made."""

    sizes: WorkloadRecord
    cluster: Cluster
    stages: Sequence[Fits]
    """Of each ZeRO stage that is compared."""
    objective: Objective
    limits: Limits
    """With the objective's own, where the user gave none."""
    pinned: BatchPlan | None
    counts: Sequence[int]
    """Worker counts that get an answer."""
    spaces: Sequence[Space]
    """Of each ZeRO stage; none for a pinned plan."""
    lifts: Sequence[Lift]

    @property
    def reference(self) -> Reference:
        """The workload's own batch and rate."""
        sizes = self.sizes
        return Reference(
            sizes.reference_global_batch, sizes.reference_learning_rate, sizes.reference_warmup_examples
        )

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        cluster: Cluster,
        zero_stage: int | None,
        pinned: BatchPlan | None,
        objective: str | None,
        limits: Limits,
        measured_on: Cluster | None,
    ) -> "Case":
        """Fit the records and list the plans.

        Raises:
            BadInput: the records do not hold what the question needs.
        """
        sizes = workload_record(records)
        runs = [r for r in records if isinstance(r, ThroughputRecord) and not r.held_out]
        counts: Sequence[int] = [pinned.workers] if pinned else limits.counts(cluster)
        cluster = with_measured_speeds(limits.applied(cluster, said_bytes(records)), runs)
        timed = sorted({run.plan.zero_stage for run in runs} or {0})
        first, *others = timed if zero_stage is None else [zero_stage]
        fits = fit_all(records, cluster, first, measured_on)
        stages = [fits, *(fits.at_stage(stage) for stage in others)]
        goal = _objective(objective, limits, stages[0])
        usable = [] if pinned else [fits for fits in stages if fits.step_time is not None]
        spaces = [Space.of(fits, cluster, counts, fits.examples) for fits in usable]
        limits = _with_usual_loss(limits, goal, spaces)
        counts = _reported(counts, spaces, goal, limits)
        lifts = [lift for fits in usable for lift in lifted(fits, cluster, counts, goal, limits)]
        return cls(sizes, cluster, stages, goal, limits, pinned, counts, spaces, lifts)


def _objective(name: str | None, limits: Limits, fits: Fits) -> Objective:
    """Find the objective, and hold it and the limits against what was measured."""
    found = load_objective(name or _DEFAULT)
    wanted, hint = [], "`scaler tune ... --resume` with a longer --budget trains to the target"
    if limits.on_outcomes:
        wanted.append("a limit on time, cost or efficiency")
    elif name is not None and found.NEEDS_TARGET:
        hint += "; --objective throughput does without"
    if name is not None and found.NEEDS_TARGET:
        wanted.append(f"--objective {name}")
    if wanted and not fits.reached:
        raise BadInput(
            f"{' and '.join(wanted)} needs the examples to target, and no trial reached it", hint=hint
        )
    return found


def _with_usual_loss(limits: Limits, objective: Objective, spaces: Sequence[Space]) -> Limits:
    """Add the objective's own limit on efficiency where none is given; never less than the least possible."""
    if limits.efficiency_loss is not None or objective.EFFICIENCY_LOSS is None:
        return limits
    losses = [space.outcomes.efficiency_loss.min() for space in spaces if len(space)]
    least = min((float(loss) for loss in losses if np.isfinite(loss)), default=None)
    if least is None:
        return limits
    return limits.model_copy(update={"efficiency_loss": max(objective.EFFICIENCY_LOSS, least + _ROUNDING)})


def _reported(
    counts: Sequence[int], spaces: Sequence[Space], objective: Objective, limits: Limits
) -> Sequence[int]:
    """Choose the worker counts that get an answer: all, or of very many the powers of two and the best."""
    if len(counts) <= _EVERY:
        return counts
    kept = {counts[0], counts[-1], *(2**k for k in range(32) if counts[0] <= 2**k <= counts[-1])}
    for space in spaces:
        scores = limits.scores(objective, space.outcomes)
        if np.isfinite(scores).any():
            kept.add(int(space.workers[int(np.argmin(scores))]))
    return sorted(kept)
