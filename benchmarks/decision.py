"""Decisions scored against what is known exhaustively: what the chosen batch costs over the best one.

    SCALER_DATA=DIR python benchmarks/decision.py [t4 | zeus | digits | mnist ...] [--decisions N]

Regret is the true time to target of the choice over that of the best choice, less 1. A decision sees a few of
the measurements; the truth is made of those that it did not see.

t4: step times on T4 GPUs (Pollux, OSDI'21 artifact). The cluster is a placement of 5 to 16 GPUs that was not
    timed, and offers every global batch with a measured step time there. Known are step times on up to four
    GPUs: five placements, three micro-batches each. `validated`: global batches of which a training run to the
    target was recorded (99% of the best metric that every run reaches); one of them at a time is not known.
    `all batches`: examples by the gradient noise recorded along the run of the nearest batches, until the
    reference's last epoch; known are four batches, evenly apart. That is the law of Pollux's own model, which
    sees here the mean noise of the reference's run, and fits its step times to the same rows as ours.
zeus: epochs to target, several runs of every batch (one V100). Known are two runs and the time of an epoch at
    four batches evenly apart; all batches can be chosen. The truth is the mean over the other runs. To each
    of the three hardest targets that six batches always reach at least, with ten draws of the known runs.
digits, mnist: the search of `scaler tune` on a surrogate of the recorded grid (`surrogate.py`), a step being as
    long as its examples and an overhead, and then the choice among the batches that it reached and those
    between. Intervals of examples to target at the choice are held against ten fresh draws each.
"""

import argparse
import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from coverage import coverage
from figure import Figure, table
from learning_rate import GRIDS, grid_file
from step_time import APPS, pollux
from surrogate import Surrogate, SurrogateEvidence

from scaler.batch import BatchPlan
from scaler.fit.convergence import fit_convergence
from scaler.fit.optimizer import optimizer_of
from scaler.fit.step_model import StepShape
from scaler.fit.step_posterior import Rows
from scaler.fit.step_time import fit_step_rows
from scaler.fit.steps import BatchRuns, fit_batch_runs
from scaler.measure.learning_rates import search_learning_rates
from scaler.stats import Floats
from scaler.workload import load_workload

GOAL = "median at most 3%, mean at most 5%, worst at most 25%"
TIMED = ("1", "2", "4", "11", "22")
CLOSE = 0.99
DRAWS, SEEN, EASIEST, FEWEST = 10, 2, 3, 6  # zeus: of known runs; runs a batch; targets; batches a target
FRESH = 10

Regrets = dict[str, list[float]]
"""By way of choosing."""


def note(found: Regrets, truth: Mapping[int, float], chosen: Mapping[str, int]) -> None:
    best = min(truth.values())
    for name, batch in chosen.items():
        found[name].append(truth[batch] / best - 1)


def figure(what: str, found: Regrets, method: str) -> Figure:
    def words(name: str, regrets: list[float]) -> str:
        text = f"mean {np.mean(regrets):.1%}, worst {max(regrets):.1%}"
        return f"{f'median {np.median(regrets):.1%}, ' if name == 'ours' else name + ': '}{text}"

    n = len(found["ours"])
    return Figure(f"regret, {what}", GOAL, "; ".join(words(*i) for i in found.items()), f"{n:,} {method}")


def spread(batches: Sequence[int], number: int) -> list[int]:
    """Take so many of them, evenly apart."""
    places = np.linspace(0, len(batches) - 1, number).round().astype(int)
    return [batches[i] for i in dict.fromkeys(places.tolist())]


