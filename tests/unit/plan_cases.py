"""Predictions that follow a formula, in place of tracing: states that ZeRO spreads, examples, a context."""

from scaler.cluster import Cluster
from scaler.plan import Plans, plan
from scaler.records import PredictedCurve, PredictedPeak, Prediction
from scaler.trace.shape import LARGEST, Shape
from scaler.workload import load_workload

MIB = 2**20
STATE, EXAMPLE, CONTEXT = 6 * MIB, MIB // 64, MIB


def cluster_of(memory_mib: float = 24, **fields) -> Cluster:
    data = {"name": "two", "workers": (1, 2), "kind": "cuda", "device_memory": int(memory_mib * MIB)}
    return Cluster.model_validate(data | fields)


def peak_of(shape: Shape, micro_batch: int, offloaded: bool = False) -> PredictedPeak:
    spread = [shape.workers if shape.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    parameters, gradients, states = (STATE // (3 * over) for over in spread)
    items = {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer_state": 0 if offloaded else states,
        "activations": EXAMPLE * micro_batch,
        "rounding": 512 * 1024,
        "context": CONTEXT,
        "communicator": 0,
    }
    reserved = sum(items.values()) - CONTEXT
    return PredictedPeak(
        micro_batch=micro_batch,
        allocated_bytes=reserved - items["rounding"],
        reserved_bytes=reserved,
        peak_bytes=reserved + CONTEXT,
        items=items,
        regime="backward",
        host_items={"process": 300 * MIB, "data_loading": 64 * micro_batch},
    )


def predict(workload, cluster, shapes, sizes=None, largest=LARGEST, offload_optimizer=False, progress=None):
    """Answers as `scaler.trace.ask.ask_prediction` does."""
    capacity, curves = cluster.capacity_bytes(), []
    for shape in shapes:
        low, high = 0, largest + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = cluster.fits(peak_of(shape, middle, offload_optimizer).peak_bytes, capacity)
            low, high = (middle, high) if fits else (low, middle)
        curves.append(
            PredictedCurve(
                workers=shape.workers,
                zero_stage=shape.zero_stage,
                accumulating=shape.accumulating,
                max_micro_batch=low,
                fixed_bytes=CONTEXT,
                bills=tuple(peak_of(shape, size, offload_optimizer) for size in sizes or [max(1, low)]),
            )
        )
        if progress is not None:
            progress(len(curves), len(shapes))
    return Prediction(curves=tuple(curves), confidence="medium")


def plans_of(monkeypatch, cluster: Cluster | None = None, *micro_batches: int, **options) -> Plans:
    """What `scaler plan` makes of these predictions."""
    monkeypatch.setattr("scaler.plan.ask_prediction", predict)
    return plan(load_workload("digits"), cluster or cluster_of(), micro_batches, **options)
