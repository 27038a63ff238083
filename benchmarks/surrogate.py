"""A workload's recorded grid as a stand-in for training: a trial is a draw, and its true mean is known.

Logarithms of examples to target are smoothed by parabolas over neighbouring rates, so that the best rate is
not the luckiest of noisy ones, and lie on straight lines in log rate between them. A draw adds what a seed of
the rate below or above had of its own, the likelier the nearer it is. Rates below the best that did not
always arrive were too slow for the grid's limit: they go on in proportion. Above it a miss is a miss; how
often is interpolated, steeply halfway between two rates. A run ended before half the limit had diverged.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from learning_rate import FAR, GridRun, read_grid

from scaler.records import ConvergenceRecord, WorkloadRecord
from scaler.runs import RunFolder
from scaler.runtime.protocol import Task
from scaler.stats import Floats
from scaler.workload import Workload

_FINE = 8  # rates looked at for each doubling
_RECORDED = Path(__file__).parent.parent / "tests" / "recorded" / "digits-mock-2"


class _Batch:
    """What the grid says of one batch: arrays [rates]."""

    def __init__(self, runs: Sequence[GridRun]) -> None:
        own: dict[float, list[GridRun]] = defaultdict(list)
        for run in sorted(runs, key=lambda run: run.learning_rate):
            own[run.learning_rate].append(run)
        self.log_rates = np.log(list(own))
        reached = [np.log([run.examples for run in of if run.reached]) for of in own.values()]
        self.missed = [[run.examples for run in of if not run.reached] for of in own.values()]
        self.limit = max((examples for of in self.missed for examples in of), default=0)
        self.share = np.array([len(r) / (len(r) + len(m)) for r, m in zip(reached, self.missed, strict=True)])
        whole = np.flatnonzero(self.share == 1)
        self.share[: whole[0]] = 1.0
        raw = np.array([of.mean() if len(of) else np.nan for of in reached])
        seeds = np.array([len(of) for of in reached])
        self.log_mean = _smoothed(raw, seeds, self.log_rates, whole)
        self.luck = []
        for i in range(len(raw)):
            logs = reached[whole[np.abs(whole - i).argmin()]]
            # Around their own mean, a few seeds spread less than they do around the true one.
            self.luck.append((logs - logs.mean()) * math.sqrt(len(logs) / (len(logs) - 1)))

    def place(self, rate: float) -> tuple[int, float]:
        """Give the rate below, and the way to the next from it (beyond the ends under 0, over 1)."""
        x = math.log(rate)
        i = int(np.clip(np.searchsorted(self.log_rates, x, "right") - 1, 0, len(self.log_rates) - 2))
        return i, float((x - self.log_rates[i]) / (self.log_rates[i + 1] - self.log_rates[i]))

    def at(self, rate: float) -> tuple[float, float]:
        """Give the probability that a run reaches the target, and the mean logarithm of its examples."""
        i, way = self.place(rate)
        arrives = np.interp(way, [1 / 3, 2 / 3], self.share[i : i + 2])
        return float(arrives), float(self.log_mean[i] + way * (self.log_mean[i + 1] - self.log_mean[i]))

    def mean(self, rate: float, lost: float) -> float:
        """Mean examples; a run that misses the target counts as `lost`."""
        (i, way), (arrives, log_mean) = self.place(rate), self.at(rate)
        luck = np.interp(way, [0, 1], [np.exp(self.luck[near]).mean() for near in (i, i + 1)])
        usual = min(lost, math.exp(log_mean) * float(luck))
        return usual if arrives == 1 else arrives * usual + (1 - arrives) * lost

    def best(self) -> tuple[float, float]:
        """Give the best of the rates that always arrive, and its mean."""
        rates = np.exp(np.arange(self.log_rates[0], self.log_rates[-1] + 1e-9, math.log(2) / _FINE)).tolist()
        mean, rate = min((self.mean(rate, math.inf), rate) for rate in rates if self.at(rate)[0] == 1)
        return rate, mean


def _smoothed(raw: Floats, seeds: Floats, log_rates: Floats, whole: Sequence[int]) -> Floats:
    """Fit a parabola around each rate that always arrived; below go on in proportion, above level.

    A rate counts by its nearness and its seeds.
    """
    found, degree = raw.copy(), min(2, len(whole) - 1)
    for i in whole:
        away = log_rates[whole] - log_rates[i]
        weights = np.exp(-0.25 * away**2) * np.sqrt(seeds[whole])
        found[i] = np.polyfit(away, raw[whole], degree, w=weights)[-1]
    first, last = whole[0], np.flatnonzero(~np.isnan(found))[-1]
    found[:first] = found[first] + log_rates[first] - log_rates[:first]
    found[last + 1 :] = found[last]
    return found


class Surrogate:
    """Draws trials from a recorded grid."""

    def __init__(self, grid_file: Path) -> None:
        rows: dict[int, list[GridRun]] = defaultdict(list)
        for run in read_grid(grid_file):
            rows[run.global_batch].append(run)
        self._of = {batch: _Batch(own) for batch, own in sorted(rows.items())}
        self._best = {batch: of.best() for batch, of in self._of.items()}
        self.batches = list(self._of)

    def draw(self, batch: int, rate: float, max_examples: float, rng: Random) -> tuple[int, bool]:
        """Train once: examples, and whether the target was reached. A miss before `max_examples` diverged."""
        of, most = self._of[batch], batch * math.ceil(max_examples / batch)
        (i, way), (arrives, log_mean) = of.place(rate), of.at(rate)
        near = i + (rng.random() < way)
        if rng.random() >= arrives:
            missed = rng.choice(of.missed[near] or of.missed[i + 1])
            return (min(most, missed) if missed < of.limit / 2 else most), False
        examples = batch * max(1, round(math.exp(log_mean + rng.choice(of.luck[near])) / batch))
        return min(examples, most), examples <= most

    def mean(self, batch: int, rate: float) -> float:
        """Mean examples to target; a run that misses it counts as four times the best rate's."""
        return self._of[batch].mean(rate, FAR * self._best[batch][1])

    def best(self, batch: int) -> tuple[float, float]:
        """Best rate of a batch, and its mean examples to target."""
        return self._best[batch]


