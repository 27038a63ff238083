"""Traces the engine's own training step, on fake tensors."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as modules

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.device import Device
from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput, WorkloadError
from scaler.runtime.protocol import Rank
from scaler.trace.batches import FakeBatches
from scaler.trace.build import StandInsForFakes, fake_model
from scaler.trace.semantics import cuda_semantics
from scaler.trace.tracer import Trace, Tracer
from scaler.trace.workspaces import Workspaces
from scaler.workload import Workload

_BUILDING = "building the model"
_STEPS = 2  # the optimizer's state appears in the first


class Untraceable(Exception):
    """The model does not run on fake tensors; says in which module, at which operator and why."""


def trace_steps(
    workload: Workload, cluster: Cluster, batches: FakeBatches, micro_batch: int, accumulation: int
) -> Trace:
    """Trace two optimizer steps of the workload on one device of the cluster, unsharded.

    Raises:
        Untraceable: the model needs real values, or operators that fake tensors do not know.
        BadInput: what the user's functions give is not usable.
    """
    cuda = cluster.kind == "cuda"
    tracer = Tracer(micro_batch, Workspaces(cluster.compute_capability) if cuda else None)
    semantics = cuda_semantics(cluster.compute_capability) if cuda else contextlib.nullcontext()
    plan = BatchPlan.equal(micro_batch, accumulation, workers=1)
    rank = Rank(0, 1, Device("cpu" if cluster.kind == "cpu" else "mock", None))
    with (
        semantics,
        _without_collection(),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        _Path() as path,
    ):
        passes = [batches.of(micro_batch)] * accumulation
        faked = dataclasses.replace(workload, model=partial(fake_model, workload.model, fake))
        try:
            with StandInsForFakes():  # optimizers may read parameters
                engine = TorchEngine(faked, plan, rank, workload.reference.learning_rate, seed=0)
            path.name(engine.module)
            _check_traceable(engine.module)
            if any(isinstance(part, torch.nn.RNNBase) for part in engine.module.modules()):
                tracer.trace.notes.add("recurrent layers: what they reserve for the backward is not modelled")
            with tracer:
                _train(tracer, engine, passes)
        except WorkloadError as error:
            if path.innermost == _BUILDING:
                raise  # it was built for real: the fault is the user's
            # The user's code ran on tensors without values: the fault may well be ours.
            raise Untraceable(f"{path.innermost}: {error.__cause__} ({tracer.operator})") from error
        except (BadInput, MemoryError, Untraceable):
            raise
        except Exception as error:
            raise Untraceable(f"{path.innermost}: {error} ({tracer.operator})") from error
    return tracer.trace


def _check_traceable(module: torch.nn.Module) -> None:
    for name, part in module.named_modules():
        if type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None:
            raise Untraceable(f"{name or 'the model'}: it is compiled, and what is fused is not allocated")


def _train(tracer: Tracer, engine: TorchEngine, passes: list[Any]) -> None:
    module = engine.module
    tracer.count([*module.parameters(), *module.buffers()], "parameters")
    made = [t for t in _state(engine.optimizer) if t.dim()]  # Adagrad's; step counters are on the host
    tracer.count(made, "optimizer_state")
    trained = [p for p in module.parameters() if p.requires_grad]
    tracer.trace.element_bytes = sum(p.nbytes for p in trained) // sum(p.numel() for p in trained)
    tracer.end_step()
    engine.observer = _Phases(tracer, module)
    # The scaler looks for infinities, which fakes neither have nor lack, and would skip the step.
    engine._scaler._maybe_opt_step = _step  # type: ignore[method-assign, assignment]
    for _ in range(_STEPS):
        engine.step(passes, 1.0, synchronise=False)
        tracer.optimizing = False
        tracer.label(_state(engine.optimizer), "optimizer_state")
        tracer.end_step()


def _step(optimizer: torch.optim.Optimizer, _state: Any, *args: Any, **kwargs: Any) -> Any:
    return optimizer.step(*args, **kwargs)


def _state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = [value for entry in optimizer.state.values() for value in entry.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


class _Phases:
    """Tells the tracer what is a gradient, and when the step's gradients are there."""

    def __init__(self, tracer: Tracer, module: torch.nn.Module) -> None:
        self._tracer = tracer
        self._parameters = list(module.parameters())

    def after_pass(self, number: int) -> None:  # noqa: ARG002
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if any(gradient.layout != torch.strided for gradient in gradients):
            raise Untraceable("sparse gradients: their size depends on the batch's values")
        self._tracer.label(gradients, "gradients")

    def after_backward(self) -> None:
        self._tracer.optimizing = True


class _Path:
    """Follows which module runs, to name it where tracing fails."""

    def __init__(self) -> None:
        self.innermost = _BUILDING
        self._outer: list[str] = []
        self._names: dict[torch.nn.Module, str] = {}

    def name(self, module: torch.nn.Module) -> None:
        """Learn the names of the model's modules."""
        self._names = {part: name or "the model" for name, part in module.named_modules()}
        self.innermost = "the loss"

    def __enter__(self) -> "_Path":
        self._handles = [
            modules.register_module_forward_pre_hook(self._entered),
            modules.register_module_forward_hook(self._left),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _entered(self, module: torch.nn.Module, _inputs: Any) -> None:
        if module in self._names:
            self._outer.append(self.innermost)
            self.innermost = f"{self._names[module]} ({type(module).__name__})"

    def _left(self, module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        if module in self._names:  # not called where it raises
            self.innermost = self._outer.pop()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """When garbage is collected depends on more than the model: here, never."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
