"""Devices whose memory is known to the byte, and that conceal some of it from the prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from asking import curve

from scaler.batch import BatchPlan
from scaler.cluster import Cluster, ConcealedBias
from scaler.fit.memory import fit_memory
from scaler.fit.traced import TracedFit
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.powers import probe_powers
from scaler.probe.prediction import PredictionRequest, probe_prediction
from scaler.probe.throughput import probe_throughput
from scaler.probe.workload import probe_workload
from scaler.records import (
    MemoryRecord,
    PowersRecord,
    PredictedCurve,
    Prediction,
    PredictionRecord,
    ThroughputRecord,
    WorkloadRecord,
    environment,
    now,
)
from scaler.runtime.protocol import Outcome, Task

TRAIN_EXAMPLES = 8192


@dataclass(frozen=True)
class Devices:
    """What a step truly takes: max(floor, fixed + per example x micro-batch), a granule at a time."""

    cluster: Cluster
    fixed_bytes: int = 1000
    example_bytes: int = 100
    floor_bytes: int = 0
    gradient_bytes: int = 0
    """Held beside when accumulating."""
    granule_bytes: int = 1
    known_in_use: bool = True
    """Whether a device that runs out says how much was in use (a sharded engine does not)."""
    releases: bool = False
    """Whether a device that is too small keeps going by releasing cached memory, again and again."""
    others_bytes: int = 0
    """What another process holds of each device."""
    concealed: ConcealedBias = field(default_factory=ConcealedBias)

    def live_bytes(self, micro_batch: int, accumulation: int = 1) -> int:
        held = max(self.floor_bytes, self.fixed_bytes + self.example_bytes * micro_batch)
        return held + self.gradient_bytes * (accumulation > 1)

    def peak_bytes(self, micro_batch: int, accumulation: int = 1) -> int:
        return self.others_bytes + self.concealed.counted_bytes(self.live_bytes(micro_batch, accumulation))

    def largest(self, most: int, accumulation: int = 1) -> int:
        """The largest micro-batch up to `most` that truly leaves margin and reserve, 0 if none."""
        capacity = self.cluster.capacity_bytes()
        fits = (
            m for m in range(1, most + 1) if self.cluster.fits(self.peak_bytes(m, accumulation), capacity)
        )
        return max(fits, default=0)

    def curve(self, workers: int, zero_stage: int, largest: int, accumulating: bool) -> PredictedCurve:
        """The live bytes, exactly: the line bends only where the floor ends."""
        bend = (self.floor_bytes - self.fixed_bytes) // self.example_bytes
        sizes = sorted({1, largest, *(m for m in (bend, bend + 1) if 1 <= m <= largest)})
        return curve(lambda m: self.live_bytes(m, 1 + accumulating), sizes, workers, zero_stage, accumulating)

    def predict(self, request: PredictionRequest) -> Prediction:
        return Prediction(
            curves=tuple(
                self.curve(workers, stage, request.largest, accumulating)
                for accumulating in (False, True)
                for workers, stage in request.shapes
            ),
            confidence="high",
        )

    def measure(self, plan: BatchPlan) -> MemoryRecord:
        """What probing a plan gives; every rank is counted with its own device."""
        assert plan.global_batch <= TRAIN_EXAMPLES, "there are no more examples"
        limits = [self.cluster.capacity_bytes(rank) for rank in range(plan.workers)]
        peaks = [self.peak_bytes(entry, plan.accumulation) for entry in plan.micro_batches]
        failed = [limit for peak, limit in zip(peaks, limits, strict=True) if peak > limit]
        in_use = self._in_use_bytes(min(failed)) if failed and self.known_in_use else None
        seen = _seen(Task(probe_memory, MemoryRequest(plan), plan.workers))
        if failed and self.releases:
            return MemoryRecord(**seen, plan=plan, out_of_memory=False, peak_bytes=min(failed), retries=2)
        return MemoryRecord(
            **seen,
            plan=plan,
            out_of_memory=bool(failed),
            peak_bytes=None if failed else max(peaks),
            rank_peak_bytes=() if failed else tuple(peaks),
            in_use_bytes=in_use,
            capacity_bytes=limits[0],
        )

    def _in_use_bytes(self, capacity_bytes: int) -> int:
        """Most that was counted before one granule more was too much."""
        low, high = 0, capacity_bytes + 1
        while high - low > 1:
            middle = (low + high) // 2
            counted = self.others_bytes + self.concealed.counted_bytes(middle * self.granule_bytes)
            low, high = (middle, high) if counted <= capacity_bytes else (low, middle)
        return self.others_bytes + self.concealed.counted_bytes(low * self.granule_bytes)

    # One way of spreading

    def ask(self, micro_batch: int) -> list[MemoryRecord]:
        return [self.measure(BatchPlan.equal(micro_batch, 1, 1))]

    def fit(self, largest: int, measured: list[MemoryRecord]) -> TracedFit:
        request = PredictionRequest(((1, 0),), largest, self.cluster)
        record = PredictionRecord(**_seen(Task(probe_prediction, request)), prediction=self.predict(request))
        found = fit_memory([record, *measured], self.cluster.capacity_bytes())[0, 1]
        assert isinstance(found, TracedFit)
        return found


class SimulatedRuntime:
    """Answers what memory and speeds are measured with, on any number of workers."""

    def __init__(
        self,
        devices: Devices,
        rates: Sequence[float] = (),
        odd: float = 1.0,
        rank_times: bool = True,
    ) -> None:
        """`rates` are examples per second of each rank; passes of odd sizes take `odd` times as long."""
        self.devices, self.workers = devices, devices.cluster.max_workers
        self._rates, self._odd, self._rank_times = rates, odd, rank_times

    def run(self, tasks):
        for task in tasks:
            if task.probe is probe_workload:
                yield Outcome(task, _sizes(task))
            elif task.probe is probe_powers:
                yield Outcome(task, self._powers(task))
            elif task.probe is probe_prediction:
                prediction = self.devices.predict(task.request)
                yield Outcome(task, PredictionRecord(**_seen(task), prediction=prediction))
            elif task.probe is probe_throughput:
                yield Outcome(task, self._throughput(task))
            else:
                yield Outcome(task, self.devices.measure(task.request.plan))

    def _powers(self, task: Task) -> PowersRecord:
        power = task.request.power
        sizes = (power - 1, power, power + 1, 3 * power // 2, 2 * power)
        times_s = tuple((size * (self._odd if size % 2 else 1.0),) * 20 for size in sizes)
        return PowersRecord(**_seen(task), micro_batches=sizes, step_times_s=times_s)

    def _throughput(self, task: Task) -> ThroughputRecord:
        plan = task.request.plan
        compute_s = tuple(
            plan.accumulation * entry / rate
            for entry, rate in zip(plan.micro_batches, self._rates, strict=True)
        )
        return ThroughputRecord(
            **_seen(task),
            plan=plan,
            step_times_s=(max(compute_s),) * 20,
            warmup_steps=0,
            rank_compute_s=compute_s if self._rank_times else (),
        )


def _sizes(task: Task) -> WorkloadRecord:
    return WorkloadRecord(
        **_seen(task),
        name="simulated",
        reference_global_batch=32,
        reference_learning_rate=0.1,
        reference_warmup_examples=0,
        target_value=0.9,
        target_direction="max",
        train_examples=TRAIN_EXAMPLES,
        eval_examples=1,
        parameters=250,
        batch_statistics=(),
    )


def _seen(task: Task) -> dict:
    return {
        "task": task.key,
        "seed": task.request.seed,
        "taken_at": now(),
        "environment": environment("mock", task.workers),
    }
