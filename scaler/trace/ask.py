"""Asks for a prediction in a process of its own: some models end it, and tracing changes torch."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cloudpickle

from scaler import errors
from scaler.cluster import Cluster
from scaler.records import Prediction
from scaler.trace.shape import LARGEST, Shape
from scaler.workload import Workload

_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Libraries that find these join a process group and wait for the other ranks; the child is none."""


def ask_prediction(
    workload: Workload,
    cluster: Cluster,
    shapes: Sequence[Shape],
    sizes: Sequence[int] | None = None,
    largest: int = LARGEST,
    offload_optimizer: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Predict the memory of `shapes` as `scaler.trace.predict.predict` does.

    `progress` is told how many of the shapes are done.

    Raises:
        BadInput: a function of the workload is wrong.
    """
    question = cloudpickle.dumps((workload, cluster, shapes, sizes, largest, offload_optimizer))
    own = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    environment = {**own, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory(prefix="scaler-trace-") as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        with log.open("wb") as errors_to:
            child = subprocess.Popen(
                [sys.executable, "-m", "scaler.trace", str(answer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors_to,
                env=environment,
            )
        with child:
            assert child.stdin is not None and child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it ended before it read
                child.stdin.write(question)
                child.stdin.close()
            for line in child.stdout:
                if progress is not None:
                    progress(int(line), len(shapes))
        if not answer.exists():
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            reason = f"tracing ended with status {child.returncode}: {''.join(last)}"
            return Prediction(curves=(), confidence="low", notes=(reason,))
        text = answer.read_text(encoding="utf-8")
    if fault := json.loads(text).get("fault"):
        raise getattr(errors, fault["kind"])(fault["message"], fault["hint"])
    return Prediction.model_validate_json(text)
