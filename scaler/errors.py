"""Every failure that a user can cause, as one small tree.

    ScalerError            1  a fault of scaler itself
    +-- BadInput           2  the question is wrong: workload, cluster file, option, folder
    |   +-- WorkloadError  2  a function of the user's workload raised
    +-- NothingFeasible    3  no batch configuration fits the limits
    +-- Interrupted        4  stopped early, with a usable partial answer in the run folder
    +-- ClusterFailed      5  Ray, a worker, a process group or the run's storage failed

The number is the exit code of the command line. A message says what and where; the hint says what to do.
"""

import difflib
from collections.abc import Iterable


class ScalerError(Exception):
    """Base of all errors that are raised on purpose; carries a hint and an exit code."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class BadInput(ScalerError):
    """The question is wrong."""

    exit_code = 2


class WorkloadError(BadInput):
    """A function of the user's workload raised."""


class NothingFeasible(ScalerError):
    """No batch configuration satisfies the limits."""

    exit_code = 3


class Interrupted(ScalerError):
    """Stopped early; what was measured is kept."""

    exit_code = 4


class ClusterFailed(ScalerError):
    """Ray, a worker, a process group or the run's storage failed."""

    exit_code = 5


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name was probably meant: "; did you mean 'digits'?", or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
