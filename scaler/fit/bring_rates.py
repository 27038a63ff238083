"""Bring your own learning rates: `scaler fit learning-rate`."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat

from scaler.errors import BadInput
from scaler.fit.bring import read_tables
from scaler.fit.rate_curve import Trial
from scaler.fit.rate_fit import METHOD, RateFit, fit_losses
from scaler.schema import Strict
from scaler.units import format_count

Batch = Annotated[float, Field(ge=1e-12, lt=1e15)]
_DIVERGED = ("nan", "inf", "+inf", "infinity", "+infinity")


def _diverged(cell: Any) -> Any:
    """Read what a diverged run is written as; an empty cell is absent already."""
    return None if isinstance(cell, str) and cell.strip().lower() in _DIVERGED else cell


class AskedRate(Strict):
    """A row of ASKED."""

    global_batch: Batch


class KnownRate(AskedRate):
    """A row of KNOWN: one run."""

    learning_rate: Annotated[float, Field(ge=1e-15, lt=1e15)]
    loss: Annotated[float | None, BeforeValidator(_diverged)] = None
    """Less is better; absent, nan or inf where the run diverged."""
    seed: str | None = None

    @property
    def trial(self) -> Trial:
        """Give the run as the fit takes it."""
        loss = math.nan if self.loss is None else self.loss
        return Trial(self.global_batch, math.log(self.learning_rate), loss)


class PredictedRate(AskedRate):
    """The best learning rate at a batch, with its 90% interval."""

    learning_rate: PositiveFloat
    low: PositiveFloat
    high: PositiveFloat


class Exponent(Strict):
    """p in lr ~ B^p, with its 90% interval."""

    value: float
    low: float
    high: float


class RateAnswer(Strict):
    """What `scaler fit learning-rate` prints."""

    model: str
    identifiable: bool
    """Whether the rows tell how the best rate grows; else the notes say what is a guess."""
    exponent: Exponent | None
    """Over the batches known, up to where the growth bends. Absent where it is not identifiable."""
    saturates: bool | None
    """Whether the growth has ended at the largest batch known; absent where the rows do not tell."""
    notes: tuple[str, ...]
    predictions: tuple[PredictedRate, ...]
    """In the order asked."""


def fit_learning_rate_table(known: str | Path, asked: str | Path) -> RateAnswer:
    """Fit the losses in one CSV file and predict the best rate at the batches of another.

    Raises:
        BadInput: a file or a row is wrong (lists every fault), or no run has a loss.
    """
    rows, questions = read_tables(known, KnownRate, asked, AskedRate)
    fit = fit_losses([row.trial for row in rows])
    if fit is None:
        raise BadInput(
            f"{known}: none of {len(rows)} rows has a finite loss",
            hint="the columns are global_batch, learning_rate and loss, optionally seed; an empty loss means "
            "that the run diverged",
        )
    batches = [row.global_batch for row in questions]
    exponent = fit.exponent()
    return RateAnswer(
        model=METHOD,
        identifiable=fit.identifiable,
        exponent=Exponent(**exponent.model_dump(include={"value", "low", "high"})) if exponent else None,
        saturates=fit.saturates(),
        notes=tuple(_notes(fit, rows, batches)),
        predictions=tuple(
            PredictedRate(
                global_batch=batch,
                learning_rate=found.value,
                low=found.low or found.value,
                high=found.high or found.value,
            )
            for batch, found in ((batch, fit.best_rate(batch)) for batch in batches)
        ),
    )


def _notes(fit: RateFit, rows: list[KnownRate], batches: list[float]) -> list[str]:
    notes = list(fit.unidentified())
    silent = sorted({row.global_batch for row in rows} - set(fit.out_of))
    if silent:
        notes.append(f"every run diverged at global batch {', '.join(map(format_count, silent))}")
    if fit.falls():
        notes.append("the best rate falls at the largest batches known")
    far = [batch for batch in batches if fit.is_extrapolated(batch)]
    if far:
        notes.append(f"{len(far)} of {len(batches)} rows lie beyond 4 x of what was measured")
    return notes
