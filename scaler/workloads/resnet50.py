"""Workload `resnet50`: ResNet-50 v1.5, 25,557,032 parameters with random weights, on generated images.

It is there for memory and throughput on images of ImageNet's size. The net is that of He et al., Deep
Residual Learning for Image Recognition (2016), with the stride in the 3 x 3 convolution, as NVIDIA and
torchvision have it ("v1.5"); learning rate and momentum are those of Goyal et al., Accurate, Large Minibatch
SGD (2017). Each of the 1,000 classes is a texture of its own under noise: it can be learned, and convergence
on it says little about photographs. Nothing is downloaded, and images are made when asked for.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from scaler.workload import Reference, Target, Workload
from scaler.workloads.classification import accuracy, loss

SIDE = 224  # pixels
CLASSES = 1_000
TRAIN_EXAMPLES = 50_000
EVAL_EXAMPLES = 1_000
_TILE = 8  # pixels; a class's texture repeats after so many
_MEAN, _DEVIATION = 127.0, 52.0  # of the images, in levels from 0 to 254
_STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, width, stride of the first block


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    """Make a convolution that keeps the image's size, but for the stride, and its BatchNorm."""
    layer = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 (with the stride) and 1 x 1 to 4 x width, beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.layers = nn.Sequential(
            _convolution(inputs, width, 1),
            nn.ReLU(inplace=True),
            _convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            _convolution(width, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map activations [n, inputs, h, w] to [n, 4 x width, h / stride, w / stride]."""
        return F.relu(self.layers(x) + self.shortcut(x), inplace=True)


class ResNet50(nn.Module):
    """A stem, 16 bottleneck blocks in four stages, the mean over the image and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            _convolution(3, 64, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        inputs = 64
        for blocks, width, stride in _STAGES:
            for number in range(blocks):
                layers.append(Bottleneck(inputs, width, stride if number == 0 else 1))
                inputs = 4 * width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 [n, 3, h, w], to logits [n, 1000]."""
        # Here and not in the data set: bytes are a quarter of the floats to copy to the device.
        x = self.layers((images.float() - _MEAN) / _DEVIATION)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class Textures(Dataset[tuple[Tensor, int]]):
    """Images made from a seed each: (pixels, uint8 [3, 224, 224]; label from 0 to 999)."""

    def __init__(self, examples: int, split: int) -> None:
        self.examples = examples
        self.split = split

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.examples:
            raise IndexError(index)
        label = index % CLASSES
        noise = np.random.default_rng((self.split, index)).bytes(3 * SIDE * SIDE)
        image = np.frombuffer(noise, np.uint8).reshape(3, SIDE // _TILE, _TILE, SIDE // _TILE, _TILE) & 127
        image += _tiles()[label]
        return torch.from_numpy(image.reshape(3, SIDE, SIDE)), label


@functools.lru_cache(maxsize=1)
def _tiles() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Give the texture of each class, from 0 to 127, to be repeated in both directions."""
    return np.random.default_rng(0).integers(128, size=(CLASSES, 3, 1, _TILE, 1, _TILE), dtype=np.uint8)


def train_data() -> Textures:
    """Give 50,000 images, 50 of each class."""
    return Textures(TRAIN_EXAMPLES, split=1)


def eval_data() -> Textures:
    """Give 1,000 other images, one of each class."""
    return Textures(EVAL_EXAMPLES, split=2)


def optimizer(parameters: "torch.optim.optimizer.ParamsT", learning_rate: float) -> torch.optim.Optimizer:
    """Make SGD with momentum 0.9 and weight decay."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-5)


workload = Workload(
    name="resnet50",
    model=ResNet50,
    train_data=train_data,
    eval_data=eval_data,
    loss=loss,
    optimizer=optimizer,
    metric=accuracy,
    precision="bf16",
    target=Target(0.75, "max", max_examples=10 * TRAIN_EXAMPLES, evaluate_every=TRAIN_EXAMPLES // 8),
    reference=Reference(global_batch=256, learning_rate=0.1, warmup_examples=12_800),
)
