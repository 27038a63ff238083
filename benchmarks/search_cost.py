"""What a search for the global batch and its learning rate costs, beside Optuna's TPE and a sweep.

    pip install 'optuna==5.*'
    python benchmarks/search_cost.py [digits | mnist | chars ...] [--repeats N]

Trials are draws from a surrogate of the recorded grid (`surrogate.py`). A step lasts as long as its examples
and an overhead; the least time to target is sought. A cost is all examples trained, over the mean examples
of one run at the configuration that was chosen with them. Regret is the true mean time of that choice over
the best possible, less 1. Every repeat has seeds of its own.

scaler: the search and the choice of `scaler tune`, as in `decision.py`. It ends by itself.
Optuna: TPE with its defaults over the grid's batches (by index) and rates (log-uniform over the grid's span,
    which scaler is not told), the reference's configuration first; 200 trials. A trial's value is the time of
    one run, and its choice is the best trial so far. Its cost is given when its regret first is at most
    scaler's mean over the repeats, and from when on it remains so; no user knows either moment. And its
    regret once it has trained as many examples as scaler, finishing the run under way.
sweep: what surrounds DeepSpeed's autotuner, which knows no convergence: every batch from the smallest on,
    once at the reference's rate scaled by the square root and once linearly; the fastest run is chosen.

A run ends at the workload's own limit, for Optuna also at 4 x the best time so far, and a miss counts as
that. To the others' advantage a run is only paid for until 1.25 x the best time so far, although Optuna is
told its whole time. The sweep's cost without this is in brackets.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from decision import search
from figure import Figure, table
from learning_rate import FAR, GRIDS, grid_file, read_grid
from surrogate import Surrogate

from scaler.workload import Workload, load_workload

OPTUNA = importlib.util.find_spec("optuna") is not None
GOAL = "at most 12 x, and less than the others"
REPEATS, TRIALS = 20, 200
STOPPED = 1.25  # times the best time so far
FEWEST_BATCHES = 4


class Truth(Surrogate):
    """A surrogate that knows the times of a workload's runs, and counts what is drawn from it."""

    def __init__(self, name: str) -> None:
        super().__init__(grid_file(name))
        self.overhead, self.spent = GRIDS[name].overhead_examples, 0
        self.per_example = {batch: self.overhead / batch + 1 for batch in self.batches}
        self._least = min(self.best(batch)[1] * time for batch, time in self.per_example.items())

    def draw(self, batch: int, rate: float, max_examples: float, rng: Random) -> tuple[int, bool]:
        examples, reached = super().draw(batch, rate, max_examples, rng)
        self.spent += examples
        return examples, reached

    def found(self, batch: int, rate: float, spent: float) -> "Found":
        mean = self.mean(batch, rate)
        return Found(spent, spent / mean, mean * self.per_example[batch] / self._least - 1)


@dataclass(frozen=True)
class Found:
    spent: float
    cost: float
    """In runs at the choice."""
    regret: float


def scaler(name: str, truth: Truth, seed: int) -> Found:
    truth.spent = 0
    batch, rate, *_ = search(name, truth, truth.overhead, seed)
    return truth.found(batch, rate, truth.spent)


@dataclass
class Runs:
    """One run after the other; the fastest is the choice."""

    truth: Truth
    limit: float
    """Examples."""
    random: Random
    best: float = math.inf
    choice: tuple[int, float] | None = None
    paid: int = 0
    """Examples, of runs that are stopped when they have taken too long."""
    whole: int = 0
    history: list[Found] = field(default_factory=list)

    def run(self, batch: int, rate: float, limit: float) -> float:
        """Train once: the time to target, or a miss's limit."""
        per_example = self.truth.per_example[batch]
        limit = min(self.limit, limit / per_example)
        examples, reached = self.truth.draw(batch, rate, limit, self.random)
        stop = min(self.limit, STOPPED * self.best / per_example)
        self.whole += examples
        self.paid += min(examples, batch * math.ceil(stop / batch))
        time = (examples if reached else limit) * per_example
        if reached and time < self.best:
            self.best, self.choice = time, (batch, rate)
        none = Found(self.paid, math.inf, math.inf)
        self.history.append(self.truth.found(*self.choice, self.paid) if self.choice else none)
        return time


