"""Training states on disk: read without unpickling, loaded into model and optimizer, written by a trial."""

import contextlib
import copy
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput, ScalerError
from scaler.storage import Storage, is_url, split_name

_MODEL_KEYS = ("model", "model_state_dict", "state_dict")
_OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict")
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel
_SHOWN = 5
_SAVE = 'torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "examples": N}, FILE)'


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run."""

    path: Path | str
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any] | None
    examples: int | None
    """Trained so far, where the file says so."""

    @property
    def learning_rate(self) -> float | None:
        """The rate of the saved optimizer's first group."""
        groups = self.optimizer["param_groups"] if self.optimizer else []
        rate = groups[0].get("lr") if groups else None
        return float(rate) if isinstance(rate, (int, float, torch.Tensor)) else None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read what torch.save wrote: a state_dict, or a dict with `model` and perhaps `optimizer`, `examples`.

    Nothing in the file is executed (`weights_only`).

    Raises:
        BadInput: no file, not a file of tensors, or no state_dict in it.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(
            f"no such checkpoint on the worker: {path}",
            hint="give a file that every worker can read, by the same path",
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a foreign file makes the reader stumble over
        raise BadInput(
            f"{path} is damaged, or not a file of torch.save with only tensors and plain values in it",
            hint=f"other objects are not loaded, for safety; save with {_SAVE}",
        ) from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds {type(found).__name__}, not a state_dict", hint=f"save with {_SAVE}")
    model = next((found[key] for key in _MODEL_KEYS if isinstance(found.get(key), dict)), found)
    optimizer = next((found[key] for key in _OPTIMIZER_KEYS if isinstance(found.get(key), dict)), None)
    if not model or not all(isinstance(value, torch.Tensor) for value in model.values()):
        keys = ", ".join(map(str, list(found)[:_SHOWN])) or "nothing"
        raise BadInput(f"{path} holds no state_dict of a model, but {keys}", hint=f"save with {_SAVE}")
    if optimizer is not None and not {"state", "param_groups"} <= optimizer.keys():
        raise BadInput(f"{path}: its optimizer is not a state_dict", hint=f"save with {_SAVE}")
    if optimizer is not None and not optimizer["state"]:
        optimizer = None  # saved before its first step: as good as none
    examples = found.get("examples")
    model = dict(model)
    for prefix in _WRAPPERS:
        consume_prefix_in_state_dict_if_present(model, prefix)
    return Checkpoint(path, model, optimizer, examples if isinstance(examples, int) else None)


def find_checkpoint(place: str) -> Checkpoint | None:
    """Read what `save_checkpoint` wrote; None where this machine cannot reach it.

    Raises:
        BadInput: it is not a file of torch.save.
    """
    if not is_url(place):
        return read_checkpoint(place) if Path(place).is_file() else None
    folder, name = split_name(place)
    with tempfile.TemporaryDirectory(prefix="scaler-") as temporary:
        file = Path(temporary) / name
        try:
            Storage(folder).get(name, file)
        except ScalerError:
            return None
        return replace(read_checkpoint(file), path=place)


def load_model(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Give the module the checkpoint's parameters and buffers.

    Raises:
        BadInput: keys are missing or unexpected, or shapes differ; names the first of each.
    """
    own, saved = module.state_dict(), checkpoint.model
    faults = [
        f"{what}: {', '.join(names[:_SHOWN])}" + f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN)
        for what, names in (
            ("missing", [key for key in own if key not in saved]),
            ("unexpected", [key for key in saved if key not in own]),
            (
                "of another shape",
                [
                    f"{key} {tuple(saved[key].shape)} for {tuple(own[key].shape)}"
                    for key in own
                    if key in saved and saved[key].shape != own[key].shape
                ],
            ),
        )
        if names
    ]
    if faults:
        raise BadInput(
            "\n".join([f"{checkpoint.path} is not of this model", *(f"  - {fault}" for fault in faults)]),
            hint="the workload's model() must build the network that was saved",
        )
    module.load_state_dict(saved)


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Give the optimizer the checkpoint's state; its settings stay the workload's. Nothing without a state.

    Raises:
        BadInput: the state is of another optimizer or of other parameters.
    """
    if checkpoint.optimizer is None:
        return
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{checkpoint.path}: its optimizer state does not fit the workload's optimizer: {error}",
            hint="save the state of the optimizer that optimizer() makes, or leave it out of the file",
        ) from None
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def check_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> bool:
    """Hold the saved optimizer's state against this one's; tell whether this one keeps any.

    Which state it keeps is seen when it takes a step, here with gradients of zero.

    Raises:
        BadInput: another optimizer made the state.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    own = _names(optimizer.state_dict()["state"])
    saved = _names(checkpoint.optimizer["state"]) if checkpoint.optimizer else own
    if own != saved:
        raise BadInput(
            f"{checkpoint.path}: its optimizer keeps {', '.join(sorted(saved))}; the workload's "
            f"{type(optimizer).__name__} keeps {', '.join(sorted(own)) or 'none'}",
            hint="save the state of the optimizer that optimizer() makes, or leave it out of the file",
        )
    load_optimizer(optimizer, checkpoint)
    return bool(own)


def _names(states: dict[Any, dict[str, Any]]) -> set[str]:
    return {name for state in states.values() for name in state}


def save_checkpoint(engine: TorchEngine, place: str | Path, examples: int) -> None:
    """Write the engine's state as `read_checkpoint` reads it, to a path or a URL.

    Nothing on a machine without the folder, or that the storage refuses: branches then train the state again.
    """
    if is_url(place):
        folder, name = split_name(str(place))
        with tempfile.TemporaryDirectory(prefix="scaler-") as temporary:
            save_checkpoint(engine, str(Path(temporary) / name), examples)
            with contextlib.suppress(ScalerError):
                Storage(folder).put(Path(temporary) / name, name)
        return
    path = Path(place)
    if not path.parent.is_dir():
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    state = {
        "model": engine.module.state_dict(),
        "optimizer": engine.optimizer.state_dict(),
        "examples": examples,
    }
    try:
        torch.save(state, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
