"""Whether powers of two are faster: a pass of 2^k examples beside its neighbours, in turn."""

import time
from dataclasses import dataclass, field
from itertools import islice

from scaler.batch import BatchPlan
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.torch_engine import TorchEngine
from scaler.probe.observation import observation
from scaler.records import PowersRecord
from scaler.runtime.protocol import Rank
from scaler.workload import Workload

_WARMUP, _FEWEST, _MOST = 3, 20, 200  # rounds
_FETCHED = 4  # batches of each size, used over and over: fetching is no part of the question


@dataclass(frozen=True)
class PowersRequest:
    """Asks for passes of 2^k - 1, 2^k, 2^k + 1, 3 x 2^(k-1) and 2^(k+1) examples on one worker."""

    power: int
    """2^k."""
    time_limit_s: float = field(default=4.0, compare=False)
    seed: int = 0


def probe_powers(rank: Rank, workload: Workload, request: PowersRequest) -> PowersRecord:
    """Time steps of every size in turn, each round in another order, so that drift hits all alike."""
    power = request.power
    sizes = (power - 1, power, power + 1, 3 * power // 2, 2 * power)
    plans = [BatchPlan.equal(size, 1, 1) for size in sizes]
    dataset = load_train_data(workload, sizes[-1])
    engine = TorchEngine(workload, plans[-1], rank, workload.reference.learning_rate, request.seed)
    fetched = [list(islice(rank_steps(workload, dataset, p, 0, request.seed), _FETCHED)) for p in plans]
    times_s: list[list[float]] = [[] for _ in sizes]
    started = time.perf_counter()
    for number in range(_MOST + _WARMUP):
        late = time.perf_counter() - started > request.time_limit_s
        if number >= _FEWEST + _WARMUP and late:
            break
        for turn in range(len(sizes)):
            which = (number + turn) % len(sizes)
            start = time.perf_counter()
            engine.step(fetched[which][number % _FETCHED], 0.0)
            rank.device.synchronize()
            times_s[which].append(round(time.perf_counter() - start, 8))
    engine.close()
    return PowersRecord(
        **observation(probe_powers, rank, request),
        micro_batches=sizes,
        step_times_s=tuple(tuple(own[_WARMUP:]) for own in times_s),
    )
