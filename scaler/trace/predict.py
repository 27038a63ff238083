"""The peak at any micro-batch, and the largest micro-batch that fits, from a few traces."""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from scaler.cluster import Cluster
from scaler.records import Confidence, MemoryItem, PredictedCurve, PredictedPeak, Prediction
from scaler.trace.allocator import OutOfMemory
from scaler.trace.batches import FakeBatches
from scaler.trace.fixed import communicator_bytes, context_bytes
from scaler.trace.host import HostMemory
from scaler.trace.program import CATEGORIES, Peak, Program
from scaler.trace.shape import LARGEST, Shape
from scaler.trace.sharding import Sharding, shard
from scaler.trace.step import Untraceable, trace_steps
from scaler.trace.tracer import Trace
from scaler.workload import Workload

_FIRST_MICRO_BATCH = 2  # at 1 some models squeeze dimensions away
_BRANCH = 50  # where the step changes is looked for to a 50th of the size
_TOLERANCE = 1e-3  # of the bytes a step allocates
_CURVE_POINTS = 24
_NEAR_POINTS = 1000
_NEAR_POINTS_CUDA = 50  # replays take longer than sums
_ADDED = 1.15


class Predictor:
    """Predicts memory for one workload on one cluster's devices. Traces as it is asked."""

    def __init__(self, workload: Workload, cluster: Cluster, offload_optimizer: bool = False) -> None:
        self._workload = workload
        self._cluster = cluster
        self._offload = offload_optimizer
        self._host = HostMemory(workload)
        self._batches = FakeBatches(workload)
        self._cuda = cluster.kind == "cuda"
        self._lines: dict[bool, list[tuple[int, Program]]] = {}
        self._sharded: dict[tuple[Shape, int], Program] = {}
        self._held: dict[tuple[bool, int, int], bool] = {}
        self.notes: set[str] = set()

    def peak(self, shape: Shape, micro_batch: int) -> PredictedPeak:
        """Predict the peak at `micro_batch`, whether it fits or not.

        Raises:
            Untraceable: the model does not run on fake tensors.
        """
        capacity_bytes = self._cluster.capacity_bytes()
        if capacity_bytes is not None:
            capacity_bytes -= self._fixed_bytes(shape)
        try:
            found = self._replay(shape, micro_batch, capacity_bytes)
        except OutOfMemory:
            found = self._unlimited(shape, micro_batch)
        return self._predicted(shape, micro_batch, found)

    def fits(self, shape: Shape, micro_batch: int) -> bool:
        """Whether the peak leaves the margin and the reserve, without releasing memory step after step.

        Raises:
            Untraceable: the model does not run on fake tensors.
        """
        cluster = self._cluster
        capacity_bytes = cluster.capacity_bytes()
        if capacity_bytes is None:
            return True
        usable_bytes = int((capacity_bytes - cluster.reserve_bytes) / (1 + cluster.margin))
        try:
            found = self._replay(shape, micro_batch, usable_bytes - self._fixed_bytes(shape))
        except OutOfMemory:
            return False
        peak_bytes = found.reserved_bytes + self._fixed_bytes(shape)
        return found.retries == 0 and cluster.fits(peak_bytes, capacity_bytes)

    def max_micro_batch(self, shape: Shape, largest: int = LARGEST) -> int:
        """Find the largest micro-batch up to `largest` that fits, 0 if none, and check the trace there.

        Raises:
            Untraceable: the model does not run on fake tensors.
        """
        found = self._bisect(shape, largest)
        for _ in range(3):
            if found < 1 or self._check(shape.accumulating, found):
                break
            found = self._bisect(shape, largest)
        else:
            self.notes.add(f"the step changes with the micro-batch, and was not checked at {found}")
        return found

    def curve(self, shape: Shape, sizes: Sequence[int] | None, largest: int) -> PredictedCurve:
        """Itemise the peaks at `sizes`, or at the largest that fits where there are none.

        Without `sizes` (None) it gives the peaks from micro-batch 1 to `largest` too, closer together where
        memory ends.

        Raises:
            Untraceable: the model does not run on fake tensors.
        """
        best = self.max_micro_batch(shape, largest)
        grid = self._grid(shape, largest) if sizes is None else []
        return PredictedCurve(
            workers=shape.workers,
            zero_stage=shape.zero_stage,
            accumulating=shape.accumulating,
            max_micro_batch=best,
            fixed_bytes=self._fixed_bytes(shape),
            micro_batches=tuple(grid),
            peak_bytes=tuple(
                self._unlimited(shape, size).reserved_bytes + self._fixed_bytes(shape) for size in grid
            ),
            bills=tuple(self.peak(shape, size) for size in sizes or [max(best, 1)]),
        )

    def _grid(self, shape: Shape, largest: int) -> list[int]:
        """Choose sizes up to `largest`: evenly on the log scale, and closely where a device's memory ends.

        That is from where the peak leaves a good part of it free: probes find out what a device adds.
        """

        def peak(size: int) -> int:
            return self._unlimited(shape, size).reserved_bytes + self._fixed_bytes(shape)

        grid = {round(size) for size in np.geomspace(1, largest, _CURVE_POINTS)}
        points = _NEAR_POINTS_CUDA if self._cuda else _NEAR_POINTS
        ranks = range(self._cluster.max_workers if self._cluster.devices else 1)
        for capacity_bytes in {self._cluster.capacity_bytes(rank) for rank in ranks} - {None}:
            low = max(1, self._most(peak, (capacity_bytes or 0) / _ADDED, largest))
            high = min(largest, self._most(peak, capacity_bytes or 0, largest) + 1)
            grid |= {round(size) for size in np.linspace(low, high, min(points, high - low + 1))}
        return sorted(grid)

    def _unlimited(self, shape: Shape, micro_batch: int) -> Peak:
        return self._replay(shape, micro_batch, None)

    def _bisect(self, shape: Shape, largest: int) -> int:
        """Find the largest size that fits, from above: what is reserved is at least what is allocated."""
        low, high = 0, 1 + self._most_allocated(shape, largest)
        step = max(1, high // 16) if self._cuda else high
        while high - step > 0 and not self.fits(shape, high - step):
            high, step = high - step, 2 * step
        low = max(0, high - step)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(shape, middle) else (low, middle)
        return low

    def _most_allocated(self, shape: Shape, largest: int) -> int:
        capacity_bytes = self._cluster.capacity_bytes()
        if capacity_bytes is None:
            return largest
        room_bytes = capacity_bytes - self._fixed_bytes(shape)
        return self._most(
            lambda size: self._program(shape, size).count(size).allocated_bytes, room_bytes, largest
        )

    def _most(self, peak_bytes: Callable[[int], int], room_bytes: float, largest: int) -> int:
        return bisect.bisect_right(range(1, largest + 1), room_bytes, key=peak_bytes)

    def _replay(self, shape: Shape, micro_batch: int, capacity_bytes: int | None) -> Peak:
        program = self._program(shape, micro_batch)
        if not self._cuda:
            return program.count(micro_batch)
        return program.replay(micro_batch, capacity_bytes, self._cluster.expandable_segments)

    def _program(self, shape: Shape, micro_batch: int) -> Program:
        start, line = self._line(shape.accumulating, micro_batch)
        key = (shape, start)
        if key not in self._sharded:
            sharding = Sharding(
                shape.workers, shape.zero_stage, self._workload.gradient_as_bucket_view, self._offload
            )
            self._sharded[key] = shard(line, sharding)
        return self._sharded[key]

    def _line(self, accumulating: bool, micro_batch: int) -> tuple[int, Program]:
        """Give the line through two traces near a micro-batch: the last that starts at or below it."""
        if accumulating not in self._lines:
            self._lines[accumulating] = []
            self._trace_line(accumulating, _FIRST_MICRO_BATCH)
        lines = self._lines[accumulating]
        below = [line for line in lines if line[0] <= micro_batch]
        return below[-1] if below else lines[0]

    def _trace_line(self, accumulating: bool, start: int) -> None:
        small = self._trace(accumulating, start)
        self.notes |= small.notes
        if self._batches.uneven:
            self.notes.add("examples differ in size: the largest of a sample was taken; give worst_case")
        for gap in (1, 2, 4):  # some models branch on odd sizes
            try:
                line = Program.between(small, self._trace(accumulating, start + gap))
                break
            except ValueError as error:
                fault = error
        else:
            raise Untraceable(f"near micro-batch {start}: {fault}") from fault
        lines = self._lines[accumulating]
        self._lines[accumulating] = sorted([*lines, (start, line)], key=lambda known: known[0])

    def _trace(self, accumulating: bool, micro_batch: int) -> Trace:
        accumulation = 2 if accumulating else 1
        return trace_steps(self._workload, self._cluster, self._batches, micro_batch, accumulation)

    def _check(self, accumulating: bool, micro_batch: int) -> bool:
        """Trace at a micro-batch: whether the line holds there. If not, a new one starts at it."""
        start, line = self._line(accumulating, micro_batch)
        key = (accumulating, start, micro_batch)  # ways of spreading share the trace
        if key not in self._held:
            self._held[key] = self._holds(line, accumulating, micro_batch)
        holds = self._held[key]
        if not holds and start < micro_batch:
            low, high = start, micro_batch
            while high - low > max(1, high // _BRANCH):
                middle = (low + high) // 2
                low, high = (middle, high) if self._holds(line, accumulating, middle) else (low, middle)
            try:
                self._trace_line(accumulating, high)
            except Untraceable as error:
                self.notes.add(f"extrapolated from micro-batch {start}: {error}")
                return True
        return holds

    def _holds(self, line: Program, accumulating: bool, micro_batch: int) -> bool:
        return line.error(self._trace(accumulating, micro_batch)) <= _TOLERANCE

    def _offloaded_bytes(self, shape: Shape) -> int:
        whole, kept = (
            shard(
                self._line(shape.accumulating, 1)[1],
                Sharding(shape.workers, shape.zero_stage, offload_optimizer=off),
            )
            for off in (False, True)
        )
        return whole.held_bytes("optimizer_state") - kept.held_bytes("optimizer_state")

    def _fixed_bytes(self, shape: Shape) -> int:
        return context_bytes(self._cluster) + communicator_bytes(self._cluster, shape.workers)

    def _predicted(self, shape: Shape, micro_batch: int, found: Peak) -> PredictedPeak:
        items: dict[MemoryItem, int] = {
            **{name: found.items[name] for name in CATEGORIES},
            "rounding": found.reserved_bytes - sum(found.items.values()),
            "context": context_bytes(self._cluster),
            "communicator": communicator_bytes(self._cluster, shape.workers),
        }
        program = self._program(shape, micro_batch)
        host = self._host.items(
            micro_batch * self._batches.example_bytes,
            passes=2 if shape.accumulating else 1,
            model_bytes=program.held_bytes("parameters") * (shape.workers if shape.zero_stage == 3 else 1),
            cuda=self._cuda,
            offload_bytes=self._offloaded_bytes(shape) if self._offload else 0,
        )
        return PredictedPeak(
            micro_batch=micro_batch,
            allocated_bytes=found.allocated_bytes,
            reserved_bytes=found.reserved_bytes,
            peak_bytes=found.reserved_bytes + self._fixed_bytes(shape),
            items=items,
            regime=found.regime,
            host_items=host,
        )


def predict(
    workload: Workload,
    cluster: Cluster,
    shapes: Sequence[Shape],
    sizes: Sequence[int] | None,
    largest: int,
    offload_optimizer: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Prediction:
    """Predict the curves of `shapes`, telling `progress` how many are done.

    A model that cannot be traced has none, and a note that says why.

    Raises:
        BadInput: a function of the workload is wrong.
    """
    predictor = Predictor(workload, cluster, offload_optimizer)
    curves: list[PredictedCurve] = []
    try:
        for shape in shapes:
            progress(len(curves))
            curves.append(predictor.curve(shape, sizes, largest))
    except Untraceable as error:
        return Prediction(curves=(), confidence="low", notes=(str(error),))
    notes = sorted(predictor.notes)
    # The bytes of tensors are exact; what a GPU's libraries take beside them is not.
    confidence: Confidence = "low" if notes else "medium" if cluster.kind == "cuda" else "high"
    return Prediction(curves=tuple(curves), confidence=confidence, notes=tuple(notes))
