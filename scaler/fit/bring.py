"""Bring your own measurements: a table of what is known, a table of what is asked, predictions."""

from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from scaler.errors import BadInput
from scaler.fit.step_model import StepShape
from scaler.fit.step_posterior import Rows
from scaler.fit.step_time import METHOD, fit_step_rows
from scaler.schema import Strict, read_csv

Count = Annotated[int, Field(gt=0, le=10**9)]


class AskedStepTime(Strict):
    """A row of ASKED: how a step is spread."""

    nodes: Count
    workers: Count
    micro_batch: Count
    """Examples of one worker and pass."""
    accumulation: Count

    @property
    def shape(self) -> StepShape:
        """Give what the step's time depends on."""
        return StepShape(self.nodes, self.workers, self.micro_batch, self.accumulation)

    @model_validator(mode="after")
    def _has_workers(self) -> "AskedStepTime":
        if self.nodes > self.workers:
            raise ValueError(f"nodes: {self.nodes} nodes, but {self.workers} workers")
        return self


class KnownStepTime(AskedStepTime):
    """A row of KNOWN: the median step of one run."""

    step_time_s: PositiveFloat
    sync_time_s: NonNegativeFloat | None = None
    """Seconds of the step that are not overlapped with compute."""

    @model_validator(mode="after")
    def _is_possible(self) -> "KnownStepTime":
        if self.sync_time_s is not None and self.sync_time_s >= self.step_time_s:
            raise ValueError(f"sync_time_s: {self.sync_time_s} is not below the step's {self.step_time_s}")
        return self


class PredictedStepTime(AskedStepTime):
    """The median step of one fresh run, with its 90% interval."""

    step_time_s: PositiveFloat
    low: Annotated[float | None, Field(gt=0)] = None
    high: float | None = None


class StepTimeAnswer(Strict):
    """What `scaler fit step-time` prints."""

    model: str
    identifiable: bool
    """Whether the rows tell everything that was asked; else the notes say what is a guess."""
    notes: tuple[str, ...]
    predictions: tuple[PredictedStepTime, ...]
    """In the order asked."""


Known = TypeVar("Known", bound=Strict)
Asked = TypeVar("Asked", bound=Strict)


def read_tables(
    known: str | Path, known_row: type[Known], asked: str | Path, asked_row: type[Asked]
) -> tuple[list[Known], list[Asked]]:
    """Read both tables.

    Raises:
        BadInput: a file or a row is wrong; lists the faults of both.
    """
    try:
        rows = read_csv(Path(known), known_row)
    except BadInput as error:
        try:
            read_csv(Path(asked), asked_row)
        except BadInput as other:
            raise BadInput(f"{error.message}\n{other.message}", f"{error.hint}; {other.hint}") from None
        raise
    return rows, read_csv(Path(asked), asked_row)


def fit_step_time_table(known: str | Path, asked: str | Path) -> StepTimeAnswer:
    """Fit the step times in one CSV file and predict those of another.

    Raises:
        BadInput: a file or a row is wrong; lists every fault.
    """
    rows, questions = read_tables(known, KnownStepTime, asked, AskedStepTime)
    shapes = [row.shape for row in questions]
    fit = fit_step_rows(
        Rows(
            shapes=tuple(row.shape for row in rows),
            step_time_s=np.array([row.step_time_s for row in rows]),
            sync_time_s=np.array([np.nan if row.sync_time_s is None else row.sync_time_s for row in rows]),
        )
    )
    guessed = fit.unidentified(shapes)
    far = [shape for shape in shapes if fit.is_extrapolated(shape)]
    notes = [
        *guessed,
        *([f"{len(far)} of {len(shapes)} rows lie beyond 4 x of what was measured"] if far else []),
    ]
    return StepTimeAnswer(
        model=METHOD,
        identifiable=not guessed,
        notes=tuple(notes),
        predictions=tuple(
            PredictedStepTime(**row.model_dump(), step_time_s=found.value, low=found.low, high=found.high)
            for row, found in zip(questions, fit.predict_all(shapes), strict=True)
        ),
    )
