"""A runtime that remembers what it was asked, and what its devices' memory is predicted to be."""

from collections.abc import Callable

from scaler.probe.observation import observation
from scaler.probe.prediction import PredictionRequest, probe_prediction
from scaler.records import PredictedCurve, PredictedPeak, Prediction, PredictionRecord
from scaler.runtime.protocol import Outcome, Rank

TrueHeld = Callable[[int, int], int]
"""(micro-batch, accumulation) -> bytes of live tensors at the peak."""


def untraced(request: PredictionRequest) -> Prediction:
    """A model that cannot be traced: nothing is known before it is measured."""
    return Prediction(curves=(), confidence="low", notes=("not traced",))


def curve(held, sizes, workers=1, zero_stage=0, accumulating=False, best=0, fixed_bytes=0) -> PredictedCurve:
    """The curve through (size, held bytes) at `sizes`, with a bill at the largest that fits (1 if none)."""
    at = max(1, best)
    bill = PredictedPeak(
        micro_batch=at,
        allocated_bytes=held(at),
        reserved_bytes=held(at),
        peak_bytes=held(at) + fixed_bytes,
        items={"parameters": held(at) // 3, "activations": held(at) - held(at) // 3, "context": fixed_bytes},
        regime="forward",
        host_items={"process": 1},
    )
    return PredictedCurve(
        workers=workers,
        zero_stage=zero_stage,
        accumulating=accumulating,
        max_micro_batch=best,
        fixed_bytes=fixed_bytes,
        micro_batches=tuple(sizes),
        peak_bytes=tuple(held(size) + fixed_bytes for size in sizes),
        bills=(bill,),
    )


def prediction_record(request: PredictionRequest, prediction: Prediction, rank: Rank) -> PredictionRecord:
    return PredictionRecord(**observation(probe_prediction, rank, request), prediction=prediction)


class Asked:
    """Passes tasks on to another runtime, one at a time, and keeps them; it predicts by itself."""

    def __init__(self, runtime, predict: Callable[[PredictionRequest], Prediction] = untraced):
        self.workers = runtime.workers
        self.tasks = []
        self._runtime = runtime
        self._predict = predict

    def run(self, tasks):
        for task in tasks:
            self.tasks.append(task)
            if task.probe is probe_prediction:
                rank = Rank(0, 1, _Nowhere())
                yield Outcome(task, prediction_record(task.request, self._predict(task.request), rank))
            else:
                yield from self._runtime.run([task])


class _Nowhere:
    """Predicting needs no device."""

    name = "none"
