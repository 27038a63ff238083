"""Predicted against recorded largest batch of timm models on an RTX 3090, without a GPU.

    pip install timm  (a torchvision built for the installed torch is not needed)
    python benchmarks/rtx3090_ladder.py [--data DIR] [--split test|train] [--models N] [--json FILE]

The data are timm's own records (benchmark-train-amp-nchw of timm 0.6 with torch 1.12 and cuDNN 8): each
model trained at the largest batch of 512, 384, 256, 192, 128, ... that did not run out of memory. Models at
512, the top of the ladder, are left out: how much more would have fitted is not known. Of the others, the 100
with the smallest SHA-256 of their name are the test set; nothing was chosen on them.

What differs today is put back to what timm's benchmark.py did then: the images stayed on the device,
`zero_grad()` kept the gradients (torch's default before 2.0), SGD took one parameter at a time, attention was
a matmul, a softmax and a matmul, cuDNN searched its algorithms, and there was no loss scaling. A model that
today's timm does not have, or builds otherwise than then, is skipped.
"""

import argparse
import csv
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import sys
import time
import types
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from scaler.cluster import Cluster
from scaler.errors import ScalerError
from scaler.trace.predict import Predictor
from scaler.trace.shape import Shape
from scaler.trace.step import Untraceable
from scaler.workload import Reference, Target, Workload

FILE = Path("memory/timm_rtx3090_amp.csv")
LADDER = (512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 2, 1)
TEST_MODELS = 100
DEVICE_MEMORY = "23.69GiB"  # what torch reports for the card
CONTEXT = "450MiB"  # chosen on the training set; with the margin, 1.6 GiB are left beside the predicted peak
CHANGED = {"tresnet": "its InPlaceABN, which keeps half the activations, is gone"}


@dataclass(frozen=True)
class Row:
    """One model: what was recorded, and what was predicted (None where it could not be)."""

    model: str
    image_size: int
    parameters: float
    """In millions."""
    recorded: int
    predicted: int | None = None
    seconds: float = 0.0
    skipped: str = ""


def read_rows(folder: Path) -> list[Row]:
    with (folder / FILE).open(newline="") as file:
        rows = [
            Row(
                line["model"],
                int(line["train_img_size"]),
                float(line["param_count"]),
                int(line["train_batch_size"]),
            )
            for line in csv.DictReader(file)
        ]
    return sorted((row for row in rows if row.recorded < LADDER[0]), key=_digest)


def split(rows: Sequence[Row], name: str) -> list[Row]:
    """Give the test set in order, or the others shuffled: the first of them are a sample."""
    if name == "test":
        return list(rows[:TEST_MODELS])
    others = list(rows[TEST_MODELS:])
    random.Random(0).shuffle(others)
    return others


def predict(row: Row, cluster: Cluster) -> int:
    """Find the largest rung that fits; 0 where none does."""
    predictor = Predictor(_workload(row), cluster)
    low, high = 0, len(LADDER)  # the first that fits is in LADDER[low:high + 1]
    while low < high:
        middle = (low + high) // 2
        if predictor.fits(Shape(workers=1), LADDER[middle]):
            high = middle
        else:
            low = middle + 1
    return LADDER[low] if low < len(LADDER) else 0


class _SGD(torch.optim.SGD):
    """SGD as torch 1.12 ran it without a GradScaler: gradients are zeroed, not dropped."""

    _step_supports_amp_scaling = True  # the scaler leaves the gradients to it

    def __init__(self, parameters: Any, rate: float, held: list[Any]) -> None:
        super().__init__(parameters, rate, momentum=0.9, nesterov=True, foreach=False)
        self._held = held

    def step(self, closure: Any = None) -> Any:
        self.grad_scale = self.found_inf = None
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002
        super().zero_grad(set_to_none=False)
        self._held.clear()


def _workload(row: Row) -> Workload:
    held: list[Any] = []  # the images, for the whole step

    def loss(network: torch.nn.Module, batch: Any) -> torch.Tensor:
        held.append(batch)
        images, labels = batch
        output = network(images)
        return F.cross_entropy(output[0] if isinstance(output, tuple) else output, labels)

    def batch_of(examples: int) -> Any:
        size = (examples, 3, row.image_size, row.image_size)
        return [torch.empty(size), torch.empty(examples, dtype=torch.int64)]

    def data() -> TensorDataset:
        return TensorDataset(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))

    return Workload(
        name=row.model,
        model=lambda: _build(row),
        train_data=data,
        eval_data=data,
        loss=loss,
        optimizer=lambda parameters, rate: _SGD(parameters, rate, held),
        metric=loss,
        target=Target(0.0, "min"),
        reference=Reference(LADDER[-2], 0.01),
        precision="fp16",
        worst_case=batch_of,
    )


