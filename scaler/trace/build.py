"""Builds the user's network on fake tensors, so that a large one takes no memory here."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import TorchDispatchMode

from scaler.errors import ScalerError
from scaler.trace.standins import STAND_INS


def fake_model(model: Callable[[], torch.nn.Module], fake: FakeTensorMode) -> torch.nn.Module:
    """Build a network whose parameters and buffers are fake.

    Parameters turn fake as they are registered; initialisation then costs nothing. A model that needs the
    values of its parameters while it is built is built for real and converted.
    """
    with unset_fake_temporarily():
        try:
            with _fake_as_registered(fake):
                module = model()
        except (ScalerError, MemoryError):
            raise
        except Exception:
            module = model()
    if isinstance(module, torch.nn.Module):
        made: dict[torch.Tensor, torch.Tensor] = {}  # a shared parameter stays shared
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and not isinstance(tensor, FakeTensor):
                        made[tensor] = made[tensor] if tensor in made else _fake_like(tensor, fake)
                        tensors[name] = made[tensor]  # type: ignore[assignment]
        # The engine moves it to a device next, which fails on fake parameters and has no need here.
        module.to = lambda *_, **__: module  # type: ignore[method-assign]
    return module


def _fake_like(tensor: torch.Tensor, fake: FakeTensorMode) -> torch.Tensor:
    with fake:
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made


@contextlib.contextmanager
def _fake_as_registered(fake: FakeTensorMode) -> Iterator[None]:
    def convert(_module: torch.nn.Module, _name: str, parameter: Any) -> Any:
        known = parameter is None or isinstance(parameter, FakeTensor)
        return parameter if known else _fake_like(parameter, fake)

    handle = modules.register_module_parameter_registration_hook(convert)
    try:
        with StandInsForFakes():
            yield
    finally:
        handle.remove()


class StandInsForFakes(TorchDispatchMode):
    """Answers where an initialiser asks for a fake parameter's value; real tensors keep theirs."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in STAND_INS and args and isinstance(args[0], FakeTensor):
            return STAND_INS[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
