"""submit(): a launch as a job on a Ray cluster, followed to its end, and its run folder fetched."""

import signal
import sys
import tempfile
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler.decide.config import BatchConfig
from scaler.errors import BadInput, ClusterFailed, Interrupted
from scaler.launch import LaunchConfig
from scaler.runs import RunFolder
from scaler.storage import is_url
from scaler.submit.dashboard import Dashboard
from scaler.submit.fetch import fetch
from scaler.submit.ship import comes_back, ship

_OWN_EXIT_CODES = range(6)  # of scaler's command line; a job that ends with another one died
_LAST_LINES = 5


@dataclass(frozen=True)
class Finished:
    """A job that ended by itself, with scaler's exit code."""

    exit_code: int
    run: str | None
    """Where its run folder lies: here, or at the launch's storage path; None where it made none."""
    config: BatchConfig | None
    """The answer of one that is done."""


def submit(
    path: str | Path,
    address: str,
    *,
    out: str | None = None,
    resume: bool = False,
    force: bool = False,
    job: str | None = None,
    show: Callable[[str], object] = sys.stderr.write,
) -> Finished:
    """Run the launch file at `path` as a job, and give `show` its log as it grows.

    With a relative storage path the run folder lies with the job, so it is fetched: into `out`, by default to
    the storage path seen from here. An `out` in object storage takes the storage path's place. `job`: follow
    this one, which was submitted before.

    Raises:
        BadInput: the launch, the out folder or the address is wrong.
        ClusterFailed: there is no cluster, it demands a token, or the job died.
        Interrupted: the keyboard ended the following, or somebody stopped the job.
    """
    launch = LaunchConfig.load(path)
    again = f"scaler submit {path} --address {address}{f' --out {out}' if out else ''}"
    if out is not None and is_url(out):
        launch, out = launch.model_copy(update={"storage_path": out}), None
    fetched = comes_back(launch.storage_path)
    if out is not None and not fetched:
        raise BadInput(
            f"--out {out}: the run folder goes to the launch's storage_path, {launch.storage_path}",
            hint="leave out --out, or give a relative storage_path, which is fetched",
        )
    place = out or launch.storage_path
    run = (RunFolder.open(place) if resume else RunFolder.vacant(place, force)) if fetched else None
    dashboard = Dashboard(address)
    log: deque[str] = deque(maxlen=1000)

    def hear(text: str) -> None:
        log.append(text)
        show(text)

    if job is None:
        job = _start(dashboard, launch, run, resume, force, show)
    follow = f"`{again} --follow {job}` follows it again and fetches its run folder"
    try:
        details = dashboard.follow(job, hear)
    except KeyboardInterrupt:
        raise Interrupted(
            f"no longer following {job}, which goes on",
            hint=f"{follow};\n`ray job stop --address {address} {job}` stops it",
        ) from None
    except ClusterFailed as error:
        raise ClusterFailed(error.message, hint=f"if {job} goes on, {follow}") from None
    kept = run is None or fetch(dashboard, details, run)
    hint = f"what it measured is kept: `{again} --resume` continues" if kept else f"`{again}` tries again"
    code = _exit_code(details, "".join(log), hint)
    if code != 0:
        return Finished(code, place if kept else None, None)
    return Finished(code, place, BatchConfig.load(run.path) if run else _answer(dashboard, details))


def _start(
    dashboard: Dashboard,
    launch: LaunchConfig,
    run: RunFolder | None,
    resume: bool,
    force: bool,
    show: Callable[[str], object],
) -> str:
    """Submit the job; returns its name."""
    job = f"scaler-{uuid.uuid4().hex[:12]}"
    command = f"python -m scaler.job {job}{' --resume' if resume else ''}{' --force' if force else ''}"
    with tempfile.TemporaryDirectory(prefix="scaler-") as staging:
        environment = ship(launch, Path(staging), run if resume else None)
        show(f"sending {environment.get('working_dir', 'the launch')} to {dashboard.address}\n")
        dashboard.submit(job, command, environment)
    show(f"submitted as {job}\n")
    return job


def _answer(dashboard: Dashboard, details: Any) -> BatchConfig:
    """Fetch the answer alone, which a job leaves for this where its run folder goes elsewhere."""
    with tempfile.TemporaryDirectory(prefix="scaler-") as folder:
        answer = RunFolder(Path(folder) / "answer")
        fetch(dashboard, details, answer)
        return BatchConfig.load(answer.batch_config)


def _exit_code(details: Any, log: str, hint: str) -> int:
    """Give the job's own exit code.

    Raises:
        ClusterFailed: it has none, or not one of scaler's.
        Interrupted: somebody stopped it.
    """
    code, job = details.driver_exit_code, details.submission_id
    if code in _OWN_EXIT_CODES:
        return int(code)
    if details.status == "STOPPED":
        raise Interrupted(f"{job} was stopped", hint=hint)
    lines = (log if code is not None else details.message or log).strip().splitlines()[-_LAST_LINES:]
    raise ClusterFailed("\n  ".join([f"{job} {_end(code)}; the last it said:", *lines]), hint=hint)


def _end(code: int | None) -> str:
    """Say how a job died; a shell adds 128 to the number of the signal."""
    if code is None:
        return "ended without an exit code"
    number = -code if code < 0 else code - 128
    if number not in set(signal.Signals):
        return f"ended with exit code {code}"
    name = signal.Signals(number).name
    return f"was killed by {name}" + (", as a node out of memory does" if name == "SIGKILL" else "")
