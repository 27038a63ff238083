"""Every fit that the records hold evidence for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scaler.batch import candidates
from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.fit.branching import BranchingFit, fit_branching
from scaler.fit.convergence import ConvergenceFit, fit_convergence
from scaler.fit.learning_rate import batch_results
from scaler.fit.memory import MemoryFits, fit_memory
from scaler.fit.optimizer import optimizer_of
from scaler.fit.step_time import StepTimeFit, fit_step_time, mean_over_median
from scaler.fit.transfer import Transfer
from scaler.records import (
    BranchRecord,
    ConvergenceRecord,
    MemoryRecord,
    PredictionRecord,
    Record,
    ThroughputRecord,
    WorkloadRecord,
)
from scaler.stats import Estimate, Floats


@dataclass(frozen=True)
class Fits:
    """What the records taught; absent where there was too little evidence."""

    zero_stage: int
    memory: MemoryFits
    step_time: StepTimeFit | None
    measured_step_time: StepTimeFit | None
    """Before it was scaled to the devices that are asked about."""
    transfer: Transfer
    mean_over_median: Estimate | None
    """Of a run's steps."""
    convergence: ConvergenceFit | None
    tried: tuple[int, ...]
    """Global batches with a trial that a deadline did not cut, ascending."""
    examples: Mapping[int, Estimate]
    """To the target, of every global batch that may be chosen: where trials reached it, and between those."""
    trials: Sequence[ConvergenceRecord]
    branching: BranchingFit | None
    train_examples: int
    runs: Sequence[ThroughputRecord]
    """Launches of every ZeRO stage."""

    def at_stage(self, zero_stage: int) -> "Fits":
        """Give the fits with the step times of another ZeRO stage: nothing else depends on it."""
        return replace(self, zero_stage=zero_stage, **_step_times(self.runs, zero_stage, self.transfer))

    @property
    def reached(self) -> tuple[int, ...]:
        """Global batches at which a trial reached the target, ascending."""
        return tuple(self.convergence.runs) if self.convergence is not None else ()

    @property
    def synchronised(self) -> bool:
        """Whether a step of several workers was timed: how long they wait for each other is not guessed."""
        return self.step_time is not None and self.step_time.largest_workers > 1

    @property
    def least_examples(self) -> float:
        """Mean examples to target of the batch that needs the fewest; nan where none reached it."""
        return float(np.min(self.typical_examples(self.reached))) if self.reached else math.nan

    def typical_examples(self, global_batches: Sequence[int]) -> Floats:
        """Predict the mean examples to target of each batch; nan where that is not known."""
        if self.convergence is None:
            return np.full(len(global_batches), np.nan)
        if all(batch in self.examples for batch in global_batches):
            return np.array([self.examples[batch].value for batch in global_batches])
        return self.convergence.typical_examples(global_batches)


def workload_record(records: Sequence[Record]) -> WorkloadRecord:
    """Find the record of the workload's sizes.

    Raises:
        BadInput: there is none.
    """
    for record in records:
        if isinstance(record, WorkloadRecord):
            return record
    raise BadInput("the run has no records yet", hint="`scaler tune ... --resume` continues it")


def _examples(fit: ConvergenceFit, sizes: WorkloadRecord) -> dict[int, Estimate]:
    """Predict the examples of the batches where trials reached the target, and of candidates between them."""
    reached = list(fit.runs)
    known = sizes.train_examples >= sizes.reference_global_batch
    ladder = candidates(sizes.train_examples, sizes.reference_global_batch) if known else []
    between = [batch for batch in ladder if min(reached) < batch < max(reached)]
    batches = sorted({*reached, *between})
    return dict(zip(batches, fit.examples_of(batches), strict=True))


def fit_all(
    records: Sequence[Record], cluster: Cluster, zero_stage: int = 0, measured_on: Cluster | None = None
) -> Fits:
    """Fit everything that the records hold evidence for; step times of one ZeRO stage.

    Those are scaled from the devices of `measured_on`, where that is another cluster.

    Raises:
        BadInput: the cluster files do not say how the devices compare.
    """
    # In the order of questions, not of answers: the same evidence then gives the same numbers to the bit.
    records = sorted((record for record in records if not record.held_out), key=lambda record: record.task)
    trials = [r for r in records if isinstance(r, ConvergenceRecord)]
    sizes = workload_record(records)
    runs = [r for r in records if isinstance(r, ThroughputRecord)]
    transfer = Transfer.between(measured_on or cluster, cluster)
    convergence = fit_convergence(trials, optimizer_of(records))
    return Fits(
        zero_stage=zero_stage,
        memory=fit_memory(
            (r for r in records if isinstance(r, MemoryRecord | PredictionRecord)), cluster.capacity_bytes()
        ),
        transfer=transfer,
        **_step_times(runs, zero_stage, transfer),
        convergence=convergence,
        tried=tuple(batch_results(trials)),
        examples=_examples(convergence, sizes) if convergence is not None else {},
        trials=trials,
        branching=fit_branching(r for r in records if isinstance(r, BranchRecord)),
        train_examples=sizes.train_examples,
        runs=runs,
    )


def _step_times(runs: Sequence[ThroughputRecord], zero_stage: int, transfer: Transfer) -> dict[str, Any]:
    """Fit the step times of one ZeRO stage."""
    own = [run for run in runs if run.plan.zero_stage == zero_stage]
    fit = fit_step_time(own)
    return {
        "step_time": transfer.applied(fit) if fit is not None else None,
        "measured_step_time": fit,
        "mean_over_median": mean_over_median(own),
    }