class SurrogateEvidence:
    """Answers the trials of a search from a surrogate, with luck of its own, and keeps them."""

    workers = 1

    def __init__(self, surrogate: Surrogate, seed: int) -> None:
        self.records: list[ConvergenceRecord] = []
        self._surrogate, self._rng = surrogate, Random(seed)
        known = RunFolder(_RECORDED).records()
        self._record = next(r for r in known if isinstance(r, ConvergenceRecord))
        self._sizes = next(r for r in known if isinstance(r, WorkloadRecord))

    def ask(self, _phase: str, tasks: Sequence[Task], _expected: int = 0) -> list[ConvergenceRecord]:
        found = [self._answer(task) for task in tasks]
        self.records += found
        return found

    def sizes(self, workload: Workload) -> WorkloadRecord:
        """Say what a search asks of a workload: how much data, and which optimizer."""
        optimizer = workload.optimizer([torch.nn.Parameter(torch.zeros(1))], workload.reference.learning_rate)
        own = {"optimizer": type(optimizer).__name__, "betas": tuple(optimizer.defaults.get("betas", ()))}
        return self._sizes.model_copy(update={**own, "train_examples": self._surrogate.batches[-1]})

    def _answer(self, task: Task) -> ConvergenceRecord:
        asked, batch, limit = task.request, task.request.plan.global_batch, task.request.max_examples
        examples, reached = self._surrogate.draw(batch, asked.learning_rate, limit, self._rng)
        own = {name: getattr(asked, name) for name in ("plan", "learning_rate", "warmup_examples", "seed")}
        own["stop"] = "reached" if reached else "limit" if examples >= limit else "diverged"
        own |= {"task": task.key, "examples": examples, "steps": examples // batch, "curve": ()}
        return self._record.model_copy(update=own)
