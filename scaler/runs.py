"""The run folder: launch.yaml, records.jsonl (append-only), batch-config.yaml, report.html, regimes.html."""

import fnmatch
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from scaler.errors import BadInput, ScalerError
from scaler.records import RECORD, Record
from scaler.schema import write_atomically
from scaler.storage import Storage, inside, is_url
from scaler.uploads import Uploads

FILES = (
    "launch.yaml",
    "records.jsonl",
    "batch-config.yaml",
    "report.html",
    "fault.log",
    "regimes.html",
    "checkpoint.pt",
)


class RunFolder:
    """One tuning run, on disk or in object storage. Make it with `create`, find it with `open`.

    One in storage is worked on in a copy here, and what is written goes there in the background. Use it as a
    context manager: leaving it waits for that, and removes the copy once everything lies in storage.
    """

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        self.path = path
        self._storage = storage
        self._uploads = Uploads(path, storage) if storage is not None else None
        (
            self.launch,
            self.records_file,
            self.batch_config,
            self.report,
            self.fault_log,
            self.regimes_report,
            self.checkpoint,
        ) = (path / name for name in FILES)

    @classmethod
    def vacant(cls, path: str | Path, force: bool = False) -> "RunFolder":
        """Give the place of a new run, and touch nothing. With `force` there may be an earlier run.

        Raises:
            BadInput: the folder exists without `force`, holds other files, or cannot be read.
        """
        storage, here = _places(path)
        try:
            present = _names(here) if storage is None else storage.names()
        except OSError as error:
            raise _unusable(path, error) from None
        if present and not force:
            raise BadInput(
                f"the out folder {path} exists and is not empty",
                hint="--resume continues the run in it, --force overwrites it",
            )
        if foreign := sorted(name for name in present if not _is_ours(name)):
            raise BadInput(
                f"the out folder {path} holds files that are not of a run: {', '.join(foreign[:5])}",
                hint="give another folder; --force overwrites only a run",
            )
        return cls(here, storage)

    @classmethod
    def create(cls, path: str | Path, force: bool = False) -> "RunFolder":
        """Make a new, empty run folder.

        `force` clears an earlier run there; a folder that holds anything else is never touched.

        Raises:
            BadInput: the folder exists without `force`, holds other files, or cannot be made.
            ClusterFailed: the storage does not answer.
        """
        run = cls.vacant(path, force)
        if run._storage is not None and force:
            for name in filter(_is_ours, run._storage.names()):
                run._storage.delete(name)
        try:
            for name in filter(_is_ours, _names(run.path)):
                (run.path / name).unlink()
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run.

        Raises:
            BadInput: there is no run at `path`.
            ClusterFailed: the storage does not answer.
        """
        storage, here = _places(path)
        run, present = cls(here, storage), set[str]() if storage is None else storage.names()
        if not run.launch.is_file() and run.launch.name not in present:
            raise BadInput(
                f"{path} is not a run folder: it has no launch.yaml",
                hint="`scaler tune WORKLOAD --cluster FILE --out RUN` makes one",
            )
        if storage is not None:
            # Workers fetch the checkpoint themselves.
            _fetch(storage, present & set(FILES) - {run.checkpoint.name}, here)
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._uploads is None:
            return
        failure = self._uploads.finish()
        if failure is None:
            shutil.rmtree(self.path)
            return
        kept = f"{failure.message}\nwhat could not be put there is kept in {self.path}"
        if error is None:
            raise type(failure)(
                kept,
                hint=f"copy it to {self.where()} once that works; --out {self.path} --resume continues in it",
            )
        if isinstance(error, ScalerError):
            error.message += f"\n{kept}"
        else:
            error.add_note(kept)

    def require_storage(self) -> None:
        """Wait until everything so far lies in storage, before anything is measured; else give up the copy.

        Raises:
            BadInput: no permission.
            ClusterFailed: the storage does not answer.
        """
        if self._uploads is not None and (failure := self._uploads.wait()) is not None:
            self._uploads = None
            shutil.rmtree(self.path)
            raise failure

    @property
    def upload_failure(self) -> ScalerError | None:
        """Why something that was written does not lie in storage yet, where a put failed."""
        return self._uploads.failure if self._uploads is not None else None

    def where(self, file: Path | None = None) -> Path | str:
        """Give the path or URL of a file of the run, or of the folder."""
        if self._storage is None:
            return file or self.path
        return inside(self._storage.url, file.name) if file is not None else self._storage.url

    def write(self, file: Path, text: str) -> None:
        """Write a file of the run, whole or not at all."""
        write_atomically(file, text)
        self._changed(file)

    def _changed(self, file: Path) -> None:
        if self._uploads is not None:
            self._uploads.changed(file.name)

    def append(self, record: Record) -> None:
        """Append one record and flush it, so that an interruption loses nothing that was taken."""
        with self.records_file.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
        self._changed(self.records_file)

    def drop_cut_line(self) -> None:
        """Remove a last line that an interruption cut off, so that the next record starts on its own."""
        if self.records_file.exists():
            data = self.records_file.read_bytes()
            with self.records_file.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
            self._changed(self.records_file)

    def records(self) -> list[Record]:
        """Read all records, oldest first. A last line that an interruption cut off is left out.

        Raises:
            BadInput: another line is not a record; names it.
        """
        if not self.records_file.exists():
            return []
        lines = self.records_file.read_bytes().split(b"\n")[:-1]
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(RECORD.validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                raise BadInput(
                    f"{self.where(self.records_file)}:{number} is not a record: {first['msg']}",
                    hint="remove that line; every other record is kept",
                ) from None
        return found


def _unusable(path: str | Path, error: OSError) -> BadInput:
    return BadInput(
        f"cannot make the out folder {path}: {error.strerror}", hint="give a folder you may write to"
    )


def _places(path: str | Path) -> tuple[Storage | None, Path]:
    """Give a run's storage, if it is in one, and its folder here, of which a copy is not made yet."""
    if not is_url(path):
        return None, Path(path).absolute()
    return Storage(str(path)), Path(tempfile.gettempdir()) / f"scaler-run-{uuid.uuid4().hex[:12]}"


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _is_ours(name: str) -> bool:
    """Whether a file is of a run; `recommend` writes one for each other cluster."""
    return name in FILES or fnmatch.fnmatch(name, "batch-config-*.yaml")


def _fetch(storage: Storage, names: set[str], here: Path) -> None:
    """Copy files from storage, all or none."""
    here.mkdir(mode=0o700)
    try:
        for name in sorted(names):
            storage.get(name, here / name)
    except BaseException:
        shutil.rmtree(here)
        raise
