"""Whether convergence was measured with the micro-batch that will be used, where that matters."""

from collections.abc import Sequence

from scaler.batch import BatchPlan
from scaler.decide.config import Answer
from scaler.records import BranchRecord, ConvergenceRecord, Record, WorkloadRecord


def with_spread(answer: Answer, records: Sequence[Record], sizes: WorkloadRecord) -> Answer:
    """Add to an answer's reasons what `spread_reason` says of its plan."""
    reason = spread_reason(records, sizes, answer.plan)
    if reason is None:
        return answer
    return answer.model_copy(update={"reasons": {**answer.reasons, "spread": reason}})


def spread_reason(records: Sequence[Record], sizes: WorkloadRecord, plan: BatchPlan) -> str | None:
    """Say it in a sentence; None for a workload whose convergence does not depend on the spread."""
    if sizes.batch_statistics:
        layers = ", ".join(sizes.batch_statistics[:3]) + ", ..." * (len(sizes.batch_statistics) > 3)
        why = f"the model has batch statistics ({layers})"
    elif sizes.spread_matters:
        why = "the workload says that the spread matters"
    else:
        return None
    used = {
        record.plan.micro_batches
        for record in records
        if isinstance(record, ConvergenceRecord | BranchRecord)
        and not record.held_out
        and record.plan.global_batch == plan.global_batch
    }
    own = _words(plan.micro_batches)
    if not used:
        return f"{why}, and convergence was not measured at this batch"
    if used == {plan.micro_batches}:
        return f"{why}: convergence was measured with the micro-batch that will be used, {own}"
    others = " and ".join(sorted(_words(entries) for entries in used))
    return f"{why}, and convergence was measured with {others}, not with {own}: it may differ"


def _words(micro_batches: tuple[int, ...]) -> str:
    sizes = sorted(set(micro_batches))
    text = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{text} on {len(micro_batches)} worker{'s' if len(micro_batches) > 1 else ''}"
