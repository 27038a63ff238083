"""Bring your own runs to the target: `scaler fit steps`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from scaler.errors import BadInput
from scaler.fit.bring import read_tables
from scaler.fit.steps import BatchRuns, StepsFit, fit_batch_runs
from scaler.schema import Strict
from scaler.stats import Estimate

Amount = Annotated[float, Field(gt=1e-12, lt=1e15)]


class AskedSteps(Strict):
    """A row of ASKED: the mean of so many fresh runs of a batch."""

    global_batch: Amount
    n_seeds: PositiveInt = 1


class KnownSteps(Strict):
    """A row of KNOWN: one run."""

    global_batch: Amount
    seed: str
    examples: Amount
    """Until the target, or how far it got; any unit of data, one throughout."""
    reached: bool = True
    """Whether the target was reached; else the row is right-censored."""


class PredictedSteps(Strict):
    """Mean examples to target over the asked number of fresh runs, with its 90% interval."""

    global_batch: float
    n_seeds: int
    examples: PositiveFloat
    low: float | None = None
    high: float | None = None


class StepsAnswer(Strict):
    """What `scaler fit steps` prints."""

    model: str
    identifiable: bool
    """Whether the curve has bent enough to tell the critical batch."""
    critical_batch: Estimate | None
    """Absent where it is not identifiable."""
    notes: tuple[str, ...]
    predictions: tuple[PredictedSteps, ...]
    """In the order asked."""


def fit_steps_table(known: str | Path, asked: str | Path) -> StepsAnswer:
    """Fit the runs in one CSV file and predict the batches of another.

    Raises:
        BadInput: a file or a row is wrong (lists every fault), or no run reached the target.
    """
    rows, questions = read_tables(known, KnownSteps, asked, AskedSteps)
    runs = _by_batch(rows)
    if not any(run.reached for run in runs):
        raise BadInput(
            f"{known}: none of {len(rows)} runs reached the target, so nothing is known of when one does",
            hint="train longer, or take an easier target; rows with reached 0 only say that more is needed",
        )
    fit = fit_batch_runs(runs)
    batches = [row.global_batch for row in questions]
    found = fit.examples_at(batches, [row.n_seeds for row in questions])
    return StepsAnswer(
        model=fit.model,
        identifiable=fit.identifiable,
        critical_batch=fit.critical_batch(),
        notes=tuple(_notes(fit, runs, batches)),
        predictions=tuple(
            PredictedSteps(**row.model_dump(), examples=e.value, low=e.low, high=e.high)
            for row, e in zip(questions, found, strict=True)
        ),
    )


def _by_batch(rows: Sequence[KnownSteps]) -> list[BatchRuns]:
    ends: dict[float, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows:
        ends[row.global_batch][0 if row.reached else 1].append(row.examples)
    return [BatchRuns(batch, tuple(reached), tuple(cut)) for batch, (reached, cut) in sorted(ends.items())]


def _notes(fit: StepsFit, runs: Sequence[BatchRuns], asked: Sequence[float]) -> list[str]:
    """Say what of the answer the runs do not tell."""
    notes = []
    if len(runs) == 1:
        notes.append("one batch was run: how examples change with the batch is a guess")
    if not fit.identifiable:
        notes.append("the curve has not bent enough over these batches to tell a critical batch")
    if all(len(run.reached) < 2 for run in runs):
        notes.append("no batch has two runs that reached the target: how far seeds differ is a guess")
    never = [f"{run.global_batch:g}" for run in runs if not run.reached]
    if never:
        notes.append(f"no run of batch {', '.join(never)} reached the target: it needs more than was tried")
    far = sum(fit.is_extrapolated(batch) for batch in asked)
    if far:
        notes.append(f"{far} of {len(asked)} rows lie beyond 4 x of what was run")
    return notes
