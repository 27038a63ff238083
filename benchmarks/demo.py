"""The main job as a user runs it: wall time, peak memory of all its processes, and what it recorded."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from figure import Figure

from scaler.decide.fits import workload_record
from scaler.records import ConfirmationRecord, ConvergenceRecord
from scaler.runs import RunFolder

CLUSTER = Path(__file__).parents[1] / "cluster" / "mock-2.yaml"


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "RUN")
        command = [
            sys.executable,
            "-m",
            "scaler",
            "tune",
            "digits",
            "--cluster",
            str(CLUSTER),
            "--out",
            run,
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _pss_bytes(process.pid))
            time.sleep(0.5)
        wall_s = time.perf_counter() - start
        assert process.returncode == 0, process.returncode
        records = RunFolder.open(run).records()
    trials = [r for r in records if type(r) is ConvergenceRecord]
    (confirmed,) = [r for r in records if isinstance(r, ConfirmationRecord)]
    chosen = (confirmed.plan.global_batch, confirmed.learning_rate)
    at_chosen = [r.examples for r in trials if (r.plan.global_batch, r.learning_rate) == chosen]
    spent = sum(r.trained_examples for r in trials)
    assert workload_record(records).name == "digits"
    once = "one run of `scaler tune digits --cluster cluster/mock-2.yaml`"
    return [
        Figure("tune digits, start to report", "under 4 min", f"{wall_s:.0f} s", once),
        Figure(
            "memory of all its processes",
            "under 4 GiB",
            f"{peak_bytes / 2**30:.2f} GiB",
            "same run; peak of summed PSS, sampled twice a second",
        ),
        Figure(
            "trials",
            "at most 12 x the examples of one run at the answer",
            f"{len(trials)} trials at {len({r.plan.global_batch for r in trials})} batches, "
            f"{spent / statistics.mean(at_chosen):.1f} x",
            f"same run's records; mean of {len(at_chosen)} runs at the answer",
        ),
        Figure(
            "held-out accuracy of the confirming run",
            "at least 0.95",
            f"{confirmed.curve[-1].metric:.4f}",
            "same run; 360 images",
        ),
    ]


def _pss_bytes(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total
