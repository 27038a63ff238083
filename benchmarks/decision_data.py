"""Public measurements that decisions are scored against: what is known of them, and the truth."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaler.fit.step_model import StepShape
from scaler.fit.step_posterior import Rows
from scaler.stats import Floats

TIMED = ("1", "2", "4", "11", "22")  # placements: GPUs on each node
CLOSE = 0.99  # to the best metric
TARGETS, FEWEST_BATCHES, FEWEST_RUNS = 3, 6, 3  # of Zeus: of a workload, of a target, of a batch
POWER = "250"  # watts


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
        """Examples to a share of the best metric that every run reaches, at the batches that were trained."""
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


Series = tuple[Mapping[int, Sequence[float]], Mapping[int, float]]
"""Epochs to one target of the runs of every batch; seconds of an epoch at it."""


def zeus_series(folder: Path) -> list[Series]:
    """To each workload's hardest targets that at least six batches, of known times, always reach."""
    epoch_s: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in read(folder / "epoch_time_v100.csv"):
        if row["power_limit"] == POWER:
            of = epoch_s[row["dataset"], row["optimizer"]]
            of[int(row["batch_size"])] = float(row["time_per_epoch"])
    ends: dict[tuple[str, str, float], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in read(folder / "runs.csv"):
        key = row["dataset"], row["optimizer"], float(row["target_metric"])
        if (batch := int(row["batch_size"])) in epoch_s[key[:2]]:
            ends[key][batch].append(row["target_epoch"])
    found: dict[str, list[Series]] = defaultdict(list)
    for (name, optimizer, _), of in sorted(ends.items(), reverse=True):
        whole = {
            b: [float(end) for end in own]
            for b, own in of.items()
            if not {"", "nan"} & {*own} and len(own) >= FEWEST_RUNS
        }
        if len(whole) >= FEWEST_BATCHES:
            found[name].append((whole, epoch_s[name, optimizer]))
    # Of error rates the lowest is the hardest.
    return [
        one
        for name, of in found.items()
        for one in (of[-TARGETS:] if name == "librispeech" else of[:TARGETS])
    ]
