"""Batch size 1, mini-batches and the full batch, trained from the same weights, and the cost around them."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from scaler.batch import BatchPlan
from scaler.engine.data import drawn, load_data, rank_steps
from scaler.engine.engine import build_module
from scaler.engine.torch_engine import TorchEngine
from scaler.errors import BadInput
from scaler.probe.cost_surface import CostSurface
from scaler.probe.observation import observation
from scaler.probe.regime_path import ENDED, NOWHERE, Path, progressing, train_path
from scaler.probe.trajectories import Weights, principal_plane
from scaler.probe.workload import batch_statistics
from scaler.records import RegimesRecord
from scaler.runtime.protocol import Rank
from scaler.units import format_seconds, round_rate
from scaler.workload import Workload

MINI_BATCHES = (64, 128, 256, 512)
SMALLER_RATE = 0.1  # tried besides at size 1, and where a regime diverges or gets nowhere

_EPOCHS, _ITERATIONS = 20, 200  # a regime does so many epochs, and no fewer than so many steps
_FULL_STEPS = 50  # of the full batch that must fit into a regime's time, else the data is cut:
_FEWEST_EXAMPLES, _FEWEST_FULL_STEPS = 128, 5  # to no fewer examples, with which fewer steps will do
_FIRST_PASS, _LARGEST_PASS, _PASS_SHARE = 2, 4096, 0.005  # examples, examples, share of the budget
_PATIENCE = 6  # times as long may a pass smaller than a mini-batch take
_AS_FAST = 1.5  # times the least time an example
_TRAINING_SHARE, _COST_SHARE = 0.6, 0.3  # of the budget; the rest is for finding out how fast all is
_SNAPSHOTS, _STORE_BYTES = 50, 2 * 1024**3  # a path; all together
_LARGEST_SAMPLE, _FEWEST_SAMPLE = 4096, 64
_TRIES = 5
_GRID, _FEWEST_GRID = 25, 9


@dataclass(frozen=True)
class RegimesRequest:
    """Asks for every regime, within about `budget_s`; `seed` gives the weights and the order of examples."""

    budget_s: float
    seed: int = 0


def probe_regimes(rank: Rank, workload: Workload, request: RegimesRequest) -> RegimesRecord:
    """Train every regime, then take the cost along their paths and on a grid around them.

    Raises:
        BadInput: there are fewer than two examples, the budget is too short for any full batch, or the loss
            is not finite from the start.
        WorkloadError: a function of the workload raises at a batch larger than 1.
    """
    if rank.device.kind != "cuda":
        workload = dataclasses.replace(workload, precision="fp32")
    dataset = load_data(workload, "train_data")
    if len(dataset) < 2:
        raise BadInput(
            f"workload {workload.name!r}: train_data() has one example: every batch is the full batch",
            hint="give two examples or more",
        )
    module = build_module(workload, rank, request.seed)
    parameters = sum(p.numel() for p in module.parameters())
    largest_pass, example_s = _best_pass(rank, workload, dataset, request)
    data = _cut(dataset, example_s, largest_pass, request)
    with Weights(parameters) as weights:
        paths = _train(rank, workload, data, largest_pass, weights, request)
        rows = weights.rows()
        surface = CostSurface(rank, workload, request.seed)
        started = time.perf_counter()
        limit_s = _COST_SHARE * request.budget_s
        sample = _take_sample(rank, surface, data, rows[0], largest_pass, limit_s / (len(rows) + _GRID**2))
        before = time.perf_counter()
        costs = [surface.cost(row) for row in rows]
        cost_s = (time.perf_counter() - before) / len(rows)
        in_plane = progressing(paths, costs)
        spanning = [m.row for path, spans in zip(paths, in_plane, strict=True) if spans for m in path.moments]
        plane = principal_plane(rows, spanning or range(len(rows)))
        at = plane.coordinates(rows)
        points = (started + limit_s - time.perf_counter()) / cost_s
        side = max(_FEWEST_GRID, min(_GRID, math.isqrt(max(0, int(points)))))
        return RegimesRecord(
            **observation(probe_regimes, rank, request),
            name=workload.name,
            budget_s=request.budget_s,
            train_examples=len(dataset),
            data_examples=len(data),
            sample_examples=sample,
            parameters=parameters,
            batch_statistics=batch_statistics(module),
            regimes=tuple(path.regime(costs, at, spans) for path, spans in zip(paths, in_plane, strict=True)),
            explained=plane.explained,
            contour=surface.contour(plane, at[spanning], side) if spanning else None,
        )


def regime_sizes(examples: int) -> list[int]:
    """List the batch sizes: mini-batches, the full batch, then 1, since what is left of time is its own."""
    return [*(size for size in MINI_BATCHES if size < examples), examples, 1]


def _train(
    rank: Rank, workload: Workload, data: Any, largest_pass: int, weights: Weights, request: RegimesRequest
) -> list[Path]:
    """Train every regime; each gets an equal share of the time that those before it left."""
    asked = [(size, 1.0) for size in regime_sizes(len(data))] + [(1, SMALLER_RATE)]
    ends = time.perf_counter() + _TRAINING_SHARE * request.budget_s
    snapshots = max(2, min(_SNAPSHOTS, _STORE_BYTES // (4 * weights.parameters * len(asked))))
    reference = workload.reference
    paths: list[Path] = []
    while asked:
        size, factor = asked.pop(0)
        rate = reference.learning_rate * math.sqrt(size / reference.global_batch) * factor
        path = Path(
            plan=BatchPlan.split(size, 1, largest_pass),
            learning_rate=round_rate(rate),
            rate_factor=factor,
            planned_iterations=max(_ITERATIONS, math.ceil(_EPOCHS * len(data) / size)),
        )
        time_limit_s = (ends - time.perf_counter()) / (len(asked) + 1)
        train_path(path, rank, workload, data, request.seed, weights, snapshots, time_limit_s)
        if path.stop == "diverged" and not path.costs and not paths:
            raise BadInput(
                f"workload {workload.name!r}: loss() of {size} examples is not finite at the initial weights",
                hint="call loss on one batch in a Python session; look for infinite or missing inputs",
            )
        paths.append(path)
        progress = [paths[0].costs[0] - other.last_cost() for other in paths if other.stop in ENDED]
        failed = path.stop not in ENDED or progress[-1] <= NOWHERE * max(progress)
        if failed and factor == 1.0 and (size, SMALLER_RATE) not in asked:
            asked.insert(0, (size, SMALLER_RATE))
        if path.stop == "undefined":
            asked = [other for other in asked if other[0] != size]
    return sorted(paths, key=lambda path: (path.plan.global_batch, -path.rate_factor))


def _best_pass(rank: Rank, workload: Workload, dataset: Any, request: RegimesRequest) -> tuple[int, float]:
    """Choose how many examples a pass has at most: (examples, seconds an example).

    Passes double until one is all data, slow, or too large for the device. The largest is taken, unless it is
    much slower an example than another (beyond a cache's size) and larger than any mini-batch.
    """
    most = min(len(dataset), _LARGEST_PASS)
    size = min(_FIRST_PASS, most)
    rate, slow_s = workload.reference.learning_rate, _PASS_SHARE * request.budget_s
    engine = TorchEngine(workload, BatchPlan.equal(most, 1, 1), rank, rate, request.seed)
    example_s: dict[int, float] = {}
    while True:
        batch = next(rank_steps(workload, dataset, BatchPlan.equal(size, 1, 1), 0, request.seed))
        try:
            with rank.device.memory():
                engine.step(batch, 0.0)
        except torch.OutOfMemoryError:
            engine.optimizer.zero_grad(set_to_none=True)
            if example_s or size == 1:
                break
            size //= 2
            continue
        pass_s = _fastest_s(rank, partial(engine.step, batch, 0.0), slow_s)
        example_s[size] = pass_s / size
        if size == most or pass_s > (slow_s if size >= MINI_BATCHES[0] else _PATIENCE * slow_s):
            break
        size = min(2 * size, most)
    engine.close()
    if not example_s:
        raise BadInput(
            f"workload {workload.name!r}: a step of one example does not fit the device's memory",
            hint="`scaler plan` says what does",
        )
    fast = [size for size, own in example_s.items() if own <= _AS_FAST * min(example_s.values())]
    best = max(*fast, max(size for size in example_s if size <= MINI_BATCHES[-1]))
    return best, example_s[best]


def _fastest_s(rank: Rank, work: Callable[[], object], limit_s: float) -> float:
    """Time some work up to five times, until `limit_s` is over: others may use the machine too."""
    times_s: list[float] = []
    while len(times_s) < _TRIES and sum(times_s) <= limit_s:
        started = time.perf_counter()
        work()
        rank.device.synchronize()
        times_s.append(time.perf_counter() - started)
    return min(times_s)


def _cut(dataset: Any, example_s: float, largest_pass: int, request: RegimesRequest) -> Any:
    """Give what is "the data" of every regime: all of it, or so much that full batches fit into the budget.

    The examples are drawn at random; a few may be left out so that passes of one size make up the full batch.

    Raises:
        BadInput: the budget is too short.
    """
    examples = len(dataset)
    while examples > _FEWEST_EXAMPLES and _time_s(examples, _FULL_STEPS, example_s) > request.budget_s:
        examples = max(_FEWEST_EXAMPLES, 2 ** ((examples - 1).bit_length() - 1))
    need_s = _time_s(examples, _FEWEST_FULL_STEPS, example_s)
    if need_s > request.budget_s:
        raise BadInput(
            f"a budget of {format_seconds(request.budget_s)} is too short: training on one example takes "
            f"{format_seconds(example_s)}, and {_FEWEST_FULL_STEPS} steps of {examples} examples are to fit",
            hint=f"give --budget {math.ceil(1.5 * need_s / 60)}m, or faster devices",
        )
    passes = -(-examples // largest_pass)
    return drawn(dataset, examples // passes * passes, request.seed)


def _time_s(examples: int, full_steps: int, example_s: float) -> float:
    """Give the budget of which each regime's share holds so many steps of a full batch."""
    regimes = len(regime_sizes(examples)) + 1
    return full_steps * examples * example_s * regimes / _TRAINING_SHARE


def _take_sample(
    rank: Rank, surface: CostSurface, data: Any, weights: Any, largest_pass: int, each_s: float
) -> int:
    """Choose over how many examples a cost is the mean: halved until one takes no more than `each_s`."""
    examples = min(len(data), _LARGEST_SAMPLE)
    while True:
        examples = surface.take(data, examples, largest_pass)
        cost_s = _fastest_s(rank, partial(surface.cost, weights), _TRIES * each_s)
        if cost_s <= each_s or examples <= _FEWEST_SAMPLE:
            return examples
        examples = max(_FEWEST_SAMPLE, examples // 2)
