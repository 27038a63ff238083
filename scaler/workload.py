"""Workload: what is trained. Given in Python, addressed from the command line."""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import math
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scaler.errors import BadInput, ScalerError, WorkloadError, nearest

if TYPE_CHECKING:
    import torch

_OURS = [str(Path(__file__).with_name(name)) for name in ("counted_memory.py", "engine", "trace")]
_NOT_THE_USERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen", *_OURS)

BUILT_IN = ("digits", "mnist", "chars", "gpt2", "resnet50")

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Target:
    """The metric's value that ends a trial, reached in two successive evaluations."""

    value: float
    direction: Literal["max", "min"] = "max"
    max_examples: int | None = None
    """A trial stops here as censored. Default: 100 epochs."""
    evaluate_every: int | None = None
    """Examples between evaluations. Default: a quarter of an epoch; never less than one step."""

    def is_met(self, value: float) -> bool:
        """Whether a metric value is at or past the target."""
        return value >= self.value if self.direction == "max" else value <= self.value


@dataclass(frozen=True)
class Reference:
    """A configuration that is known to train: where the search starts."""

    global_batch: int
    learning_rate: float
    warmup_examples: int = 0


@dataclass(frozen=True)
class Workload:
    """A model, its data and what counts as trained.

    Attributes:
        model: builds a fresh network on the CPU; called once per trial, after seeding.
        train_data, eval_data: build map-style datasets; a `TensorDataset` is sliced without a loader.
        loss: mean loss of a batch, as a tensor of no dimension.
        optimizer: makes the optimizer from (parameters, learning rate); with `optimizer_takes_module` from
            (model, learning rate), for groups by name.
        metric: mean metric of a batch, under eval mode and no_grad.
        weight: the denominator of `loss`'s mean (tokens, say). Default: the number of examples.
        max_grad_norm: the step's gradient is clipped to this norm.
        schedule: factor on the learning rate after so many examples. Default: warm-up, then constant.
        collate: as torch's DataLoader takes it.
        worst_case: a batch of `micro_batch` of the longest examples, for memory probes.
        spread_matters: convergence depends on how the global batch is spread (in-batch negatives, say);
            BatchNorm is detected without it.
        gradient_as_bucket_view: DistributedDataParallel's option: gradients live in its buckets, not beside.
        find_unused_parameters: DistributedDataParallel's option, for models of which some parameters take no
            part in a step; it costs a walk over the graph in each.
    """

    name: str
    model: "Callable[[], torch.nn.Module]"
    train_data: Callable[[], Any]
    eval_data: Callable[[], Any]
    loss: "Callable[[torch.nn.Module, Any], torch.Tensor]"
    optimizer: "Callable[[Any, float], torch.optim.Optimizer]"
    metric: "Callable[[torch.nn.Module, Any], float | torch.Tensor]"
    target: Target
    reference: Reference
    weight: "Callable[[Any], float | torch.Tensor] | None" = None
    schedule: Callable[[int], float] | None = None
    optimizer_takes_module: bool = False
    max_grad_norm: float | None = None
    precision: Precision = "fp32"
    collate: Callable[[list[Any]], Any] | None = None
    worst_case: Callable[[int], Any] | None = None
    spread_matters: bool = False
    gradient_as_bucket_view: bool = False
    find_unused_parameters: bool = False
    address: str | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise BadInput(
                "\n".join([f"workload {self.name!r} is not usable:", *(f"  - {f}" for f in faults)]),
                hint="see the Workload docstring for what each field takes",
            )

    def __hash__(self) -> int:
        return hash(self.name)  # callables need not be hashable

    def __reduce__(self) -> Any:
        """Travel to workers as an address where there is one: a lambda in a file cannot be pickled."""
        if self.address is not None:
            return load_workload, (self.address,)
        return super().__reduce__()

    def learning_rate_factor(self, progress_examples: int, warmup_examples: int) -> float:
        """Factor on the learning rate for the step that ends at `progress_examples`."""
        if self.schedule is not None:
            with user_code(self, "schedule"):
                return float(self.schedule(progress_examples))
        return warmup_factor(progress_examples, warmup_examples)


def warmup_factor(progress_examples: int, warmup_examples: int) -> float:
    """Linear warm-up, then constant: the factor on the rate for the step that ends at `progress_examples`."""
    return min(1.0, progress_examples / warmup_examples) if warmup_examples else 1.0


