"""Strict data models, and YAML that is read into them with every fault listed at once."""

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
        title = f"{source}: {len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise BadInput(
            "\n".join([title, *(f"  - {fault}" for fault in faults)]),
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


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _fault(model: type[BaseModel], fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or "the whole"
    if fault["type"] == "extra_forbidden":
        leaf = str(fault["loc"][-1])
        known = _keys(model) if len(fault["loc"]) == 1 else []
        return f"{where}: unknown key{nearest(leaf, known)}"
    if fault["type"] == "missing":
        return f"{where}: missing, and it has no default"
    reason = fault["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})"
    return f"{where}: {reason}{shown}"
