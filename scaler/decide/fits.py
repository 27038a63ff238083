"""Every fit that the records hold evidence for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.fit.learning_rate import BatchResult, batch_results
from scaler.fit.memory import MemoryFits, fit_memory
from scaler.fit.step_time import StepTimeFit, fit_step_time
from scaler.fit.steps import StepsFit, fit_steps
from scaler.records import (
    ConvergenceRecord,
    MemoryRecord,
    PredictionRecord,
    Record,
    ThroughputRecord,
    WorkloadRecord,
)


@dataclass(frozen=True)
class Fits:
    """What the records taught; absent where there was too little evidence."""

    memory: MemoryFits
    step_time: StepTimeFit | None
    steps: StepsFit | None
    batches: Mapping[int, BatchResult]
    train_examples: int


def workload_record(records: Sequence[Record]) -> WorkloadRecord:
    """Find the record of the workload's sizes.

    Raises:
        BadInput: there is none.
    """
    for record in records:
        if isinstance(record, WorkloadRecord):
            return record
    raise BadInput("the run has no records yet", hint="`scaler tune ... --resume` continues it")


def fit_all(records: Sequence[Record], cluster: Cluster) -> Fits:
    """Fit everything that the records hold evidence for."""
    # In the order of questions, not of answers: the same evidence then gives the same numbers to the bit.
    records = sorted((record for record in records if not record.held_out), key=lambda record: record.task)
    batches = batch_results(r for r in records if isinstance(r, ConvergenceRecord))
    return Fits(
        memory=fit_memory(
            (r for r in records if isinstance(r, MemoryRecord | PredictionRecord)), cluster.capacity_bytes()
        ),
        step_time=fit_step_time(r for r in records if isinstance(r, ThroughputRecord)),
        steps=fit_steps(batches.values()),
        batches=batches,
        train_examples=workload_record(records).train_examples,
    )
