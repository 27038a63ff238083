"""A device slower than this CPU, and a link slower than its loopback: time slept, not burned."""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from scaler.cluster import Emulation

_LEAST_SLEEP_S = 5e-4  # shorter sleeps are not kept by the system
_SHARING = 0.15  # of a node's link, lost for each further worker on the node; only where it is not shaped
_JITTER = 0.05


class EmulatedCompute(TorchDispatchMode):
    """Makes operators take as long as a device of `flops_per_s` would need for their arithmetic.

    The real work is done on the CPU in between, so the sum is right as long as the CPU is faster.
    """

    def __init__(self, emulation: Emulation) -> None:
        super().__init__()
        self._flops_per_s = emulation.flops_per_s
        self._overhead_s = emulation.overhead_s
        self._busy_until = 0.0

    def begin_pass(self) -> None:
        """Pay the fixed time of a pass."""
        self._busy_until = max(self._busy_until, time.perf_counter()) + self._overhead_s

    def finish(self) -> None:
        """Wait until the device has done all of it."""
        time.sleep(max(0.0, self._busy_until - time.perf_counter()))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None and self._flops_per_s is not None:
            flops = count(*args, **(kwargs or {}), out_val=out)
            self._busy_until = max(self._busy_until, time.perf_counter()) + flops / self._flops_per_s
        if self._busy_until - time.perf_counter() > _LEAST_SLEEP_S:
            self.finish()
        return out


class EmulatedLink:
    """Holds a collective up: by its latency, and by its bytes where no network namespace shapes them.

    One thing is on its way at a time, as on a real link; the worker computes on meanwhile.
    """

    def __init__(self, emulation: Emulation, workers: int, nodes: int, shaped: bool) -> None:
        self._emulation, self._workers, self._shaped = emulation, workers, shaped
        self._shared = 1 + _SHARING * (workers / nodes - 1)
        self._random = random.Random(workers)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="emulated-link")

    def hold_s(self, size_bytes: int) -> float:
        """Give how long an all-reduce of so many bytes is held up: a ring takes 2 (K - 1) turns."""
        turns = 2 * (self._workers - 1)
        held_s = turns * self._emulation.latency_s
        if not self._shaped and self._emulation.bandwidth_bytes is not None:
            sent = turns / self._workers * size_bytes * self._shared * self._random.lognormvariate(0, _JITTER)
            held_s += sent / self._emulation.bandwidth_bytes
        return held_s

    def hold(self, reduced: Any, size_bytes: int) -> Any:
        """Give a future that is done when `reduced` is and the link has carried it."""
        held: Any = torch.futures.Future()
        started = time.perf_counter()

        def carry() -> None:
            try:
                value = reduced.wait()
                rest_s = self.hold_s(size_bytes) - (0 if self._shaped else time.perf_counter() - started)
                time.sleep(max(0.0, rest_s))
                held.set_result(value)
            except Exception as error:
                held.set_exception(error)

        self._thread.submit(carry)
        return held

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)
