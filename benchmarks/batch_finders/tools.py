"""The tools, each behind one function: a case in, what it found and what it tried out."""

import importlib
import importlib.metadata
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from cases import CLASSES, Batch, Case, MockDevice, mock_device, train, train_step
from torch import Tensor, nn

ACCELERATE_START = 4096
BATCH_FINDER_START = 512
_LARGEST = 4096  # above every truth, as accelerate's start is


@dataclass(frozen=True)
class Result:
    """What a tool found, the sizes it tried for that, and how many of them ran out of memory."""

    found: int
    probes: int
    failures: int

    @classmethod
    def of(cls, device: MockDevice, found: int | None) -> "Result":
        return cls(found or 0, device.probes, device.failures)


def scaler_finder(case: Case) -> Result:
    """Run the project's own probes, as `scaler tune` does, without a margin: the others keep none either."""
    from scaler.batch import BatchPlan
    from scaler.cluster import Cluster
    from scaler.device import Device
    from scaler.fit.memory import fit_memory
    from scaler.measure.largest import find_largest
    from scaler.probe.memory import MemoryRequest, probe_memory
    from scaler.records import MemoryRecord
    from scaler.runtime.protocol import Rank
    from scaler.trace.predict import Predictor
    from scaler.trace.shape import Shape

    cluster = Cluster(
        kind="mock",
        workers=1,
        device_memory_bytes=case.capacity_bytes,
        margin=0.0,
        concealed=case.concealed,
    )
    workload = _workload(case)
    curve = Predictor(workload, cluster).curve(Shape(workers=1), None, _LARGEST)
    rank = Rank(0, 1, Device("mock", case.capacity_bytes, case.concealed))

    def ask(micro_batch: int) -> list[MemoryRecord]:
        return [probe_memory(rank, workload, MemoryRequest(BatchPlan.equal(micro_batch, 1, 1)))]

    def fit(measured: list[MemoryRecord]) -> Any:
        return fit_memory([_prediction(curve), *measured], case.capacity_bytes)[0, 1]

    measured = find_largest(ask, fit, cluster, _LARGEST)
    fitting = [record.plan.micro_batch for record in measured if not record.too_large]
    return Result(max(fitting, default=0), len(measured), sum(record.out_of_memory for record in measured))


def _prediction(curve: Any) -> Any:
    from scaler.records import Prediction, PredictionRecord, environment, now

    return PredictionRecord(
        task="prediction",
        seed=0,
        taken_at=now(),
        environment=environment("mock", 1),
        prediction=Prediction(curves=(curve,), confidence="high"),
    )


def _workload(case: Case) -> Any:
    from torch.utils.data import TensorDataset

    from scaler.workload import Reference, Target, Workload

    recipe = case.recipe
    data = TensorDataset(*recipe.batch(_LARGEST))
    return Workload(
        name=f"case {case.number}",
        model=recipe.model,
        loss=recipe.loss,
        metric=recipe.loss,
        optimizer=lambda parameters, _rate: recipe.make_optimizer(parameters),
        train_data=lambda: data,
        eval_data=lambda: data,
        target=Target(0.1, "min"),
        reference=Reference(8, 1e-4),
    )


def lightning_finder(case: Case, mode: str) -> Result:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner

    recipe = case.recipe

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.batch_size = 2  # the first size; Lightning sets its loader up before it sets that
            with device:
                self.net = recipe.model()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return recipe.make_optimizer(self.net.parameters())

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                range(2**20),
                batch_size=self.batch_size,
                collate_fn=lambda rows: recipe.batch(len(rows)),
            )

        def on_train_start(self) -> None:
            device.begin()

        def training_step(self, batch: Batch) -> None:
            train_step(recipe, device, self.net, self.optimizers(), batch)

    device = mock_device(case)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return Result.of(device, Tuner(trainer).scale_batch_size(Module(), mode=mode))


def accelerate_finder(case: Case, start: int | None) -> Result:
    from accelerate.utils import find_executable_batch_size

    start = start or 2 ** math.ceil(math.log2(4 * case.true_size))
    device = mock_device(case)

    @find_executable_batch_size(starting_batch_size=start)
    def search(batch_size: int) -> int:
        device.begin()
        train(case.recipe, device, batch_size)
        return batch_size

    return Result.of(device, search())


def batch_finder_finder(case: Case) -> Result:
    from batch_finder import find_max_minibatch

    recipe = case.recipe

    class WithLoss(nn.Module):
        config = SimpleNamespace(vocab_size=CLASSES)  # where batch-finder looks for the labels' range

        def __init__(self) -> None:
            super().__init__()
            self.net = recipe.model()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": recipe.loss(self.net, (inputs, labels))}

    def get_model() -> nn.Module:
        device.begin()
        return WithLoss()

    def shape(sizes: Sequence[int], kind: str) -> str:
        return f"({', '.join(['b', *map(str, sizes)])}), {kind}"

    with mock_device(case) as device:
        device.probes -= 1  # it builds the model once before the first size
        found = find_max_minibatch(
            get_model,
            input_shapes={
                "inputs": shape(recipe.input_shape, "int" if recipe.family == "transformer" else "float"),
                "labels": shape(recipe.label_shape, "int"),
                "#constraints": "b=-1",
            },
            initial_value=BATCH_FINDER_START,
            memory_guided=False,
            use_subprocess=False,
            delay=0.0,
        )
        return Result.of(device, found)


@dataclass(frozen=True)
class Tool:
    name: str
    package: str
    find: Callable[[Case], Result]

    @property
    def version(self) -> str | None:
        """None where the package is not installed."""
        try:
            importlib.import_module(self.package.replace("-", "_"))
            return importlib.metadata.version(self.package)
        except ImportError:
            return None


TOOLS = (
    Tool("scaler", "scaler", scaler_finder),
    Tool("Lightning, power", "lightning", lambda case: lightning_finder(case, "power")),
    Tool("Lightning, binsearch", "lightning", lambda case: lightning_finder(case, "binsearch")),
    Tool("accelerate, from 4,096", "accelerate", lambda case: accelerate_finder(case, ACCELERATE_START)),
    Tool("accelerate, told 4 x", "accelerate", lambda case: accelerate_finder(case, None)),
    Tool("batch-finder", "batch-finder", batch_finder_finder),
)
