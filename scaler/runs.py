"""The run folder: launch.yaml, records.jsonl (append-only), batch-config.yaml, report.html, regimes.html."""

from pathlib import Path

from pydantic import ValidationError

from scaler.errors import BadInput
from scaler.records import RECORD, Record

_FILES = (
    "launch.yaml",
    "records.jsonl",
    "batch-config.yaml",
    "report.html",
    "fault.log",
    "regimes.html",
    "checkpoint.pt",
)


class RunFolder:
    """One tuning run on disk. Make it with `create`, find it with `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (
            self.launch,
            self.records_file,
            self.batch_config,
            self.report,
            self.fault_log,
            self.regimes_report,
            self.checkpoint,
        ) = (path / name for name in _FILES)

    @classmethod
    def create(cls, path: str | Path, force: bool = False) -> "RunFolder":
        """Make a new, empty run folder.

        `force` clears an earlier run there; a folder that holds anything else is never touched.

        Raises:
            BadInput: the folder exists without `force`, holds other files, or cannot be made.
        """
        run = cls(Path(path).absolute())
        try:
            present = {p.name for p in run.path.iterdir()} if run.path.exists() else set()
            if present and not force:
                raise BadInput(
                    f"the out folder {path} exists and is not empty",
                    hint="--resume continues the run in it, --force overwrites it",
                )
            foreign = sorted(present - set(_FILES))
            if foreign:
                raise BadInput(
                    f"the out folder {path} holds files that are not of a run: {', '.join(foreign[:5])}",
                    hint="give another folder; --force overwrites only a run",
                )
            for name in present:
                (run.path / name).unlink()
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"cannot make the out folder {path}: {error.strerror}", hint="give a folder you may write to"
            ) from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run.

        Raises:
            BadInput: there is no run at `path`.
        """
        run = cls(Path(path).absolute())
        if not run.launch.is_file():
            raise BadInput(
                f"{path} is not a run folder: it has no launch.yaml",
                hint="`scaler tune WORKLOAD --cluster FILE --out RUN` makes one",
            )
        return run

    def append(self, record: Record) -> None:
        """Append one record and flush it, so that an interruption loses nothing that was taken."""
        with self.records_file.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")

    def drop_cut_line(self) -> None:
        """Remove a last line that an interruption cut off, so that the next record starts on its own."""
        if self.records_file.exists():
            data = self.records_file.read_bytes()
            with self.records_file.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)

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
                    f"{self.records_file}:{number} is not a record: {first['msg']}",
                    hint="remove that line; every other record is kept",
                ) from None
        return found
