"""Strict data models, and YAML and CSV that are read into them with every fault listed at once."""

import csv
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from scaler.errors import BadInput, nearest


class Strict(BaseModel):
    """A frozen model that forbids unknown keys and non-finite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )


M = TypeVar("M", bound=BaseModel)

_WHOLE = "the whole: "  # where a fault lies that is of no one key
_MOST_FAULTS = 20  # of a table that are listed


def parse(model: type[M], data: Any, source: str) -> M:
    """Validate `data` as `model`.

    Raises:
        BadInput: names `source` and lists every fault, with the nearest valid key for an unknown one.
    """
    if not isinstance(data, dict):
        raise BadInput(
            f"{source}: expected a mapping of keys to values, found {type(data).__name__}",
            hint=f"the keys are {', '.join(_keys(model))}",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [_fault(model, fault) for fault in error.errors()]
        raise BadInput(
            "\n".join([f"{source}: {_counted(faults)}", *(f"  - {fault}" for fault in faults)]),
            hint=f"the valid keys are {', '.join(_keys(model))}",
        ) from None


def read_yaml(path: Path) -> Any:
    """Read one YAML document.

    Raises:
        BadInput: the file is absent, unreadable or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [str(p) for p in sorted(path.parent.glob("*.y*ml"))]
        raise BadInput(
            f"no such file: {path}{nearest(str(path), siblings)}",
            hint=f"there are {', '.join(siblings)}" if siblings else "give the path of a YAML file",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}", hint="give the path of a readable YAML file") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path} is not valid YAML: {error}", hint="check indentation and quotes") from None


def read_csv(path: Path, model: type[M]) -> list[M]:
    """Read a table, each row as `model`; an empty cell is an absent value.

    Raises:
        BadInput: the file is absent, unreadable or empty, columns are unknown or missing, or cells are wrong;
            lists every fault with its line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            lines = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        siblings = [str(p) for p in sorted(path.parent.glob("*.csv"))]
        raise BadInput(
            f"no such file: {path}{nearest(str(path), siblings)}", hint="give the path of a CSV file"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {path}: {error}", hint="give the path of a readable CSV file") from None
    keys = _keys(model)
    needed = [field.alias or name for name, field in model.model_fields.items() if field.is_required()]
    faults = [f"unknown column {c!r}{nearest(str(c), keys)}" for c in columns if c not in keys]
    faults += [f"column {c!r} is there twice" for c in keys if columns.count(c) > 1]
    faults += [f"column {key!r} is missing" for key in needed if key not in columns]
    faults += [] if lines or faults else ["there is no row below the column names"]
    found = []
    for number, row in lines if not faults else []:
        try:
            if None in row:
                raise ValueError("more cells than columns")
            found.append(
                model.model_validate({key: cell for key, cell in row.items() if cell not in ("", None)})
            )
        except ValidationError as error:
            faults += [
                f"line {number}: {_fault(model, fault).removeprefix(_WHOLE)}" for fault in error.errors()
            ]
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = [f"  ... and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise BadInput(
            "\n".join([f"{path}: {_counted(faults)}", *(f"  - {f}" for f in faults[:_MOST_FAULTS]), *more]),
            hint=f"the columns are {', '.join(needed)}"
            + "".join(f", optionally {key}" for key in keys if key not in needed),
        )
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename, so that no half-written file is seen."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _counted(faults: list[str]) -> str:
    return f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _fault(model: type[BaseModel], fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or _WHOLE.removesuffix(": ")
    if fault["type"] == "extra_forbidden":
        leaf = str(fault["loc"][-1])
        known = _keys(model) if len(fault["loc"]) == 1 else []
        return f"{where}: unknown key{nearest(leaf, known)}"
    if fault["type"] == "missing":
        return f"{where}: missing, and it has no default"
    reason = fault["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})"
    return f"{where}: {reason}{shown}"
