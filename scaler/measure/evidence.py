"""Evidence: asks each question once, records the answer when it is taken, and stops at the budget."""

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from scaler.probe.convergence import ConvergenceRequest
from scaler.probe.memory import MemoryRequest, out_of_memory_record
from scaler.records import ConvergenceRecord, Record
from scaler.runs import RunFolder
from scaler.runtime.protocol import Outcome, Probe, Runtime, Task
from scaler.units import format_seconds

Progress = Callable[[str, int, int], None]
"""(phase, tasks done, tasks in all)"""

Notice = Callable[[str], None]
"""Shows a line to the user."""


class Evidence:
    """Asks tasks of a runtime, and skips those that the run folder answers already."""

    def __init__(
        self,
        runtime: Runtime,
        run: RunFolder,
        budget_s: float | None,
        progress: Progress | None = None,
        notice: Notice | None = None,
    ) -> None:
        self.records = run.records()
        self.checkpoint = str(run.where(run.checkpoint))
        self.workers = runtime.workers
        self._runtime = runtime
        self._run = run
        self._started = time.monotonic()
        self._budget_s = budget_s if budget_s is not None else math.inf
        self._progress = progress
        self._notice = notice
        self._said_failing = False
        self._phases: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._answers = {r.task: r for r in self.records if not _cut_short(r)}

    def limit_to(self, budget_s: float) -> None:
        """Bound measuring, from its start on, where it was not before."""
        self._budget_s = min(self._budget_s, budget_s)

    def say(self, text: str) -> None:
        """Tell the user something about the measuring."""
        if self._notice is not None:
            self._notice(text)

    def spent(self) -> str:
        """Say what measuring has cost so far, and what is left of the budget."""
        spent_s = time.monotonic() - self._started
        text = f"{format_seconds(spent_s)} spent, {spent_s * self.workers / 3600:.2g} device-hours"
        if math.isinf(self._budget_s):
            return text
        return f"{text}; {format_seconds(max(0.0, self.left_s()))} of the budget left"

    def out_of_budget(self) -> bool:
        """Whether the budget for measuring is spent."""
        return self.share_spent() >= 1

    def left_s(self) -> float:
        """How much of the budget is left; infinite without one."""
        return self._started + self._budget_s - time.monotonic()

    def share_spent(self) -> float:
        """How much of the budget is spent; 0 without one."""
        spent_s = time.monotonic() - self._started
        return spent_s / self._budget_s if self._budget_s > 0 else math.inf

    def knows(self, task: Task) -> bool:
        """Whether the task was answered already."""
        return task.key in self._answers

    def ask(self, phase: str, tasks: Sequence[Task], expected: int = 0) -> list[Record]:
        """Give the tasks' records, in their order; those that the budget did not reach are left out.

        `expected` is how many tasks the whole phase will probably ask, for the progress shown.

        Raises:
            WorkloadError, ClusterFailed, ScalerError: a task failed; what was answered is kept.
        """
        unique = {task.key: task for task in tasks}
        open_tasks = [task for key, task in unique.items() if key not in self._answers]
        if open_tasks and phase not in self._phases and self._phases:
            self.say(f"{self.spent()}; next: {phase}")
        counts = self._phases[phase]
        counts[1] += len(unique)
        self._count(phase, len(unique) - len(open_tasks), expected)
        for outcome in self._runtime.run(self._within_budget(open_tasks)):
            record = _record(outcome)
            if record.task not in self._answers:
                self._append(record)
                self.records.append(record)
                self._answers[record.task] = record
            self._count(phase, 1, expected)
        answered = [self._answers[task.key] for task in tasks if task.key in self._answers]
        return [record for record in answered if not _cut_short(record)]

    def _append(self, record: Record) -> None:
        self._run.append(record)
        failure = self._run.upload_failure
        if failure is not None and not self._said_failing:
            self.say(f"{failure.message}; it is tried again, and until then kept in {self._run.path}")
        self._said_failing = failure is not None

    def _count(self, phase: str, done: int, expected: int) -> None:
        counts = self._phases[phase]
        counts[0] += done
        if self._progress is not None:
            self._progress(phase, counts[0], max(counts[1], expected))

    def _within_budget(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for task in tasks:
            if self.out_of_budget():
                return
            if isinstance(task.request, ConvergenceRequest):
                limit_s = min(task.request.time_limit_s, self.left_s())
                request = dataclasses.replace(task.request, time_limit_s=limit_s)
                task = dataclasses.replace(task, request=request)
            yield task


def plan_task(probe: Probe, request: Any) -> Task:
    """Make the task of a request that holds a plan: on its workers, a whole group where it shards."""
    plan = request.plan
    return Task(probe, request, plan.workers, whole_group=plan.zero_stage > 0)


def _record(outcome: Outcome) -> Record:
    if outcome.record is not None:
        return outcome.record
    assert outcome.failure is not None
    if outcome.failure.kind == "out_of_memory" and isinstance(outcome.task.request, MemoryRequest):
        return out_of_memory_record(outcome.task)
    raise outcome.failure.error(outcome.task)


def _cut_short(record: Record) -> bool:
    return isinstance(record, ConvergenceRecord) and record.stop == "deadline"
