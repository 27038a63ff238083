"""Workloads from a LightningModule and its data module, as they are."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from scaler.errors import BadInput, nearest
from scaler.workload import Reference, Target, Workload
from scaler.workloads.stepping import Stepping, loss

_TRANSFER = ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")
_CHANGING = ("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", *_TRANSFER)
"""Hooks that change what a step is, and that only a Trainer calls."""


def from_lightning(
    module: Callable[[], Any],
    datamodule: Callable[[], Any],
    *,
    target: Target,
    reference: Reference,
    metric: str,
    name: str = "lightning",
    **fields: Any,
) -> Workload:
    """Make a workload of a LightningModule and a LightningDataModule; both are built where they are needed.

    The loss is training_step's; the optimizer is configure_optimizers', its first group at the rate asked for
    and the others in their ratio to it. `metric` is what validation_step logs under that name, averaged over
    batches by their examples. What the Trainer holds is given in `fields`, any of Workload's: `precision`,
    `max_grad_norm` (gradient_clip_val), `schedule` in place of a scheduler, `weight`.

    Raises:
        BadInput: Lightning is not installed; later, where they are built: several optimizers, manual
            optimization, or hooks and loaders that change what is trained.
    """
    _lightning()
    data = _Data(datamodule)
    made: dict[str, Any] = {
        "name": name,
        "model": lambda: _Module(_checked(module())),
        "train_data": lambda: data.loader("train").dataset,
        "eval_data": lambda: data.loader("val").dataset,
        "collate": lambda examples: data.loader("train").collate_fn(examples),
        "loss": loss,
        "metric": lambda net, batch: net.validate(batch, metric),
        "optimizer": lambda net, rate: _optimizer(net.net, rate, "schedule" in fields),
        "optimizer_takes_module": True,
        "target": target,
        "reference": reference,
    }
    return Workload(**{**made, **fields})


class _Module(Stepping):
    """A LightningModule without a Trainer: keeps what its steps log, detached."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._passes = 0
        self._logged: dict[str, Any] = {}
        module.log = self._log

    def forward(self, batch: Any) -> torch.Tensor:
        """Do a training step, and give its loss."""
        found = self._call("training_step", batch)
        self._logged.clear()
        loss: torch.Tensor = found["loss"] if isinstance(found, Mapping) else found
        return loss

    def validate(self, batch: Any, metric: str) -> float:
        """Do a validation step, and give what it logged as `metric`.

        Raises:
            BadInput: it logged nothing of that name.
        """
        self._call("validation_step", batch)
        logged, self._logged = self._logged, {}
        if metric not in logged:
            raise BadInput(
                f"validation_step logged no {metric!r}{nearest(metric, logged)}",
                hint=f"it logged {', '.join(logged) or 'nothing'}; name one of them as metric=",
            )
        return float(logged[metric])

    def _call(self, step: str, batch: Any) -> Any:
        function = getattr(self.net, step)
        takes_index = len(inspect.signature(function).parameters) > 1
        self._passes += 1
        return function(batch, self._passes - 1) if takes_index else function(batch)

    def _log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        if hasattr(value, "compute"):  # a torchmetrics metric: of this batch alone
            metric, value = value, value.compute()
            metric.reset()
        self._logged[name] = value.detach() if isinstance(value, torch.Tensor) else value


class _Data:
    """The data module's two loaders, made once in a process."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._loaders: dict[str, DataLoader[Any]] = {}

    def loader(self, which: str) -> DataLoader[Any]:
        """Give the `train` or `val` loader.

        Raises:
            BadInput: it is no plain DataLoader, or the two collate unlike.
        """
        if not self._loaders:
            module = self._make()
            _refuse_hooks(module, "LightningDataModule", _TRANSFER)
            module.prepare_data()
            module.setup("fit")
            found = {name: _plain(getattr(module, f"{name}_dataloader")(), name) for name in ("train", "val")}
            if found["train"].collate_fn != found["val"].collate_fn:
                raise BadInput(
                    "train_dataloader and val_dataloader have another collate_fn each",
                    hint="give both loaders one collate_fn",
                )
            self._loaders = found
        return self._loaders[which]


def _plain(found: Any, name: str) -> DataLoader[Any]:
    loaders = found if isinstance(found, (list, tuple)) else [found]
    loader = loaders[0] if len(loaders) == 1 else None
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        raise BadInput(
            f"{name}_dataloader() returned {type(found).__name__}, not one DataLoader with a batch_size",
            hint="return one torch DataLoader; scaler draws the batches itself",
        )
    sampler = loader.sampler
    plain = isinstance(sampler, (RandomSampler, SequentialSampler))
    if not plain or getattr(sampler, "replacement", False):
        raise BadInput(
            f"{name}_dataloader() samples by {type(sampler).__name__}, and scaler draws permutations",
            hint="use shuffle=True, or put the sampling into the data set",
        )
    return loader


def _checked(module: Any) -> Any:
    if not isinstance(module, _lightning().LightningModule):
        raise BadInput(
            f"from_lightning: the first function returned {type(module).__name__}",
            hint="give a function that builds a LightningModule",
        )
    if not module.automatic_optimization:
        raise BadInput(
            f"{type(module).__name__} optimizes by hand (automatic_optimization = False)",
            hint="write a scaler.Workload whose loss is that of one pass",
        )
    _refuse_hooks(module, "LightningModule", _CHANGING)
    module.setup("fit")
    module.configure_model()
    for child in module.modules():
        if hasattr(child, "distributed_available_fn"):
            child.distributed_available_fn = lambda: False  # metrics: each rank evaluates all the data
    return module


def _refuse_hooks(module: Any, base: str, names: tuple[str, ...]) -> None:
    own = getattr(_lightning(), base)
    changed = [name for name in names if getattr(type(module), name, None) is not getattr(own, name)]
    if changed:
        raise BadInput(
            f"{type(module).__name__} overrides {', '.join(changed)}, which only a Trainer calls",
            hint="move it into training_step or the data set, or write a scaler.Workload",
        )


def _optimizer(module: Any, learning_rate: float, has_schedule: bool) -> torch.optim.Optimizer:
    from lightning.pytorch.core.optimizer import _configure_optimizers

    optimizers, schedulers, _ = _configure_optimizers(module.configure_optimizers())
    if len(optimizers) != 1:
        raise BadInput(
            f"{type(module).__name__} configures {len(optimizers)} optimizers, and scaler trains with one",
            hint="write a scaler.Workload for the part whose batch is asked for",
        )
    optimizer: torch.optim.Optimizer = optimizers[0]
    if schedulers and not has_schedule:
        warnings.warn(
            f"{type(module).__name__}: its learning rate scheduler is not used: trials warm up, then stay "
            "constant; from_lightning(schedule=...) gives another",
            stacklevel=2,
        )
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = learning_rate * float(rate / rates[0])
    return optimizer


def _lightning() -> Any:
    try:
        import lightning.pytorch
    except ImportError:
        raise BadInput(
            "workloads from Lightning need it installed", hint="pip install 'scaler[lightning]' on every node"
        ) from None
    return lightning.pytorch
