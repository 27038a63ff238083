"""The replay runtime: answers from a recorded run, so that what follows measuring is tested without it."""

from collections.abc import Iterable, Iterator
from typing import Self

from scaler.errors import BadInput
from scaler.records import Record
from scaler.runtime.protocol import Outcome, Task


class ReplayRuntime:
    """Yields the record that answered the same question before."""

    def __init__(self, records: Iterable[Record], workers: int) -> None:
        self.workers = workers
        self._records = {record.task: record for record in records}

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Look the tasks up, in order.

        Raises:
            BadInput: a question was not asked in the recorded run.
        """
        for task in tasks:
            if task.key not in self._records:
                raise BadInput(
                    f"the recorded run has no answer to {task.key}",
                    hint="replay with the workload, cluster and options it was recorded with",
                )
            yield Outcome(task, record=self._records[task.key])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass
