"""The answer in a terminal, or in a file that its output is piped to."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from scaler.decide.config import Answer, BatchConfig
from scaler.report import noise_words, rate_words
from scaler.report.branches import BRANCH_HEADERS, branch_lines, branch_sentence
from scaler.report.choice_words import CHANGE_HEADERS, CHANGE_TITLE, change_lines, choice_sentence
from scaler.report.wording import (
    EPOCH_HEADERS,
    NOT_MEASURED,
    SWEEP_HEADERS,
    amount,
    answer_rows,
    answer_sentence,
    comparison_words,
    confirmation_sentence,
    counted,
    epoch_lines,
    epoch_sentence,
    micro_batch_words,
    powers_sentence,
    sweep_lines,
)
from scaler.units import format_bytes, format_count, format_seconds

_LEAST_WIDTH = 100


def print_answer(config: BatchConfig, console: Console | None = None) -> None:
    """Print every worker count's answer, the chosen one's reasons and what they were held against."""
    (console or make_console()).print(answer_table(config))


def make_console(stream: TextIO | None = None) -> Console:
    """Make a console for reports: without a terminal 100 columns wide, without any escapes under NO_COLOR."""
    stream = stream or sys.stdout
    console = Console(
        file=stream, highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto"
    )
    if not console.is_terminal:
        console.width = max(_LEAST_WIDTH, console.width)
    return console


def answer_table(config: BatchConfig) -> RenderableType:
    """Give the whole answer as one renderable; every user-given text in it is plain."""
    parts: list[RenderableType] = [
        plain(answer_sentence(config), "bold"),
        plain(choice_sentence(config)),
        Text(),
        _worker_counts(config),
    ]
    parts += [
        heading(f"The configuration to use, on {counted(config.chosen_workers, 'worker')}"),
        _chosen(config),
    ]
    if config.changes:
        parts += [heading(CHANGE_TITLE), table_of(CHANGE_HEADERS, change_lines(config))]
    if config.branching is not None:
        parts += [
            heading("Which batch does not lose"),
            plain(branch_sentence(config.branching)),
            table_of(BRANCH_HEADERS, branch_lines(config)),
        ]
    if config.epochs:
        parts += [
            heading("Why a smaller batch is slower per epoch"),
            plain(epoch_sentence(config)),
            table_of(EPOCH_HEADERS, epoch_lines(config)),
        ]
    if config.findings.powers_of_two is not None:
        parts += [heading("Why powers of two"), plain(powers_sentence(config.findings.powers_of_two))]
    if config.findings.noise_scale is not None:
        parts += [heading(noise_words.TITLE), plain(noise_words.noise_sentence(config.findings))]
    if config.rules_of_thumb:
        parts += [heading("Rules of thumb"), _rules(config)]
    if config.findings.learning_rate_rules:
        parts += [heading(rate_words.TITLE), plain(rate_words.rule_sentence(config)), _rate_rules(config)]
        parts += [plain(f"- {note}") for note in rate_words.rule_notes(config)]
    if config.sweep:
        parts += [heading("What the memory of one device buys"), table_of(SWEEP_HEADERS, sweep_lines(config))]
    parts += [heading("Predicted against observed"), plain(confirmation_sentence(config))]
    if config.confirmation is not None and config.confirmation.comparisons:
        parts.append(_comparisons(config))
    if config.findings.notes:
        parts.append(heading("Not measured or not identifiable"))
        parts += [plain(f"- {note}") for note in config.findings.notes]
    return Group(*parts)


def _worker_counts(config: BatchConfig) -> Table:
    table = new_table("workers", "global batch", "micro x passes", "learning rate", "step time")
    for header in ("samples/s", "time to target", "peak memory", "bound by"):
        table.add_column(header)
    lines = {answer.plan.workers: _line(answer) for answer in config.answers}
    for workers in sorted(lines.keys() | config.infeasible.keys()):
        chosen = workers == config.chosen_workers
        name = f"{workers} chosen" if chosen else str(workers)
        cells = lines.get(workers, (*[""] * 7, "no answer"))
        table.add_row(*map(plain, (name, *cells)), style="bold" if chosen else "")
    return table if not config.infeasible else _with_reasons(table, config.infeasible)


def _with_reasons(table: Table, infeasible: dict[int, str]) -> Table:
    outer = Table.grid()
    outer.add_row(table)
    for workers, reason in sorted(infeasible.items()):
        outer.add_row(plain(f"  {workers} workers: {reason}"))
    return outer


def _line(answer: Answer) -> tuple[str, ...]:
    return (
        format_count(answer.plan.global_batch),
        f"{micro_batch_words(answer.plan)} x {answer.plan.accumulation}",
        f"{answer.learning_rate:g}",
        amount(answer.step_time_s, format_seconds),
        amount(answer.samples_per_s, format_count),
        amount(answer.time_to_target_s, format_seconds),
        amount(answer.peak_memory_bytes, format_bytes),
        answer.bound_by,
    )


def _chosen(config: BatchConfig) -> Table:
    table = new_table("what", "value", "90% interval", "why")
    for row in answer_rows(config):
        table.add_row(*map(plain, (row.name, row.value, row.interval, row.reason)))
    return table


def _rules(config: BatchConfig) -> Table:
    table = new_table("rule", "global batch", "time ratio", "agrees", "verdict")
    for rule in config.rules_of_thumb:
        ratio = NOT_MEASURED if rule.time_ratio is None else f"{format_count(rule.time_ratio)} x"
        agrees = "yes" if rule.agrees else "no"
        table.add_row(*map(plain, (rule.rule, format_count(rule.global_batch), ratio, agrees, rule.verdict)))
    return table


def _rate_rules(config: BatchConfig) -> Table:
    table = new_table(*rate_words.rule_headers(config))
    for column in table.columns:
        column.overflow = "fold"
    for line in rate_words.rule_lines(config):
        table.add_row(*(plain(value) for value, _ in line))
    return table


def table_of(headers: Iterable[str], lines: Iterable[Sequence[str]]) -> Table:
    """Make a table of lines of cells."""
    table = new_table(*headers)
    for line in lines:
        table.add_row(*map(plain, line))
    return table


def _comparisons(config: BatchConfig) -> Table:
    table = new_table("quantity", "predicted", "90% interval", "observed", "in the interval?")
    for comparison in config.confirmation.comparisons if config.confirmation else ():
        table.add_row(*map(plain, comparison_words(comparison)))
    return table


def new_table(*headers: str) -> Table:
    """Make an empty table with these column headers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="", padding=(0, 1, 0, 0))
    for header in headers:
        table.add_column(header)
    return table


def heading(title: str) -> Text:
    """Make the heading of a section."""
    return plain(f"\n{title}", "bold")


def plain(text: str, style: str = "") -> Text:
    """Make text without markup; control characters of user-given names do not reach the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else "?" for c in text), style=style)