def optuna_runs(name: str, workload: Workload, truth: Truth, limit: float, seed: int) -> list[Found]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    reference, rates = workload.reference, GRIDS[name].rates
    first = truth.batches.index(reference.global_batch)
    study.enqueue_trial({"batch": first, "rate": reference.learning_rate})
    runs = Runs(truth, limit, Random(seed))
    for _ in range(TRIALS):
        trial = study.ask()
        batch = truth.batches[trial.suggest_int("batch", 0, len(truth.batches) - 1)]
        rate = trial.suggest_float("rate", min(rates), max(rates), log=True)
        study.tell(trial, runs.run(batch, rate, FAR * runs.best))
    return runs.history


def sweep(workload: Workload, truth: Truth, limit: float, seed: int) -> tuple[Found, float]:
    """Give what it found, and its cost if no run is stopped."""
    reference, runs = workload.reference, Runs(truth, limit, Random(seed))
    for batch in truth.batches:
        scale = batch / reference.global_batch
        for factor in dict.fromkeys((math.sqrt(scale), scale)):
            runs.run(batch, reference.learning_rate * factor, math.inf)
    found = runs.history[-1]
    return found, found.cost * runs.whole / runs.paid


def against(ours: Sequence[Found], studies: Sequence[Sequence[Found]]) -> str:
    """Say what the studies cost to our mean regret, and what they had reached when ours ended."""
    target = float(np.mean([found.regret for found in ours]))
    first, remains, equal = [], [], []
    for own, study in zip(ours, studies, strict=True):
        far = [found.regret > target for found in study]
        first.append(next((found.cost for found, f in zip(study, far, strict=True) if not f), math.inf))
        last = max((i for i, f in enumerate(far) if f), default=-1)
        remains.append(study[last + 1].cost if last + 1 < len(study) else math.inf)
        equal.append(next((f.regret for f in study if f.spent >= own.spent), study[-1].regret))
    return (
        f"Optuna to this mean: first {_cost(first)}, to remain {_cost(remains)}; "
        f"at scaler's examples regret {_regret(equal)}"
    )


def _cost(costs: Sequence[float]) -> str:
    """Median (p90); and how often it came to an end, if not always."""
    within = sum(map(math.isfinite, costs))
    ends = (np.median(costs), np.quantile(costs, 0.9, method="higher"))
    shown = [f"{cost:.1f} x" if math.isfinite(cost) else f"not within {TRIALS} trials" for cost in ends]
    return f"{shown[0]} (p90 {shown[1]}{f'; {within} of {len(costs)}' if within < len(costs) else ''})"


def _regret(regrets: Sequence[float]) -> str:
    return f"median {np.median(regrets):z.1%}, mean {np.mean(regrets):z.1%}"


def compare(name: str, repeats: int) -> Figure:
    workload, truth, seeds = load_workload(name), Truth(name), range(repeats)
    limit = float(workload.target.max_examples or math.inf)
    ours = [scaler(name, truth, seed) for seed in seeds]
    told = [f"scaler {_cost([f.cost for f in ours])}, regret {_regret([f.regret for f in ours])}"]
    if OPTUNA:
        told.append(against(ours, [optuna_runs(name, workload, truth, limit, seed) for seed in seeds]))
    swept, whole = zip(*(sweep(workload, truth, limit, seed) for seed in seeds), strict=True)
    told.append(f"sweep {_cost([f.cost for f in swept])} [{np.median(whole):.1f} x]")
    told[-1] += f", regret {_regret([f.regret for f in swept])}"
    what = f"{name}: examples of a search for batch and learning rate, over one run at its choice"
    return Figure(what, GOAL, "; ".join(told), f"{repeats} repeats on a surrogate of the recorded grid")


def measure(names: Sequence[str] = tuple(GRIDS), repeats: int = REPEATS) -> list[Figure]:
    if not OPTUNA:
        print("skipped Optuna: optuna is not installed", file=sys.stderr)
    files = {name: grid_file(name) for name in names}
    grids = {name: read_grid(file) for name, file in files.items() if file.exists()}
    batches = {name: len({run.global_batch for run in grid}) for name, grid in grids.items()}
    return [compare(name, repeats) for name, count in batches.items() if count >= FEWEST_BATCHES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=list(GRIDS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    print(table(measure(options.workloads, options.repeats)))


if __name__ == "__main__":
    main()
