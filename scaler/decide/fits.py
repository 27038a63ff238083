"""Every fit that the records hold evidence for."""

from collections.abc import Sequence
from dataclasses import dataclass

from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.fit.branching import BranchingFit, fit_branching
from scaler.fit.convergence import ConvergenceFit, fit_convergence
from scaler.fit.learning_rate import batch_results
from scaler.fit.memory import MemoryFits, fit_memory
from scaler.fit.optimizer import optimizer_of
from scaler.fit.step_time import StepTimeFit, fit_step_time, mean_over_median
from scaler.records import (
    BranchRecord,
    ConvergenceRecord,
    MemoryRecord,
    PredictionRecord,
    Record,
    ThroughputRecord,
    WorkloadRecord,
)
from scaler.stats import Estimate


@dataclass(frozen=True)
class Fits:
    """What the records taught; absent where there was too little evidence."""

    memory: MemoryFits
    step_time: StepTimeFit | None
    mean_over_median: Estimate | None
    """Of a run's steps."""
    convergence: ConvergenceFit | None
    tried: tuple[int, ...]
    """Global batches with a trial that a deadline did not cut, ascending."""
    trials: Sequence[ConvergenceRecord]
    branching: BranchingFit | None
    train_examples: int

    @property
    def reached(self) -> tuple[int, ...]:
        """Global batches at which a trial reached the target, ascending."""
        return tuple(self.convergence.runs) if self.convergence is not None else ()


def workload_record(records: Sequence[Record]) -> WorkloadRecord:
    """Find the record of the workload's sizes.

    Raises:
        BadInput: there is none.
    """
    for record in records:
        if isinstance(record, WorkloadRecord):
            return record
    raise BadInput("the run has no records yet", hint="`scaler tune ... --resume` continues it")


def fit_all(records: Sequence[Record], cluster: Cluster, zero_stage: int = 0) -> Fits:
    """Fit everything that the records hold evidence for; step times of one ZeRO stage."""
    # In the order of questions, not of answers: the same evidence then gives the same numbers to the bit.
    records = sorted((record for record in records if not record.held_out), key=lambda record: record.task)
    trials = [r for r in records if isinstance(r, ConvergenceRecord)]
    sizes = workload_record(records)
    runs = [r for r in records if isinstance(r, ThroughputRecord) and r.plan.zero_stage == zero_stage]
    return Fits(
        memory=fit_memory(
            (r for r in records if isinstance(r, MemoryRecord | PredictionRecord)), cluster.capacity_bytes()
        ),
        step_time=fit_step_time(runs),
        mean_over_median=mean_over_median(runs),
        convergence=fit_convergence(trials, optimizer_of(records)),
        tried=tuple(batch_results(trials)),
        trials=trials,
        branching=fit_branching(r for r in records if isinstance(r, BranchRecord)),
        train_examples=sizes.train_examples,
    )
