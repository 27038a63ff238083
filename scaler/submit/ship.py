"""What a job takes along: its launch, the user's folder, this scaler, and the earlier run to continue."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from scaler.errors import BadInput, nearest
from scaler.launch import LaunchConfig
from scaler.records import versions
from scaler.runs import FILES, RunFolder
from scaler.schema import write_atomically
from scaler.storage import is_url
from scaler.workload import BUILT_IN

STAGED = "scaler_job"
"""Folder on the job's import path: launch.yaml, versions.json, and in run/ the run to continue."""

_PACKAGE = Path(__file__).parents[1]


def comes_back(storage_path: str) -> bool:
    """Whether the run folder lies with the job and has to be fetched; another path outlives the job."""
    return not is_url(storage_path) and not Path(storage_path).is_absolute()


def working_folder(workload: str) -> tuple[Path | None, str]:
    """Give the folder that becomes the job's current one, and the workload's address in it.

    That is the current folder, as with `ray job submit --working-dir .`: what works here works there. A file
    elsewhere brings its own folder; what is built in or installed needs none.

    Raises:
        BadInput: there is no such file, and no such workload built in.
    """
    place, _, name = workload.rpartition(":")
    here = Path.cwd()
    if not place:
        if name not in BUILT_IN:
            raise BadInput(
                f"unknown workload {name!r}{nearest(name, BUILT_IN)}",
                hint=f"built in are {', '.join(BUILT_IN)}; yours is file.py:name or package.module:name",
            )
        return None, workload
    if not place.endswith(".py"):
        top = place.partition(".")[0]
        mine = (here / top).is_dir() or (here / f"{top}.py").is_file()
        return (here if mine else None), workload
    file = Path(place).resolve()
    if not file.is_file():
        siblings = [str(path) for path in sorted(file.parent.glob("*.py"))]
        raise BadInput(
            f"no such workload file: {place}{nearest(str(file), siblings)}",
            hint="a path in a launch file is looked for beside it, then in the current folder",
        )
    folder = here if file.is_relative_to(here) else file.parent
    return folder, f"{file.relative_to(folder).as_posix()}:{name}"


def ship(launch: LaunchConfig, staging: Path, resumed: RunFolder | None) -> dict[str, Any]:
    """Write what the job needs into `staging`, and give the job's runtime environment.

    Raises:
        BadInput: the workload's file is absent.
    """
    folder, workload = working_folder(launch.workload)
    staged = staging / STAGED
    staged.mkdir()
    # The job's cluster is the one it was submitted to.
    launch = launch.model_copy(update={"workload": workload, "address": None})
    write_atomically(staged / "launch.yaml", launch.to_yaml())
    write_atomically(staged / "versions.json", json.dumps(versions()))
    if resumed is not None:
        (staged / "run").mkdir()
        for name in FILES:
            if (resumed.path / name).is_file():
                shutil.copy2(resumed.path / name, staged / "run" / name)
    environment: dict[str, Any] = {
        "py_modules": [str(_PACKAGE), *_metadata(staging), str(staged)],
        "excludes": ["__pycache__/", *_run_folders(folder)],
    }
    return environment if folder is None else {"working_dir": str(folder), **environment}


def _metadata(staging: Path) -> list[str]:
    """Write what pip knows of this scaler: the job then names its version, and what it requires."""
    try:
        found = metadata.distribution("scaler")
    except metadata.PackageNotFoundError:  # run from a clone
        return []
    folder = staging / f"scaler-{found.version}.dist-info"
    folder.mkdir()
    write_atomically(folder / "METADATA", found.read_text("METADATA") or found.read_text("PKG-INFO") or "")
    return [str(folder)]


def _run_folders(folder: Path | None) -> list[str]:
    """Give patterns for the run folders in `folder`: large, new after every run, and of no use to a job."""
    runs = {path.parent.name for path in folder.glob("*/records.jsonl")} if folder is not None else set()
    # Ray applies a pattern to every folder that travels: one for report/ would take it from the package.
    return [f"/{name}/" for name in sorted(runs) if not (_PACKAGE / name).exists()]
