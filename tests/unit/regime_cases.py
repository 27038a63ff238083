"""Records of regimes by hand, with noise and times that are known."""

import datetime

import numpy as np

from scaler.batch import BatchPlan
from scaler.records import BatchRegime, Contour, CostCurve, Environment, RegimesRecord, Snapshot

DATA = 256


def curve(costs, step_time_s: float = 0.01, block: int = 1) -> CostCurve:
    values = np.asarray(costs, dtype=float)
    changes = np.diff(values, prepend=values[0])
    parts = [slice(start, start + block) for start in range(0, len(values), block)]
    ends = [min(part.stop, len(values)) for part in parts]
    return CostCurve(
        iterations=tuple(ends),
        time_s=tuple(step_time_s * end for end in ends),
        mean=tuple(float(values[p].mean()) for p in parts),
        low=tuple(float(values[p].min()) for p in parts),
        high=tuple(float(values[p].max()) for p in parts),
        squared_change=tuple(float((changes[p] ** 2).mean()) for p in parts),
        rises=tuple(int((changes[p] > 0).sum()) for p in parts),
    )


def regime(batch: int, costs=(), factor: float = 1.0, step_time_s: float = 0.01, **fields) -> BatchRegime:
    """Give a regime whose snapshots, ten apart, cost what its steps cost."""
    steps = len(costs)
    path = [
        Snapshot(
            iteration=i,
            time_s=step_time_s * i,
            cost=float(costs[min(i, steps - 1)]) if steps else 2.0,
            x=i / 50,
            y=batch / 64,
        )
        for i in range(0, steps + 1, 10)
    ]
    defaults = {
        "plan": BatchPlan.equal(batch, 1, 1),
        "learning_rate": 0.1 * (batch / 64) ** 0.5 * factor,
        "rate_factor": factor,
        "stop": "limit",
        "planned_iterations": max(1, steps),
        "iterations": steps,
        "train_time_s": step_time_s * steps,
        "curve": curve(costs, step_time_s) if steps else None,
        "path": tuple(path),
        "spans_plane": bool(steps),
    }
    return BatchRegime(**(defaults | fields))


def noisy(steps: int, deviation: float, last: float = 0.1, seed: int = 0):
    """A cost that falls from 2 to `last`, with normal noise."""
    return np.geomspace(2.0, last, steps) + deviation * np.random.default_rng(seed).normal(size=steps)


def regimes_record(*regimes: BatchRegime, **fields) -> RegimesRecord:
    defaults = {
        "task": "t",
        "seed": 0,
        "taken_at": datetime.datetime(2025, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "environment": Environment(
            device="cpu", world_size=1, machine="Linux x86_64", cpu_count=2, versions={"python": "3.11"}
        ),
        "name": "digits",
        "budget_s": 60.0,
        "train_examples": DATA,
        "data_examples": DATA,
        "sample_examples": DATA,
        "parameters": 10,
        "batch_statistics": (),
        "explained": (0.7, 0.2),
        "contour": Contour(
            x=(-1.0, 2.0, 9.0), y=(-1.0, 2.0, 9.0), cost=((1, 2, 3), (0.5, 1, None), (1, 2, 4))
        ),
    }
    return RegimesRecord(**(defaults | {"regimes": regimes} | fields))


def tutorial() -> RegimesRecord:
    """Batch 1 at both rates, batch 64, and the full batch of 256."""
    return regimes_record(
        regime(1, 1.0 + abs(noisy(400, 0.5)), step_time_s=0.001),
        regime(1, abs(noisy(400, 0.1, last=0.5)), factor=0.1, step_time_s=0.001),
        regime(64, noisy(200, 0.05, last=0.2), step_time_s=0.002),
        regime(DATA, noisy(100, 0.0), step_time_s=0.004),
    )
