"""Predictions from measurements that a user brought, in a terminal."""

from rich.console import Console, Group, RenderableType

from scaler.fit.bring import StepTimeAnswer
from scaler.report.terminal import heading, make_console, new_table, plain
from scaler.report.wording import NOT_IDENTIFIABLE
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
    parts: list[RenderableType] = [table, plain(f"model: {answer.model}")]
    if answer.notes:
        parts += [heading("Not known from these rows"), *(plain(f"- {note}") for note in answer.notes)]
    (console or make_console()).print(Group(*parts))
