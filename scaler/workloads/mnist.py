"""Workload `mnist`: a small convolutional net on the 70,000 handwritten digits of MNIST.

The four IDX files are read from the folder in the environment variable SCALER_DATA, or from its subfolder
`mnist`; they are not downloaded. Accuracy is measured on the whole test set.
"""

import functools
import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from scaler.errors import BadInput
from scaler.workload import Reference, Target, Workload
from scaler.workloads.classification import accuracy, loss

SIDE = 28  # pixels
CLASSES = 10
TRAIN_EXAMPLES = 60_000
_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_UNSIGNED_BYTE = 0x08  # the type code in the third byte of an IDX magic number
_GREY_MEAN, _GREY_DEVIATION = 33.3, 78.6  # of the training images, in grey levels from 0 to 255
_HINT = (
    f"set SCALER_DATA to the folder that holds {', '.join(_FILES['train'] + _FILES['test'])}, "
    "or to its parent if that folder is named mnist"
)


class ConvNet(nn.Module):
    """Two strided convolutions and two linear layers, 47,000 parameters, without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=5, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map grey levels, uint8 [n, 28, 28], to logits [n, 10]."""
        # Here and not in the data set: 60,000 images are 47 MB as bytes and 188 MB as floats.
        logits: Tensor = self.layers((images.unsqueeze(1).float() - _GREY_MEAN) / _GREY_DEVIATION)
        return logits


def optimizer(parameters: "torch.optim.optimizer.ParamsT", learning_rate: float) -> torch.optim.Optimizer:
    """Make SGD with momentum 0.9."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)


def from_folder(folder: str | Path | None = None) -> Workload:
    """Make the workload on the four files in `folder`; without one, SCALER_DATA is read at the first use."""
    if folder is not None:
        folder = Path(folder).resolve()  # workers may start in another folder
    return Workload(
        name="mnist",
        model=ConvNet,
        train_data=functools.partial(read_split, "train", folder),
        eval_data=functools.partial(read_split, "test", folder),
        loss=loss,
        optimizer=optimizer,
        metric=accuracy,
        target=Target(0.97, "max", max_examples=12 * TRAIN_EXAMPLES, evaluate_every=TRAIN_EXAMPLES // 16),
        reference=Reference(global_batch=128, learning_rate=0.05, warmup_examples=2_560),
    )


def read_split(split: str, folder: str | Path | None = None) -> TensorDataset:
    """Read "train" or "test": grey levels, uint8 [n, 28, 28], and labels, int64 [n].

    Raises:
        BadInput: no folder is known, or a file is absent, damaged or not what its name says.
    """
    if folder is None:
        folder = os.environ.get("SCALER_DATA")
        if not folder:
            raise BadInput("workload 'mnist': SCALER_DATA is not set", hint=_HINT)
    return _read_split(split, Path(folder))


@functools.lru_cache(maxsize=4)
def _read_split(split: str, folder: Path) -> TensorDataset:
    images_file, labels_file = (_find(folder, name) for name in _FILES[split])
    images, labels = read_idx(images_file, dimensions=3), read_idx(labels_file, dimensions=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise BadInput(
            f"{images_file}: images of {images.shape[1]} x {images.shape[2]} pixels, not {SIDE} x {SIDE}",
            hint=_HINT,
        )
    if len(images) != len(labels) or len(images) == 0:
        raise BadInput(
            f"{images_file} has {len(images)} images, {labels_file.name} has {len(labels)} labels",
            hint="the two files must come from the same copy of the data set",
        )
    if int(labels.max()) >= CLASSES:
        raise BadInput(f"{labels_file}: label {int(labels.max())}, expected 0 to {CLASSES - 1}", hint=_HINT)
    return TensorDataset(images, labels.long())


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes into a uint8 tensor with that many dimensions.

    Raises:
        BadInput: the file is not gzip, is truncated, or its magic number or size is wrong.
    """
    again = f"fetch {path.name} again"
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} does not unpack: {error}", hint=again) from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise BadInput(f"{path}: {len(content)} bytes, less than its header of {header}", hint=again)
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content[:header])
    expected = _UNSIGNED_BYTE << 8 | dimensions
    if magic != expected:
        raise BadInput(f"{path}: magic number {magic:#010x}, expected {expected:#010x}", hint=again)
    if len(content) - header != math.prod(shape):
        raise BadInput(
            f"{path}: {len(content) - header:,} bytes of data, but the header says "
            f"{' x '.join(map(str, shape))} = {math.prod(shape):,}",
            hint=again,
        )
    # Copied: a tensor on an immutable buffer draws a warning.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / "mnist" / name):
        if path.is_file():
            return path
    raise BadInput(f"{name} is neither in {folder} nor in {folder / 'mnist'}", hint=_HINT)


workload = from_folder()
