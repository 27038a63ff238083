"""Splits a step into data, forward, backward, exposed synchronisation and optimizer."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from scaler.device import Device
from scaler.records import StepPhase


class StepClock:
    """Reads the monotonic clock where one phase of a step turns to the next."""

    def __init__(self) -> None:
        self.times_s: dict[StepPhase, list[float]] = defaultdict(list)
        """Of every step so far."""
        self.step_times_s: list[float] = []
        self._own: dict[StepPhase, float] = defaultdict(float)
        self._inside_s = 0.0
        self._started = self._last = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._started = self._last = time.perf_counter()

    def lap(self, phase: StepPhase) -> None:
        """Count the time since the last lap to a phase, less what `waiting` took of it."""
        now = time.perf_counter()
        self._own[phase] += now - self._last - self._inside_s
        self._last, self._inside_s = now, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as synchronisation, whatever phase it lies in."""
        start = time.perf_counter()
        yield
        took_s = time.perf_counter() - start
        self._own["sync"] += took_s
        self._inside_s += took_s

    def end(self) -> None:
        """End the step; the device has done all of it."""
        self.step_times_s.append(time.perf_counter() - self._started)
        self._keep(self._own)

    def _keep(self, own: dict[StepPhase, float]) -> None:
        for phase in {*own, *self.times_s}:  # a phase need not be part of every step
            self.times_s[phase] += [0.0] * (len(self.step_times_s) - 1 - len(self.times_s[phase]))
            self.times_s[phase].append(own.get(phase, 0.0))
        self._own = defaultdict(float)


class CudaClock(StepClock):
    """Marks the turns on the device's stream: the host runs ahead of it."""

    def __init__(self) -> None:
        super().__init__()
        self._marks: list[tuple[StepPhase | None, torch.cuda.Event]] = []

    def start(self) -> None:
        """Begin a step."""
        super().start()
        self._mark(None)

    def lap(self, phase: StepPhase) -> None:
        """Count the device's time since the last lap to a phase."""
        self._mark(phase)

    def end(self) -> None:
        """End the step; the device has done all of it."""
        self.step_times_s.append(time.perf_counter() - self._started)
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            assert phase is not None
            self._own[phase] += before.elapsed_time(after) / 1e3
        self._marks = []
        self._keep(self._own)

    def _mark(self, phase: StepPhase | None) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))


def step_clock(device: Device) -> StepClock:
    """Make the clock for a device."""
    return CudaClock() if device.kind == "cuda" else StepClock()