@dataclass(frozen=True)
class Traces:
    """One application on T4 GPUs."""

    step_s: Mapping[str, Mapping[int, float]]
    """By placement and micro-batch."""
    sync_s: Mapping[str, Mapping[int, float]]
    runs: Mapping[int, Mapping[str, Floats]]
    """Columns of the training run at each global batch, a value an epoch."""

    @classmethod
    def load(cls, folder: Path) -> "Traces":
        step: dict[str, dict[int, float]] = defaultdict(dict)
        sync: dict[str, dict[int, float]] = defaultdict(dict)
        for row in read(folder / "placements.csv"):
            step[row["placement"]][int(row["local_bsz"])] = float(row["step_time"])
            sync[row["placement"]][int(row["local_bsz"])] = float(row["sync_time"])
        runs = {}
        for path in folder.glob("validation-*.csv"):
            rows = read(path)
            runs[int(path.stem.split("-")[1])] = {n: np.array([float(r[n]) for r in rows]) for n in rows[0]}
        return cls(step, sync, dict(sorted(runs.items())))

    @property
    def asked(self) -> list[str]:
        return [placement for placement in self.step_s if workers(placement) > 4]

    def known(self) -> Rows:
        cells = [(p, m) for p in TIMED for m in spread(sorted(self.step_s[p]), 3)]
        return Rows(
            shapes=tuple(shape(p, m) for p, m in cells),
            step_time_s=np.array([self.step_s[p][m] for p, m in cells]),
            sync_time_s=np.array([self.sync_s[p][m] for p, m in cells]),
        )

    def measured_s(self, placement: str, batch: int) -> float:
        """Give the measured step time; between two micro-batches on the line of logarithms."""
        of = self.step_s[placement]
        sizes = np.log(sorted(of))
        logs = np.log([of[size] for size in sorted(of)])
        return float(np.exp(np.interp(np.log(batch / workers(placement)), sizes, logs)))

    def trained(self) -> dict[int, float]:
        """Examples to the target at the batches that were trained."""
        level = CLOSE * min(run["metric"].max() for run in self.runs.values())
        return {b: b * run["iteration"][np.argmax(run["metric"] >= level)] for b, run in self.runs.items()}

    def examples(self, batch: float) -> float:
        """Examples until the reference's last epoch, by the noise recorded at the nearest batches."""
        logs = [np.log(self._by_noise(run, batch).sum()) for run in self.runs.values()]
        return float(np.exp(np.interp(np.log(batch), np.log(list(self.runs)), logs)))

    def pollux_examples(self, batch: float) -> float:
        """The same, by the mean noise of the reference's run."""
        run = self.runs[min(self.runs)]
        mean = run | {name: run[name].mean() for name in ("grad_var", "grad_sqr")}
        return float(self._by_noise(mean, batch).sum())

    def _by_noise(self, run: Mapping[str, Floats], batch: float) -> Floats:
        """Examples of every epoch: a step of `batch` makes AdaScale's gain of the reference's progress."""
        noise, signal, first = run["grad_var"], run["grad_sqr"], min(self.runs)
        steps = (noise * first / batch + signal) / (noise + signal)
        return np.asarray(batch * steps * np.diff(run["progress"], prepend=0))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def workers(placement: str) -> int:
    return sum(map(int, placement))


def shape(placement: str, micro_batch: int) -> StepShape:
    return StepShape(len(placement), workers(placement), micro_batch)


def t4(folder: Path) -> list[Figure]:
    few: Regrets = defaultdict(list)
    many: Regrets = defaultdict(list)
    for app in APPS:
        traces = Traces.load(folder / "pollux_t4" / app)
        few_batches(traces, few)
        all_batches(traces, many)
    method = f"decisions ({', '.join(APPS)}; placements of 5 to 16 T4 GPUs); step times known on up to 4 GPUs"
    return [
        figure("T4, batches that were trained", few, f"{method}, two of the three batches' runs"),
        figure("T4, all batches", many, f"{method}, examples at four batches; examples by recorded noise"),
    ]


Steps = dict[tuple[str, int], float]
"""Seconds of a step, by placement and global batch."""


def few_batches(traces: Traces, found: Regrets) -> None:
    examples = traces.trained()
    offered = {p: [b for b in examples if _spans(traces.step_s[p], b / workers(p))] for p in traces.asked}
    offered = {placement: batches for placement, batches in offered.items() if len(batches) > 1}
    step_s, _ = step_times(traces, offered)
    for left_out in examples:
        steps = fit_batch_runs([BatchRuns(b, (e,)) for b, e in examples.items() if b != left_out])
        predicted = {batch: steps.examples(batch).value for batch in examples}
        for p, batches in offered.items():
            truth = {b: examples[b] / b * traces.measured_s(p, b) for b in batches}
            note(found, truth, {"ours": fastest(p, batches, step_s, predicted), **ends(batches)})