@contextlib.contextmanager
def user_code(workload: Workload, function: str) -> Iterator[None]:
    """Turn what a user's function raises into one clear error; memory errors pass.

    Raises:
        WorkloadError: names the function, the exception and the line of the user's code.
    """
    try:
        yield
    except (ScalerError, MemoryError):
        raise
    except Exception as error:
        # By name: this module must not import torch, and a lost peer is not the user's fault.
        names = {base.__name__ for base in type(error).__mro__}
        if names & {"OutOfMemoryError", "DistError"} or "third_party/gloo" in str(error):
            raise
        raise WorkloadError(
            f"workload {workload.name!r}: {function}() raised {type(error).__name__}: {error}\n"
            f"  at {_user_line(error)}",
            hint=f"call {function} on one batch in a Python session to see the whole traceback",
        ) from error


def load_workload(address: str) -> Workload:
    """Find a workload by its address: `digits` (built in), `file.py:name` or `package.module:name`.

    The name is a Workload or a function without arguments that returns one. The file is executed.

    Raises:
        BadInput: nothing is there, or it is not a workload; names the nearest.
    """
    place, _, name = address.partition(":")
    if place.endswith(".py") and name:
        address = f"{Path(place).resolve()}:{name}"
    return _load(address)


@functools.lru_cache(maxsize=8)
def _load(address: str) -> Workload:
    place, _, name = address.rpartition(":") if ":" in address else (address, "", "")
    if not name:
        if place not in BUILT_IN:
            raise BadInput(
                f"unknown workload {address!r}{nearest(address, BUILT_IN)}",
                hint=f"built in are {', '.join(BUILT_IN)}; yours is file.py:name or package.module:name",
            )
        place, name = f"scaler.workloads.{place}", "workload"
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found = getattr(module, name, None)
    if found is None:
        names = [key for key, value in vars(module).items() if isinstance(value, Workload)]
        raise BadInput(
            f"{place} has no {name!r}{nearest(name, names)}",
            hint=f"its workloads are {', '.join(names) or 'none'}",
        )
    if callable(found) and not isinstance(found, Workload):
        found = _guard(found, address)
    if not isinstance(found, Workload):
        raise BadInput(
            f"{address} is {type(found).__name__}, not a Workload",
            hint="name a scaler.Workload, or a function without arguments that returns one",
        )
    object.__setattr__(found, "address", address)
    return found


def _import_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's package lies in the current folder
    return _guard(lambda: importlib.import_module(name), f"importing {name}")


def _import_file(path: Path) -> Any:
    if not path.is_file():
        siblings = [str(p) for p in sorted(path.parent.glob("*.py"))]
        raise BadInput(
            f"no such workload file: {path}{nearest(str(path), siblings)}", hint="the form is file.py:name"
        )
    path = path.resolve()
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that the file's own imports resolve
    # Not the bare stem: a user's train.py must not shadow, or be shadowed by, an installed `train`.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    loader = spec.loader
    _guard(lambda: loader.exec_module(module), f"importing {path}")
    return module


def _guard(load: Callable[[], Any], what: str) -> Any:
    """Run the user's module or factory; SystemExit too must not end the command line without a word."""
    try:
        return load()
    except ScalerError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(
            f"{what} raised {type(error).__name__}: {error}\n  at {_user_line(error)}",
            hint="import it in a Python session for the traceback; after the colon comes a Workload, or a "
            "function without arguments that returns one",
        ) from error


def _user_line(error: BaseException) -> str:
    """Give the innermost line of the traceback that is the user's own, not an installed package's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}"


def _faults(workload: Workload) -> list[str]:
    faults = [
        f"{name} must be callable, not {type(getattr(workload, name)).__name__}"
        for name in ("model", "train_data", "eval_data", "loss", "optimizer", "metric")
        if not callable(getattr(workload, name))
    ]
    if workload.precision not in ("fp32", "bf16", "fp16"):
        faults.append(f"precision is fp32, bf16 or fp16, not {workload.precision!r}")
    if workload.target.direction not in ("max", "min"):
        faults.append(f"target.direction is max or min, not {workload.target.direction!r}")
    sizes = {
        "reference.global_batch": workload.reference.global_batch,
        "reference.learning_rate": workload.reference.learning_rate,
        "target.max_examples": workload.target.max_examples,
        "target.evaluate_every": workload.target.evaluate_every,
        "max_grad_norm": workload.max_grad_norm,
    }
    faults += [
        f"{name} must be a positive number, not {size!r}"
        for name, size in sizes.items()
        if size is not None and not (isinstance(size, (int, float)) and 0 < size < math.inf)
    ]
    if workload.reference.warmup_examples < 0:
        faults.append(f"reference.warmup_examples is {workload.reference.warmup_examples}, below 0")
    return faults
