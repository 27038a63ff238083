"""How long the warm-up should be, at the chosen batch and rate only."""

from collections.abc import Sequence

from scaler.decide.config import Answer
from scaler.measure.evidence import Evidence, plan_task
from scaler.probe.convergence import ConvergenceRequest, probe_warmup
from scaler.records import ConvergenceRecord
from scaler.workload import Workload

_UNIT = 0.05  # of the examples to target, where the reference has no warm-up
_LONG = 4
_HOPELESS = 1.25  # a length that needs so many times the usual examples cannot win any more


def measure_warmup(evidence: Evidence, workload: Workload, answer: Answer) -> None:
    """Train the answer without warm-up, with one and with four units of it, seeds as its trials had.

    A unit is the reference's length, else a twentieth of the examples to target; the reference's own length
    was measured by the search. A length gets its second seed only if the first did not need more examples.
    Nothing is asked where the workload brings its own schedule, or no trial was run at the answer's rate.
    """
    usual = [
        record
        for record in evidence.records
        if isinstance(record, ConvergenceRecord)
        and record.kind == "convergence"
        and record.reached
        and (record.plan.global_batch, record.learning_rate)
        == (answer.plan.global_batch, answer.learning_rate)
    ]
    if not usual or workload.schedule is not None:
        return
    own = workload.reference.warmup_examples
    unit = own or round(_UNIT * sum(run.examples for run in usual) / len(usual))
    for length in sorted({0, unit, _LONG * unit} - {own}):
        _try(evidence, sorted(usual, key=lambda run: run.seed), length)


def _try(evidence: Evidence, usual: Sequence[ConvergenceRecord], length: int) -> None:
    for beside in usual:
        request = ConvergenceRequest(
            plan=beside.plan,
            learning_rate=beside.learning_rate,
            warmup_examples=length,
            max_examples=int(_HOPELESS * max(run.examples for run in usual)),
            seed=beside.seed,
        )
        found = evidence.ask("warm-up", [plan_task(probe_warmup, request)], expected=2 * len(usual))
        wins = [r for r in found if isinstance(r, ConvergenceRecord) and r.reached]
        if not wins or wins[0].examples >= beside.examples:
            return