def all_batches(traces: Traces, found: Regrets) -> None:
    first = min(traces.runs)
    offered = {
        p: [b for m in sorted(traces.step_s[p]) if (b := workers(p) * m) >= first] for p in traces.asked
    }
    batches = sorted({batch for of in offered.values() for batch in of})
    known = [BatchRuns(b, (traces.examples(b),)) for b in np.geomspace(first, batches[-1], 4).tolist()]
    predicted = fit_batch_runs(known).examples_at(batches, [1] * len(batches))
    ours = {b: e.value for b, e in zip(batches, predicted, strict=True)}
    theirs = {b: traces.pollux_examples(b) for b in batches}
    step_s, their_step_s = step_times(traces, offered)
    for p, of in offered.items():
        truth = {b: traces.examples(b) / b * traces.measured_s(p, b) for b in of}
        chosen = {
            "ours": fastest(p, of, step_s, ours),
            "Pollux's model": fastest(p, of, their_step_s, theirs),
        }
        note(found, truth, chosen | ends(of))


def _spans(sizes: Iterable[int], micro_batch: float) -> bool:
    return min(sizes) <= micro_batch <= 1.01 * max(sizes)


def step_times(traces: Traces, offered: Mapping[str, Sequence[int]]) -> tuple[Steps, Steps]:
    """Predict them by our model, and by Pollux's."""
    known = traces.known()
    keys = [(placement, batch) for placement, batches in offered.items() for batch in batches]
    shapes = [shape(placement, round(batch / workers(placement))) for placement, batch in keys]
    unique = list(dict.fromkeys(shapes))
    ours = dict(zip(unique, (e.value for e in fit_step_rows(known).predict_all(unique)), strict=True))
    theirs = dict(zip(unique, np.exp(pollux(known, unique)).tolist(), strict=True))
    return (
        {key: ours[of] for key, of in zip(keys, shapes, strict=True)},
        {key: theirs[of] for key, of in zip(keys, shapes, strict=True)},
    )


def fastest(placement: str, batches: Sequence[int], step_s: Steps, examples: Mapping[int, float]) -> int:
    return min(batches, key=lambda b: examples[b] / b * step_s[placement, b])


def ends(batches: Sequence[int]) -> dict[str, int]:
    return {"the largest": batches[-1], "the smallest": batches[0]}


@dataclass(frozen=True)
class Series:
    """Runs of one Zeus workload to one target."""

    epochs: Mapping[int, Sequence[float]]
    """By batch."""
    epoch_s: Mapping[int, float]

    def decide(self, random: Random, found: Regrets) -> None:
        """Draw what is known, choose, and note the regret on the other runs."""
        known = spread(sorted(self.epochs), 4)
        seen = {batch: random.sample(range(len(self.epochs[batch])), SEEN) for batch in known}
        runs = {batch: [self.epochs[batch][i] for i in of] for batch, of in seen.items()}
        truth = {
            batch: float(np.mean([e for i, e in enumerate(of) if i not in seen.get(batch, ())]))
            * self.epoch_s[batch]
            for batch, of in self.epochs.items()
        }
        rows = Rows(
            shapes=tuple(StepShape(1, 1, batch) for batch in known),
            step_time_s=np.array([self.epoch_s[b] * b for b in known]),  # in some unit
            sync_time_s=np.full(len(known), np.nan),
        )
        batches = sorted(self.epochs)
        examples = fit_batch_runs([BatchRuns(b, tuple(of)) for b, of in runs.items()]).examples_at(
            batches, [1] * len(batches)
        )
        steps = fit_step_rows(rows).predict_all([StepShape(1, 1, batch) for batch in batches])
        times = {b: e.value / b * s.value for b, e, s in zip(batches, examples, steps, strict=True)}
        tried = min(runs, key=lambda b: float(np.mean(runs[b])) * self.epoch_s[b])
        chosen = {"ours": min(times, key=times.__getitem__), "the best of those known": tried}
        note(found, truth, chosen | ends(batches))
