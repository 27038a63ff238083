"""Bring a job's run folder here."""

import tempfile
from pathlib import Path
from typing import Any

from scaler.errors import BadInput
from scaler.runs import FILES, RunFolder
from scaler.submit.dashboard import Dashboard


def log_folder(job: str) -> str:
    """Where a job leaves its run folder, below the log folder of the node that it runs on.

    Of all that the dashboard's port serves, only log files come back as they are, while the job runs and
    after it was killed. The job's own log would carry text, and nothing of a job that was killed.
    """
    return f"scaler/{job}"


def fetch(dashboard: Dashboard, details: Any, out: RunFolder) -> bool:
    """Copy what a job left into `out`, all files or none; says whether it left any.

    Only names of a run's files are asked for, so that no cluster can write elsewhere.

    Raises:
        BadInput: `out` cannot be written.
        ClusterFailed: the files cannot be read.
    """
    folder = log_folder(details.submission_id)
    there = dashboard.log_files(details.driver_node_id, f"{folder}/*") if details.driver_node_id else set()
    names = [name for name in FILES if f"{folder}/{name}" in there]
    if not names:
        return False
    try:
        out.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.path.parent, prefix=f".{out.path.name}.") as temporary:
            new = Path(temporary) / "run"
            new.mkdir()
            for name in names:
                with (new / name).open("wb") as file:
                    for piece in dashboard.log_file(details.driver_node_id, f"{folder}/{name}"):
                        file.write(piece)
            put_in_place(new, out.path)
    except OSError as error:
        raise BadInput(
            f"cannot write the out folder {out.path}: {error.strerror}", hint="give a folder you may write to"
        ) from None
    return True


def put_in_place(new: Path, out: Path) -> None:
    """Move a complete run to `out`, in place of the run there; other files of the folder stay."""
    if not out.exists():
        new.rename(out)
        return
    for name in FILES:
        if (new / name).exists():
            (new / name).replace(out / name)
        else:
            (out / name).unlink(missing_ok=True)
