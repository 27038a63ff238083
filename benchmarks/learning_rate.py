"""The search for learning rates against an exhaustive grid: what its rates cost, and what it took.

    python benchmarks/learning_rate.py [digits | mnist | chars] [--searches N]
    python benchmarks/learning_rate.py chars --record     # the grid itself, in tests/recorded/grids

The grid is every global batch that the search may try x learning rates a factor of 2 apart x 5 seeds; a rate
far from the best is cut short, and gets two seeds if neither arrives. The best two rates of a batch get 20,
so that the best is not the luckiest. At each batch the fitted best rate of a search, and the grid's best, are
then trained with 10 fresh seeds; a run that does not reach the target within four times the grid's best
counts as that. All in this process, on one device. The search is told that a step lasts as long as its
examples and an overhead, so that larger batches are worth while up to a point. Searches have other seeds than
the grid, and than each other.
"""

import argparse
import csv
import functools
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from figure import Figure, table

from scaler.batch import BatchPlan, candidates
from scaler.cluster import Cluster
from scaler.fit.convergence import fit_convergence
from scaler.fit.optimizer import optimizer_of
from scaler.measure.evidence import Evidence
from scaler.measure.learning_rates import search_learning_rates, trial_limit
from scaler.measure.stages import ask_sizes
from scaler.measure.step_times import GivenTimes
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.records import ConvergenceRecord
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Task
from scaler.units import round_rate
from scaler.workload import Workload, load_workload

GRID_SEEDS = range(100, 105)
BEST_SEEDS, BEST_RATES = range(105, 120), 2
FRESH_SEEDS = range(1000, 1010)
FAR = 4.0


@dataclass(frozen=True)
class Grid:
    """What a workload's exhaustive grid spans."""

    rates: tuple[float, ...]
    overhead_examples: float
    """Of a step, in examples' own time: what makes a larger batch worth while."""


GRIDS = {
    "digits": Grid(tuple(0.0125 * 2**i for i in range(9)), 350),
    "mnist": Grid(tuple(0.0125 * 2**i for i in range(7)), 350),
    "chars": Grid(tuple(0.001 * 2**i for i in range(6)), 50),
}


@dataclass(frozen=True)
class Search:
    """One search, and what it found."""

    rates: dict[int, float]
    """That each batch would be trained with."""
    batch: int
    """The batch with the least time to target."""
    examples: float
    """Of one run there."""
    spent: int
    trials: int


class GridRun(NamedTuple):
    """A row of a recorded grid."""

    global_batch: int
    learning_rate: float
    seed: int
    examples: int
    reached: int


def read_grid(file: Path) -> list[GridRun]:
    """Read a recorded grid."""
    with file.open() as rows:
        return [GridRun(int(row[0]), float(row[1]), *map(int, row[2:])) for row in list(csv.reader(rows))[1:]]


def rate_means(runs: Iterable[GridRun]) -> list[tuple[float, float]]:
    """Give (rate, mean examples) of one batch's rates that always reached the target, best first."""
    of: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        of[run.learning_rate].append(run.examples if run.reached else math.inf)
    means = sorted((float(np.mean(own)), rate) for rate, own in of.items())
    return [(rate, mean) for mean, rate in means if math.isfinite(mean)]


def grid_best(runs: Sequence[GridRun]) -> dict[int, tuple[float, float]]:
    """Give (rate, mean examples) of each batch's best rate, where one always reached the target."""
    of = {b: rate_means(run for run in runs if run.global_batch == b) for b in {r.global_batch for r in runs}}
    return {batch: of[batch][0] for batch in sorted(of) if of[batch]}


