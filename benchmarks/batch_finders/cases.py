"""The cases: a small network, an optimizer and a mock device, whose memory is a byte budget on the CPU."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from scaler.cluster import ConcealedBias
from scaler.counted_memory import CountedMemory

STEPS = 2  # the optimizer's state appears in the first
CLASSES = 16
_TOKENS, _PIXELS = 8, 8
_SMALLEST, _LARGEST = 8, 2000
_MAX_WORK = 12e9  # floating-point operations of one step at the aimed size: a case takes seconds

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What is trained."""

    family: Literal["mlp", "conv", "transformer"]
    width: int
    depth: int
    optimizer: Literal["sgd", "adamw"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        shapes = {"mlp": (self.width,), "conv": (3, _PIXELS, _PIXELS), "transformer": (_TOKENS,)}
        return shapes[self.family]

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (_TOKENS,) if self.family == "transformer" else ()

    def model(self) -> nn.Module:
        width = self.width
        layers: list[nn.Module] = []
        if self.family == "mlp":
            for _ in range(self.depth):
                layers += [nn.Linear(width, width), nn.ReLU()]
        elif self.family == "conv":
            for channels in [3] + [width] * (self.depth - 1):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        else:
            layers = [nn.Embedding(CLASSES, width)]
            for _ in range(self.depth):
                layers.append(nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True))
        return nn.Sequential(*layers, nn.Linear(width, CLASSES))

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
        return torch.optim.AdamW(parameters, lr=1e-4)

    def batch(self, size: int) -> Batch:
        """Make a batch on the host."""
        labels = torch.randint(CLASSES, (size, *self.label_shape))
        if self.family == "transformer":
            return torch.randint(CLASSES, (size, *self.input_shape)), labels
        return torch.randn(size, *self.input_shape), labels

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(net(inputs).flatten(0, -2), labels.flatten())

    def work(self, size: int) -> float:
        """Estimate the floating-point operations of one training step."""
        positions = {"mlp": 1, "conv": _PIXELS**2, "transformer": _TOKENS}[self.family]
        return 6.0 * size * positions * sum(p.numel() for p in self.model().parameters())


@dataclass(frozen=True)
class Case:
    """A recipe on a mock device that was made to hold about `aimed` examples.

    `true_size` is what it holds; only a row that says so is told.
    """

    number: int
    recipe: Recipe
    aimed: int
    capacity_bytes: int
    concealed: ConcealedBias
    true_size: int = 0


class MockDevice(CountedMemory):
    """Counts tries and their failures too; whoever starts one says so.

    It lives as long as a tool's search and is entered for what happens on the device: not for what a tool
    keeps on the host, and not for a framework's few bytes, which a real device always has room for.
    """

    def __init__(self, capacity_bytes: int | None, concealed: ConcealedBias | None = None) -> None:
        super().__init__(capacity_bytes, concealed)
        self.probes = 0
        self._ran_out: set[int] = set()
        self._drain = torch.zeros(1, requires_grad=True) * 1

    def begin(self) -> None:
        """Count one more try.

        Where a backward pass fails on a CPU, gradients wait in the thread's queue until the next pass; a
        GPU's own thread drops them at once. So this runs one: it is older, and comes after what waits.
        """
        self.probes += 1
        with _disable_current_modes():
            self._drain.backward(retain_graph=True)

    def put(self, batch: Batch) -> Batch:
        """Copy a batch from the host to the device."""
        inputs, labels = batch
        return inputs.clone(), labels.clone()

    @property
    def failures(self) -> int:
        """Tries that ran out of memory."""
        return len(self._ran_out)

    def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__torch_dispatch__(*args, **kwargs)
        except torch.OutOfMemoryError:
            self._ran_out.add(self.probes)
            raise


def mock_device(case: Case) -> MockDevice:
    """Open a case's device."""
    return MockDevice(case.capacity_bytes, case.concealed)


def train_step(
    recipe: Recipe, device: MockDevice, net: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch
) -> None:
    """Train one step on a host batch, as Scaler's engine does and as a user of a tool writes it."""
    with device:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        loss = recipe.loss(net, device.put(batch))
        loss.backward()
        total += loss.detach()
        optimizer.step()


def train(recipe: Recipe, device: MockDevice, size: int) -> None:
    """Train from scratch."""
    batch = recipe.batch(size)
    with device:
        net = recipe.model()
    optimizer = recipe.make_optimizer(net.parameters())
    for _ in range(STEPS):
        train_step(recipe, device, net, optimizer, batch)


def peak_bytes(case: Case, size: int) -> int | None:
    """Give the peak that a fresh device counts at a size; None where it runs out."""
    device = mock_device(case)
    try:
        train(case.recipe, device, size)
    except torch.OutOfMemoryError:
        return None
    return device.peak_bytes


def draw_case(number: int, seed: int) -> Case:
    """Draw a case, with a recipe whose steps do not take too long on a CPU at its size."""
    rng = random.Random(f"{seed}/{number}")
    aimed = round(math.exp(rng.uniform(math.log(_SMALLEST), math.log(_LARGEST))))
    recipe = _draw_recipe(rng)
    while recipe.work(aimed) > _MAX_WORK:
        recipe = _draw_recipe(rng)
    share = rng.uniform(0, 0.1)
    step_share, position = rng.uniform(0, 0.1 - share), rng.random()
    # Somewhere between the budget that just holds the aimed size and the one that holds one more.
    live_bytes, more_bytes = _live_bytes(recipe, aimed), _live_bytes(recipe, aimed + 1)
    live_bytes += math.floor(rng.random() * (more_bytes - live_bytes))
    capacity_bytes = math.ceil(live_bytes * (1 + share))
    if position * capacity_bytes <= live_bytes:  # the step lies below
        capacity_bytes = math.ceil(live_bytes * (1 + share + step_share))
    step_at_bytes = max(1, math.ceil(position * capacity_bytes))
    concealed = ConcealedBias(share=share, step_at=step_at_bytes, step_share=step_share)
    case = Case(number, recipe, aimed, capacity_bytes, concealed)
    return replace(case, true_size=_true_size(case))


def _draw_recipe(rng: random.Random) -> Recipe:
    family = rng.choice(("mlp", "conv", "transformer"))
    depth = rng.randint(1, 2) if family == "transformer" else rng.randint(2, 4)
    return Recipe(family, rng.choice((32, 64, 128, 256)), depth, rng.choice(("sgd", "adamw")))


def _live_bytes(recipe: Recipe, size: int) -> int:
    device = MockDevice(None)
    train(recipe, device, size)
    return device.peak_bytes


def _true_size(case: Case) -> int:
    """Give the size that fits while one more does not, both tried on a fresh device."""
    assert peak_bytes(case, case.aimed) is not None, case
    fits, stride = case.aimed, 1
    while peak_bytes(case, fits + stride) is not None:
        fits, stride = fits + stride, 2 * stride
    too_many = fits + stride
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if peak_bytes(case, middle) is None:
            too_many = middle
        else:
            fits = middle
    return fits
