"""Progress of a measurement, on standard error."""

import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from scaler.units import format_seconds


class TerminalProgress:
    """Shows how far each phase is; use it as a context manager, and call it with (phase, done, total).

    A terminal gets one bar per phase. Anything else gets a plain line when a phase starts and when it ends:
    a total may grow while its phase runs, so a phase ends when the next one starts.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._phase: tuple[str, int, int] | None = None
        self._started_s = 0.0
        if self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            self._bars = _bars(self._stream)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._end_phase("stopped" if kind is not None else "done")

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Tell that `done` of `total` tasks of a phase are answered."""
        if self._bars is not None:
            self._show(self._bars, phase, done, total)
            return
        if self._phase is None or self._phase[0] != phase:
            self._end_phase("done")
            self._started_s = time.monotonic()
            self._print(f"{phase}: started, {done} of {total} tasks done")
        self._phase = (phase, done, total)

    def notice(self, text: str) -> None:
        """Show a line above the bars, or among the lines: between phases, so the last one has ended."""
        if self._bars is not None:
            self._bars.console.print(Text(text))
        else:
            self._end_phase("done")
            self._print(text)

    def _show(self, bars: Progress, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = bars.add_task(phase, total=total, completed=done)
        else:
            bars.update(self._tasks[phase], total=total, completed=done)

    def _end_phase(self, word: str) -> None:
        if self._phase is not None:
            phase, done, total = self._phase
            elapsed = format_seconds(time.monotonic() - self._started_s)
            self._print(f"{phase}: {word}, {done} of {total} tasks in {elapsed}")
        self._phase = None

    def _print(self, line: str) -> None:
        print("".join(c if c.isprintable() else "?" for c in line), file=self._stream, flush=True)


def _bars(stream: TextIO) -> Progress:
    return Progress(
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("tasks,"),
        TimeElapsedColumn(),
        TextColumn("passed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(file=stream, color_system=None if os.environ.get("NO_COLOR") else "auto"),
        redirect_stdout=False,  # the answer may be piped from there
    )