class Bench:
    """Trains one workload, in this process."""

    def __init__(self, name: str) -> None:
        self.grid = GRIDS[name]
        self.workload: Workload = load_workload(name)
        self._runtime = LocalRuntime(Cluster(name="here", workers=(1, 1), kind="cpu"), self.workload)
        with tempfile.TemporaryDirectory() as folder:
            self._sizes = ask_sizes(Evidence(self._runtime, RunFolder(Path(folder)), None))
        self.batches = candidates(
            self._sizes.train_examples, self.workload.reference.global_batch, smallest=1
        )

    @functools.cache  # noqa: B019
    def run(self, batch: int, rate: float, seed: int, limit: int) -> ConvergenceRecord:
        request = ConvergenceRequest(
            plan=BatchPlan.equal(batch, 1, 1),
            learning_rate=rate,
            warmup_examples=self.workload.reference.warmup_examples,
            max_examples=limit,
            seed=seed,
        )
        (outcome,) = self._runtime.run([Task(probe_convergence, request)])
        assert isinstance(outcome.record, ConvergenceRecord), outcome.failure
        return outcome.record

    def mean(self, batch: int, rate: float, seeds: Iterable[int], limit: float) -> float:
        """Mean examples to target; a run that misses it counts as the limit."""
        runs = [self.run(batch, rate, seed, math.ceil(limit)) for seed in seeds]
        return float(np.mean([run.examples if run.reached else math.ceil(limit) for run in runs]))

    def add_seeds(self, file: Path) -> None:
        """Run further seeds of each recorded batch's best rates, where they are not there yet."""
        known = read_grid(file)
        seeds = {(run.global_batch, run.learning_rate, run.seed) for run in known}
        for batch in dict.fromkeys(run.global_batch for run in known):
            own = [run for run in known if run.global_batch == batch and run.seed in GRID_SEEDS]
            for rate, mean in rate_means(own)[:BEST_RATES]:
                for seed in (seed for seed in BEST_SEEDS if (batch, rate, seed) not in seeds):
                    limit = math.ceil(min(FAR * mean, self._limit))
                    run = self.run(batch, rate, seed, limit)
                    with file.open("a") as out:
                        print(batch, rate, seed, run.examples, int(run.reached), sep=",", file=out)
            print(f"batch {batch}: seeds of the best rates", file=sys.stderr)

    def record_grid(self, file: Path) -> None:
        """Run the grid, from the likeliest rate of each batch outwards; a batch that is recorded stays."""
        known = {run.global_batch for run in read_grid(file)} if file.exists() else set()
        reference = self.workload.reference
        for batch in (batch for batch in self.batches if batch not in known):
            least, rows = self._limit, []
            middle = reference.learning_rate * math.sqrt(batch / reference.global_batch)
            for rate in sorted(self.grid.rates, key=lambda rate: abs(math.log(rate / middle))):
                limit = math.ceil(min(FAR * least, self._limit))
                runs: list[ConvergenceRecord] = []
                for seed in GRID_SEEDS:
                    runs.append(self.run(batch, rate, seed, limit))
                    if len(runs) == 2 and not any(run.reached for run in runs):
                        break
                if all(run.reached for run in runs):
                    least = min(least, float(np.mean([run.examples for run in runs])))
                rows += [GridRun(batch, rate, run.seed, run.examples, int(run.reached)) for run in runs]
            with file.open("a") as out:
                if not out.tell():
                    print(",".join(GridRun._fields), file=out)
                for row in sorted(rows):
                    print(*row, sep=",", file=out)
            print(f"batch {batch}: {len(rows)} runs, {least:,.0f} examples", file=sys.stderr)

    def search(self, number: int) -> Search:
        """Search once, with seeds of its own."""
        overhead = self.grid.overhead_examples

        def step_time(batch: int) -> float:
            return overhead + batch

        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            evidence = Evidence(_Shifted(self._runtime, 10_000 * number), run, None)
            plans = {batch: BatchPlan.equal(batch, 1, 1) for batch in self.batches}
            search_learning_rates(evidence, self.workload, 3, self._sizes, plans, GivenTimes(step_time))
            trials = [r for r in run.records() if isinstance(r, ConvergenceRecord)]
        fit = fit_convergence(trials, optimizer_of([self._sizes]))
        assert fit is not None
        examples = {batch: fit.examples(batch).value for batch in fit.runs}
        batch = min(examples, key=lambda b: examples[b] / b * step_time(b))
        rates = {b: fit.learning_rate(b) for b in self.batches}
        spent = sum(r.trained_examples for r in trials)
        return Search(rates, batch, examples[batch], spent, len(trials))

    @property
    def _limit(self) -> float:
        return float(trial_limit(self.workload, self._sizes))


class _Shifted:
    """A runtime that gives every trial other seeds, so that searches differ; questions keep their names."""

    workers = 1

    def __init__(self, runtime: LocalRuntime, shift: int) -> None:
        self._runtime, self._shift = runtime, shift

    def run(self, tasks):  # type: ignore[no-untyped-def]
        for task in tasks:
            request = _replaced(task.request, self._shift)
            for outcome in self._runtime.run([Task(task.probe, request, task.workers)]):
                record = outcome.record.model_copy(update={"task": task.key, "seed": task.request.seed})
                yield type(outcome)(task, record)


def _replaced(request, shift: int):  # type: ignore[no-untyped-def]
    return replace(request, seed=request.seed + shift)


def grid_file(name: str) -> Path:
    return Path(__file__).parent.parent / "tests" / "recorded" / "grids" / f"{name}.csv"


def measure(name: str = "digits", searches: int = 3) -> list[Figure]:
    bench = Bench(name)
    found = [bench.search(number) for number in range(searches)]
    extra: list[list[float]] = [[] for _ in found]
    for batch, (rate, examples) in grid_best(read_grid(grid_file(name))).items():
        limit = FAR * examples
        usual = bench.mean(batch, rate, FRESH_SEEDS, limit)
        for costs, search in zip(extra, found, strict=True):
            ours = search.rates[batch]
            costs.append(bench.mean(batch, round_rate(ours), FRESH_SEEDS, limit) / usual - 1)
            print(
                f"batch {batch}: grid {rate:g}, {usual:,.0f} examples; fitted {ours:.4g}, {costs[-1]:+.1%}",
                file=sys.stderr,
            )
    medians, worst = [float(np.median(costs)) for costs in extra], [max(costs) for costs in extra]
    ratios = [search.spent / search.examples for search in found]
    what = f"{name}: {len(extra[0])} batches x {len(bench.grid.rates)} rates x {len(GRID_SEEDS)} seeds"
    return [
        Figure(
            f"{name}: examples at the fitted best rate, over the grid's best",
            "at most 5% more in the median over batches, at most 15% at the worst",
            f"median {_list(medians)}; worst {_list(worst)}",
            f"{what}; {len(FRESH_SEEDS)} fresh seeds each; {searches} searches",
        ),
        Figure(
            f"{name}: examples of the whole search, over one run at the chosen batch",
            "at most 12 x",
            "; ".join(
                f"{ratio:.1f} x ({search.trials} trials, batch {search.batch})"
                for ratio, search in zip(ratios, found, strict=True)
            ),
            "trials that were stopped included; same searches",
        ),
    ]


def _list(shares: list[float]) -> str:
    return ", ".join(f"{share:+.1%}" for share in shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", nargs="?", default="digits", choices=GRIDS)
    parser.add_argument("--searches", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="run the grid, where it is not recorded yet")
    options = parser.parse_args()
    if options.record:
        bench, file = Bench(options.workload), grid_file(options.workload)
        bench.record_grid(file)
        bench.add_seeds(file)
        return
    print(table(measure(options.workload, options.searches)))


if __name__ == "__main__":
    main()
