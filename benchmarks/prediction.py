"""What a prediction of device memory costs: seconds a micro-batch, and memory of the process that traces."""

import json
import subprocess
import sys
from pathlib import Path

from figure import Figure

CLUSTER = Path(__file__).parents[1] / "cluster" / "hardware" / "h100-1x.yaml"
MICRO_BATCHES = (1, 4, 16, 64)

_CHILD = """
import json, resource, sys, time
from scaler.cluster import Cluster
from scaler.trace.batches import FakeBatches
from scaler.trace.predict import Predictor
from scaler.trace.shape import Shape
from scaler.trace.step import trace_steps
from scaler.workload import load_workload

workload, cluster = load_workload(sys.argv[1]), Cluster.load(sys.argv[2])
batches = FakeBatches(workload)
trace_s = []
for micro_batch in map(int, sys.argv[3:]):
    start = time.perf_counter()
    trace_steps(workload, cluster, batches, micro_batch, 1)
    trace_s.append(time.perf_counter() - start)
predictor = Predictor(workload, cluster)
start = time.perf_counter()
largest = predictor.max_micro_batch(Shape(workers=1))
search_s = time.perf_counter() - start
start = time.perf_counter()
predictor.peak(Shape(workers=1), largest)
peak_s = time.perf_counter() - start
memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([trace_s, search_s, peak_s, largest, memory_bytes]))
"""


def measure() -> list[Figure]:
    return [figure for name in ("gpt2", "resnet50") for figure in _figures(name)]


def _figures(name: str) -> list[Figure]:
    command = [sys.executable, "-c", _CHILD, name, str(CLUSTER), *map(str, MICRO_BATCHES)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    trace_s, search_s, peak_s, largest, memory_bytes = json.loads(printed.splitlines()[-1])
    method = f"{name}, {CLUSTER.stem}; two optimizer steps on fake tensors, a process of its own"
    return [
        Figure(
            f"predicting {name} at one micro-batch",
            "under 3 s",
            f"{max(trace_s):.1f} s traced anew (first {trace_s[0]:.1f} s), {peak_s:.2f} s from known traces",
            f"{method}; slowest of micro-batches {', '.join(map(str, MICRO_BATCHES))}",
        ),
        Figure(
            f"largest micro-batch of {name}",
            "",
            f"{largest} in {search_s:.1f} s",
            f"{method}; three traces and a bisection",
        ),
        Figure(
            f"memory of predicting {name}",
            "under 1 GB",
            f"{memory_bytes / 1e6:.0f} MB",
            f"{method}; peak RSS",
        ),
    ]
