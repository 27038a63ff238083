"""Predictions from measurements that a user brought, in a terminal."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table

from scaler.fit.bring import StepTimeAnswer
from scaler.fit.bring_rates import RateAnswer
from scaler.fit.bring_steps import StepsAnswer
from scaler.report.terminal import heading, make_console, new_table, plain
from scaler.report.wording import NOT_IDENTIFIABLE, interval
from scaler.units import format_count, format_seconds


def print_step_times(answer: StepTimeAnswer, console: Console | None = None) -> None:
    """Print the predicted step times in the order asked, and what of them is a guess."""
    table = new_table(
        "nodes", "workers", "micro-batch", "accumulation", "step time", "90% interval", "samples/s"
    )
    for row in answer.predictions:
        samples = row.workers * row.micro_batch * row.accumulation
        between = NOT_IDENTIFIABLE
        if row.low is not None and row.high is not None:
            between = f"{format_seconds(row.low)} to {format_seconds(row.high)}"
        cells = [row.nodes, row.workers, row.micro_batch, row.accumulation]
        table.add_row(
            *map(format_count, cells),
            format_seconds(row.step_time_s),
            between,
            format_count(samples / row.step_time_s),
        )
    _print(table, [], answer, console)


def print_steps(answer: StepsAnswer, console: Console | None = None) -> None:
    """Print the predicted examples to target in the order asked, and the critical batch."""
    table = new_table("global batch", "runs", "examples to target", "90% interval")
    for row in answer.predictions:
        between = NOT_IDENTIFIABLE
        if row.low is not None and row.high is not None:
            between = f"{format_count(row.low)} to {format_count(row.high)}"
        table.add_row(
            format_count(row.global_batch), format_count(row.n_seeds), format_count(row.examples), between
        )
    critical = NOT_IDENTIFIABLE
    if answer.critical_batch is not None:
        found = answer.critical_batch
        critical = f"{format_count(found.value)} (90% interval {interval(found, format_count)})"
    _print(table, [f"critical batch: {critical}"], answer, console)


def print_learning_rates(answer: RateAnswer, console: Console | None = None) -> None:
    """Print the best learning rates in the order asked, and how they grow with the batch."""
    table = new_table("global batch", "learning rate", "90% interval")
    for row in answer.predictions:
        between = f"{row.low:.3g} to {row.high:.3g}"
        table.add_row(format_count(row.global_batch), f"{row.learning_rate:.4g}", between)
    growth = NOT_IDENTIFIABLE
    if answer.exponent is not None:
        found = answer.exponent
        growth = f"batch ^ {found.value:.2f} (90% interval {found.low:.2f} to {found.high:.2f})"
    ends = {True: "it has ended at the largest batch", False: "it goes on at the largest batch", None: ""}
    sentence = "; ".join(filter(None, [f"growth of the best rate: {growth}", ends[answer.saturates]]))
    _print(table, [sentence], answer, console)


def _print(
    table: Table,
    findings: Sequence[str],
    answer: StepTimeAnswer | StepsAnswer | RateAnswer,
    console: Console | None,
) -> None:
    """Print the table, what was found beside it, and what is a guess."""
    parts: list[RenderableType] = [table, *map(plain, [*findings, f"model: {answer.model}"])]
    if answer.notes:
        parts += [heading("Not known from these rows"), *(plain(f"- {note}") for note in answer.notes)]
    (console or make_console()).print(Group(*parts))
