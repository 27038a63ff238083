"""A workload's recorded grid as a stand-in for training: a trial is a draw, and its true mean is known.

Logarithms of examples to target are smoothed by parabolas over neighbouring rates, so that the best rate is not
the luckiest of noisy ones, and lie on straight lines in log rate between them. A draw adds what a seed of the
rate below or above had of its own, the likelier the nearer it is. Rates below the best that did not always
arrive were too slow for the grid's limit: they go on in proportion. Above it a miss is a miss; how often is
interpolated, steeply halfway between two rates. A run that the grid shows ended far before its limit diverged.
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
_NEAR = 1.0  # log rate over which the parabolas look
_EARLY = 0.5  # share of the limit before which a run that missed had diverged
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
        self.share = np.array([len(r) / (len(r) + len(m)) for r, m in zip(reached, self.missed, strict=True)])
        self.limit = max((examples for of in self.missed for examples in of), default=0)
        whole = np.flatnonzero(self.share == 1)
        self.share[: whole[0]] = 1.0
        raw = np.array([of.mean() if len(of) else np.nan for of in reached])
        self.log_mean = _filled(_smoothed(raw, self.log_rates, whole), self.log_rates, int(whole[0]))
        nearest = [whole[np.abs(whole - i).argmin()] for i in range(len(raw))]
        # As wide as the seeds spread: their own mean is taken off.
        self.luck = [
            (reached[i] - raw[i]) * math.sqrt(len(reached[i]) / (len(reached[i]) - 1)) for i in nearest
        ]

    def place(self, rate: float) -> tuple[int, float]:
        """Give the rate below, and the way to the next from it (beyond the ends under 0, over 1)."""
        x = math.log(rate)
        i = int(np.clip(np.searchsorted(self.log_rates, x, "right") - 1, 0, len(self.log_rates) - 2))
        return i, float((x - self.log_rates[i]) / (self.log_rates[i + 1] - self.log_rates[i]))

    def arrives(self, rate: float) -> float:
        """Give the probability that a run reaches the target."""
        i, way = self.place(rate)
        steep = min(1.0, max(0.0, 3 * (way - 0.5) + 0.5))
        return float((1 - steep) * self.share[i] + steep * self.share[i + 1])

    def log_examples(self, rate: float) -> float:
        i, way = self.place(rate)
        return float(self.log_mean[i] + way * (self.log_mean[i + 1] - self.log_mean[i]))

    def mean(self, rate: float, lost: float) -> float:
        """Mean examples; a run that misses the target counts as `lost`."""
        i, way = self.place(rate)
        luck = np.interp(way, [0, 1], [np.exp(self.luck[near]).mean() for near in (i, i + 1)])
        usual, arrives = min(lost, math.exp(self.log_examples(rate)) * float(luck)), self.arrives(rate)
        return usual if arrives == 1 else arrives * usual + (1 - arrives) * lost


def _smoothed(raw: Floats, log_rates: Floats, whole: Sequence[int]) -> Floats:
    """Fit a parabola around each of the rates that always arrived, near rates counting more."""
    found, degree = raw.copy(), min(2, len(whole) - 1)
    for i in whole:
        away = log_rates[whole] - log_rates[i]
        weights = np.exp(-0.25 * (away / _NEAR) ** 2)  # polyfit squares them
        found[i] = np.polyfit(away, raw[whole], degree, w=weights)[-1]
    return found


def _filled(log_mean: Floats, log_rates: Floats, first: int) -> Floats:
    """Go on below the first rate that always arrived in proportion, above the last that ever did level."""
    log_mean[:first] = log_mean[first] + log_rates[first] - log_rates[:first]
    last = np.flatnonzero(~np.isnan(log_mean))[-1]
    log_mean[last + 1 :] = log_mean[last]
    return log_mean


class Surrogate:
    """Draws trials from a recorded grid."""

    def __init__(self, grid_file: Path) -> None:
        rows: dict[int, list[GridRun]] = defaultdict(list)
        for run in read_grid(grid_file):
            rows[run.global_batch].append(run)
        self._of = {batch: _Batch(own) for batch, own in sorted(rows.items())}
        self.batches = list(self._of)
        self._best = {batch: _best(of) for batch, of in self._of.items()}

    def draw(self, batch: int, rate: float, max_examples: float, rng: Random) -> tuple[int, bool]:
        """Train once: examples, and whether the target was reached. A miss before `max_examples` diverged."""
        of, most = self._of[batch], batch * math.ceil(max_examples / batch)
        i, way = of.place(rate)
        near = i + (rng.random() < way)
        if rng.random() >= of.arrives(rate):
            missed = rng.choice(of.missed[near] or of.missed[i + 1])
            return (min(most, missed) if missed < _EARLY * of.limit else most), False
        log_examples = of.log_examples(rate) + rng.choice(of.luck[near])
        examples = batch * max(1, round(math.exp(log_examples) / batch))
        return min(examples, most), examples <= most

    def mean(self, batch: int, rate: float) -> float:
        """Mean examples to target; a run that misses it counts as four times the best rate's."""
        return self._of[batch].mean(rate, FAR * self._best[batch][1])

    def best(self, batch: int) -> tuple[float, float]:
        """Best rate of a batch, and its mean examples to target."""
        return self._best[batch]


def _best(of: _Batch) -> tuple[float, float]:
    low, high = of.log_rates[[0, -1]]
    rates = np.exp(np.linspace(low, high, 1 + round(_FINE * (high - low) / math.log(2)))).tolist()
    means = {rate: of.mean(rate, math.inf) for rate in rates if of.arrives(rate) == 1}
    rate = min(means, key=lambda rate: means[rate])
    return rate, means[rate]


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
        asked = task.request
        batch, limit = asked.plan.global_batch, asked.max_examples
        examples, reached = self._surrogate.draw(batch, asked.learning_rate, limit, self._rng)
        own = {name: getattr(asked, name) for name in ("plan", "learning_rate", "warmup_examples", "seed")}
        own["stop"] = "reached" if reached else "limit" if examples >= limit else "diverged"
        own |= {"task": task.key, "examples": examples, "steps": examples // batch, "curve": ()}
        return self._record.model_copy(update=own)
