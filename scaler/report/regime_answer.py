"""`scaler regimes`: its page, its text in a terminal and its JSON."""

from typing import Any

from markupsafe import Markup
from rich.console import Console, Group, RenderableType
from rich.text import Text

from scaler.fit.regimes import RegimesFit, fit_regimes
from scaler.records import RegimesRecord
from scaler.report.drawing import draw
from scaler.report.html import environments, load_template, taken_words
from scaler.report.regime_words import (
    REGIME_HEADERS,
    REGIME_NOTE,
    how_sentences,
    regime_rows,
    regime_sentences,
)
from scaler.report.regimes import regime_figures
from scaler.report.terminal import heading, make_console, new_table, plain

_TITLE = "Full batch, stochastic and mini-batch, side by side"


def print_regimes(fit: RegimesFit, console: Console | None = None) -> None:
    """Print the regimes' table, and what it says in sentences; the page and the data have the intervals."""
    table = new_table(*REGIME_HEADERS)
    for row in regime_rows(fit):
        table.add_row(*(plain(value) for value, _ in row))
    parts: list[RenderableType] = [plain(_TITLE, "bold"), Text(), table, plain(REGIME_NOTE)]
    parts += [heading("What it shows"), *(plain(f"- {s}") for s in regime_sentences(fit))]
    parts += [heading("How it was measured"), *(plain(f"- {s}") for s in how_sentences(fit))]
    (console or make_console()).print(Group(*parts))


def regimes_data(fit: RegimesFit) -> dict[str, Any]:
    """Give everything found, and the sentences, as data for JSON."""
    return {
        **fit.model_dump(mode="json"),
        "findings": regime_sentences(fit),
        "method": how_sentences(fit),
    }


def render_regimes(record: RegimesRecord) -> str:
    """Write the page: sentences, pictures, the table, and how it was measured."""
    fit = fit_regimes(record)
    return load_template("regimes.html").render(
        title=_TITLE,
        workload=record.name,
        sentences=regime_sentences(fit),
        # draw() escapes its own text; nothing else is trusted.
        figures=[(f.name, f.title, Markup(draw(f)), f.caption) for f in regime_figures(record, fit)],
        headers=REGIME_HEADERS,
        rows=regime_rows(fit),
        note=REGIME_NOTE,
        how=how_sentences(fit),
        taken=taken_words([record]),
        environments=environments([record]),
    )