def _build(row: Row) -> torch.nn.Module:
    import timm

    return timm.create_model(row.model, pretrained=False, drop_rate=0.0)


def _why_skipped(row: Row) -> str:
    import timm

    family = row.model.partition("_")[0]
    if family in CHANGED:
        return CHANGED[family]
    try:
        with torch.device("meta"):
            network = timm.create_model(row.model, pretrained=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:100]
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    if abs(parameters - row.parameters) > 0.01 * row.parameters:
        return f"has {parameters:.2f} million parameters today, {row.parameters} then"
    return ""


class _NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An empty torchvision: timm imports it for its data loading, which is not used here."""

    def find_spec(self, fullname: str, *_: Any) -> Any:
        if fullname.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _AnyName(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


def _prepare_timm() -> None:
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_NoTorchvision())
    warnings.simplefilter("ignore")  # names that timm has changed since
    from timm.layers import set_fused_attn

    set_fused_attn(False)


def _digest(row: Row) -> str:
    return hashlib.sha256(row.model.encode()).hexdigest()


def _run(row: Row, cluster: Cluster) -> Row:
    start = time.perf_counter()
    if why := _why_skipped(row):
        return replace(row, skipped=why)
    try:
        predicted = predict(row, cluster)
    except (ScalerError, Untraceable) as error:
        return replace(row, skipped=str(error).splitlines()[0][:100])
    return replace(row, predicted=predicted, seconds=round(time.perf_counter() - start, 1))


def summary(rows: Sequence[Row]) -> str:
    done = [(row, row.predicted) for row in rows if row.predicted is not None]
    big = [row for row, predicted in done if predicted > row.recorded]
    small = [row for row, predicted in done if predicted < row.recorded]
    shares = [f"{len(group)} ({len(group) / max(1, len(done)):.1%})" for group in (big, small)]
    exact = len(done) - len(big) - len(small)
    lines = [
        f"{len(done)} of {len(rows)} models: exact {exact} ({exact / max(1, len(done)):.1%}), "
        f"too big {shares[0]}, too small {shares[1]}"
    ]
    if big or small:
        lines += ["", "| model | image | recorded | predicted |", "|---|---|---|---|"]
        lines += [f"| {r.model} | {r.image_size} | {r.recorded} | {r.predicted} |" for r in (*big, *small)]
    skipped = [f"- {row.model}: {row.skipped}" for row in rows if row.skipped]
    if skipped:
        lines += ["", f"Skipped {len(skipped)}, counted neither way:", *skipped]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data = os.environ.get("SCALER_DATA")
    parser.add_argument("--data", type=Path, default=data, help="default: SCALER_DATA")
    parser.add_argument("--split", choices=("test", "train"), default="test")
    parser.add_argument("--models", type=int, help="only so many")
    parser.add_argument("--json", type=Path, help="write a row for every model here")
    arguments = parser.parse_args()
    if arguments.data is None or not (Path(arguments.data) / FILE).is_file():
        print(f"skipped: no {FILE} in --data or SCALER_DATA ({arguments.data})")
        return
    if importlib.util.find_spec("timm") is None:
        print("skipped: timm is not installed")
        return
    _prepare_timm()
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(1)
    cluster = Cluster(
        workers=1, kind="cuda", device_memory=DEVICE_MEMORY, compute_capability=8.6, context=CONTEXT
    )
    chosen = split(read_rows(Path(arguments.data)), arguments.split)[: arguments.models]
    rows: list[Row] = []
    for number, row in enumerate(chosen, 1):
        rows.append(_run(row, cluster))
        found = rows[-1].skipped or f"predicted {rows[-1].predicted}, recorded {row.recorded}"
        print(f"{number} of {len(chosen)}: {row.model}: {found} ({rows[-1].seconds} s)", file=sys.stderr)
    if arguments.json:
        import timm

        facts = {"split": arguments.split, "torch": torch.__version__, "timm": timm.__version__}
        facts["cluster"] = cluster.model_dump(mode="json", exclude_none=True)
        arguments.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1))
    print(f"\nRTX 3090 ladder, {arguments.split} set\n\n{summary(rows)}")


if __name__ == "__main__":
    main()
