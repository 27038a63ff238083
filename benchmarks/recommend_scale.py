"""What a decision for very many devices costs: seconds and memory of `decide`, over the number of candidates.

The recorded run of digits, its batches and examples taken 512 times as large, its launches and peaks standing
for ZeRO stages 0, 1 and 2, decided for up to 10,000 workers on nodes of 8; each size in a process of its own.
"""

import json
import subprocess
import sys

import numpy as np
from figure import Figure

WORKERS = (625, 1_250, 2_500, 5_000, 10_000)
REPEATS = 5

_CHILD = """
import json, resource, sys, time
from pathlib import Path
from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.decide import decide
from scaler.runs import RunFolder

GROWN, STAGES = 512, (0, 1, 2)

def grown(record):
    if record.kind == "convergence":
        batch = GROWN * record.plan.global_batch
        plan, examples = BatchPlan.equal(batch, 1, 1), GROWN * record.examples
        yield record.model_copy(update={"plan": plan, "examples": examples})
    elif record.kind == "workload":
        names = ("train_examples", "reference_global_batch")
        yield record.model_copy(update={name: GROWN * getattr(record, name) for name in names})
    elif record.kind in ("memory", "throughput"):
        for stage in STAGES:
            plan = record.plan.model_copy(update={"zero_stage": stage})
            yield record.model_copy(update={"plan": plan, "task": f"{record.task} {stage}"})

known = RunFolder(Path(sys.argv[1])).records()
records = [new for record in known if not record.held_out for new in grown(record)]
workers = int(sys.argv[2])
cluster = Cluster(
    name="large", kind="mock", workers=(1, workers), nodes=-(-workers // 8), device_memory_bytes=2**21
)
times_s = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    config = decide(records, cluster, zero_stage=None)
    times_s.append(time.perf_counter() - start)
memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([config.choice.feasible_plans, times_s, memory_bytes]))
"""


def measure() -> list[Figure]:
    plans, first_s, median_s, memory_bytes = [], [], [], []
    for workers in WORKERS:
        command = [sys.executable, "-c", _CHILD, "tests/recorded/digits-mock-2", str(workers), str(REPEATS)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        count, times_s, bytes_used = json.loads(printed.splitlines()[-1])
        plans.append(count)
        first_s.append(times_s[0])
        median_s.append(float(np.median(times_s[1:])))
        memory_bytes.append(bytes_used)
    slope = np.polyfit(np.log(plans), np.log(first_s), 1)[0]
    return [
        Figure(
            f"a decision for up to {WORKERS[-1]:,} devices",
            "at least 100,000 feasible plans in under 2 s and 500 MB",
            f"{plans[-1]:,} plans in {first_s[-1]:.2f} s (again: {median_s[-1]:.2f} s), "
            f"{memory_bytes[-1] / 1e6:.0f} MB",
            "recorded run of digits, enlarged; first call in a process of its own, imports left out; "
            f"again: median of {REPEATS - 1}; peak RSS",
        ),
        Figure(
            "its cost against the number of candidates",
            "no worse than linear",
            f"to the power {slope:.2f}",
            f"{plans[0]:,} to {plans[-1]:,} plans, log-log line through {len(WORKERS)} first calls",
        ),
    ]


if __name__ == "__main__":
    from figure import table

    print(table(measure()))
