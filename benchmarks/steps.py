"""Examples to target of batches that were not measured, on public workloads; beside ours, two simple curves.

    SCALER_DATA=DIR python benchmarks/steps.py

Series of MLPerf's reference convergence points, of a study of critical batches (three language models) and of
Zeus (three workloads, each to the three hardest targets that six batches reach at least). Of each series the
smallest batches are known and larger ones are asked: the largest alone, all that lie 1.5 x beyond the data or
farther, at every cut from three batches on, and the larger half. Errors are of the mean over seeds, averaged
within a workload, then over workloads. Priors are chosen from a small grid on the other workloads only.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from coverage import coverage
from figure import Figure, table
from scipy.optimize import least_squares

from scaler.fit.batch_curve import CurvePriors
from scaler.fit.steps import BatchRuns, fit_batch_runs
from scaler.stats import Estimate, Floats

SHARPNESS = (1.0, 1.5, 2.5, 4.0)
GRID: dict[str, Sequence[object]] = {
    "critical_deviation": (1.5, 2.0, 2.5, 3.0),
    "sharpness": tuple(
        tuple(zip(SHARPNESS, shares, strict=True))
        for shares in ((0.3, 0.35, 0.2, 0.15), (0.5, 0.25, 0.15, 0.1), (0.7, 0.15, 0.1, 0.05))
    ),
    "steepness": (((1.0, 1.0),), ((1.0, 0.8), (1.4, 0.2)), ((1.0, 0.6), (1.4, 0.4))),
    "own": (0.02, 0.03, 0.04, 0.06),
}
GOALS = {"largest": 0.06, "beyond": 0.09, "half": 0.15}
FEWEST = 3  # batches known

Predict = Callable[[Sequence[BatchRuns], Sequence[BatchRuns]], list[Estimate]]


@dataclass(frozen=True)
class Question:
    workload: str
    known: tuple[BatchRuns, ...]
    asked: tuple[BatchRuns, ...]
    kinds: tuple[str, ...]


def mlperf(folder: Path) -> dict[str, dict[float, list[float]]]:
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (folder / "mlperf_rcp" / "rcp.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[f"mlperf {row['benchmark']}"][float(row["BS"])] += map(float, row["epochs_list"].split())
    return found


def language_models(folder: Path) -> dict[str, dict[float, list[float]]]:
    found: dict[str, dict[float, list[float]]] = defaultdict(dict)
    with (folder / "critical_batch" / "steps_to_target.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            batch = float(row["batch_size_seqs"])
            found[f"language model {row['model']}"][batch] = [batch * float(row["steps_to_target_fit_cell"])]
    return found


def zeus(folder: Path) -> dict[str, list[dict[float, list[float]]]]:
    """Of each workload, series to three targets; of each batch the rate that needs the fewest epochs."""
    epochs: dict[str, dict[float, dict[tuple[float, str], list[str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    with (folder / "zeus" / "runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            of = epochs[f"zeus {row['dataset']}"][float(row["target_metric"])]
            of[float(row["batch_size"]), row["learning_rate"]].append(row["target_epoch"])
    found = {}
    for workload, by_target in epochs.items():
        series = []
        for _, of in sorted(by_target.items(), reverse="librispeech" in workload):  # errors, not accuracy
            best: dict[float, list[float]] = {}
            for (batch, _), ends in sorted(of.items()):
                counts = [float(end) for end in ends if end not in ("", "nan")]
                if len(counts) == len(ends) and (batch not in best or np.mean(counts) < np.mean(best[batch])):
                    best[batch] = counts
            if len(best) >= 2 * FEWEST:
                series.append(best)
        found[workload] = series[-3:]
    return found


def questions(folder: Path) -> list[Question]:
    series = [(name, of) for name, of in {**mlperf(folder), **language_models(folder)}.items()]
    series += [(name, of) for name, several in zeus(folder).items() for of in several]
    found = []
    for workload, of in series:
        runs = [BatchRuns(batch, tuple(of[batch])) for batch in sorted(of)]
        for cut in range(FEWEST, len(runs)):
            known, asked = tuple(runs[:cut]), tuple(runs[cut:])
            kinds = ["largest"] if cut == len(runs) - 1 else []
            kinds += ["half"] if cut == (len(runs) + 1) // 2 else []
            found.append(Question(workload, known, asked, tuple(kinds)))
    return found


def ours(known: Sequence[BatchRuns], asked: Sequence[BatchRuns], priors: CurvePriors) -> list[Estimate]:
    fit = fit_batch_runs(known, priors)
    return fit.examples_at([run.global_batch for run in asked], [len(run.reached) for run in asked])


def _points(runs: Sequence[BatchRuns]) -> tuple[Floats, Floats]:
    return np.array([r.global_batch for r in runs]), np.array([np.mean(r.reached) for r in runs])


def _plain(values: Floats) -> list[Estimate]:
    return [Estimate(value=float(v), samples=0, method="") for v in values]


def hyperbola(known: Sequence[BatchRuns], asked: Sequence[BatchRuns]) -> list[Estimate]:
    """Least squares of logarithms."""
    batches, means = _points(known)

    def misfit(p: Floats) -> Floats:
        return np.asarray(p[0] + np.log1p(batches / np.exp(p[1])) - np.log(means))

    start = np.log(means.min()), np.log(np.median(batches))
    found = min(
        (least_squares(misfit, [start[0], start[1] + shift]) for shift in (-3, 0, 3)), key=lambda f: f.cost
    ).x
    return _plain(np.exp(found[0]) * (1 + _points(asked)[0] / np.exp(found[1])))


def line(known: Sequence[BatchRuns], asked: Sequence[BatchRuns]) -> list[Estimate]:
    """Draw the line through the last two batches."""
    batches, means = _points(known)
    slope = (means[-1] - means[-2]) / (batches[-1] - batches[-2])
    return _plain(np.maximum(means[-1] + slope * (_points(asked)[0] - batches[-1]), 1e-9))


Errors = dict[str, dict[str, list[float]]]
"""By kind of question, then workload."""


def errors(asked: Sequence[Question], predict: Predict) -> Errors:
    found: Errors = {kind: defaultdict(list) for kind in GOALS}
    for question in asked:
        estimates = predict(question.known, question.asked)
        off = [abs(e.value / np.mean(r.reached) - 1) for e, r in zip(estimates, question.asked, strict=True)]
        for kind in question.kinds:
            found[kind][question.workload].append(float(np.mean(off)))
        edge = 1.5 * question.known[-1].global_batch
        if "largest" in question.kinds and question.asked[0].global_batch >= edge:
            found["beyond"][question.workload] += off
    return found


def mean(found: Mapping[str, Sequence[float]]) -> float:
    return float(np.mean([np.mean(of) for of in found.values() if of]))


def choose_priors(scores: Mapping[CurvePriors, Errors], without: str | None = None) -> CurvePriors:
    """Choose what predicts the workloads best, all but one: errors over their goals, added."""

    def loss(priors: CurvePriors) -> float:
        return sum(
            mean({w: e for w, e in scores[priors][kind].items() if w != without}) / goal
            for kind, goal in GOALS.items()
        )

    return min(scores, key=loss)


def candidates() -> list[CurvePriors]:
    """List the package's priors, and those with one or two of the grid's values changed."""
    single = [{name: value} for name, values in GRID.items() for value in values]
    double = [a | b for a in single for b in single if len(a | b) == 2]
    changed = [replace(CurvePriors(), **c) for c in [*single, *double]]  # type: ignore[arg-type]
    return list(dict.fromkeys([CurvePriors(), *changed]))


def measure() -> list[Figure]:
    asked = questions(Path(os.environ["SCALER_DATA"]))
    workloads = sorted({question.workload for question in asked})
    scores = {priors: errors(asked, partial(ours, priors=priors)) for priors in candidates()}
    chosen = {workload: choose_priors(scores, workload) for workload in workloads}
    everything = choose_priors(scores)
    agree = "the package's" if everything == CurvePriors() else f"NOT the package's: {everything}"
    rivals = {
        "ours": {
            kind: {w: scores[chosen[w]][kind][w] for w in workloads if w in scores[chosen[w]][kind]}
            for kind in GOALS
        },
        "hyperbola": errors(asked, hyperbola),
        "line": errors(asked, line),
    }
    titles = {
        "largest": "the largest batch from all others",
        "beyond": "the same, where it lies 1.5 x beyond or more",
        "half": "the larger half from the smaller",
    }
    figures = [
        Figure(
            f"examples to target, {titles[kind]}: mean absolute error",
            f"at most {goal:.0%}",
            "; ".join(
                f"{name} {mean(found[kind]):.1%} (worst {max(map(np.mean, found[kind].values())):.1%})"
                for name, found in rivals.items()
            ),
            f"{len(rivals['ours'][kind])} workloads; priors chosen on the others (on all: {agree})",
        )
        for kind, goal in GOALS.items()
    ]
    return [*figures, _intervals(asked, chosen)]


def _intervals(asked: Sequence[Question], chosen: Mapping[str, CurvePriors]) -> Figure:
    """Judge the intervals of every question; beside them a width that holds 90% on the other workloads."""
    groups: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for question in asked:
        estimates = ours(question.known, question.asked, chosen[question.workload])
        for e, run in zip(estimates, question.asked, strict=True):
            assert e.low is not None and e.high is not None
            seen = float(np.mean(run.reached))
            groups[question.workload].append(tuple(np.log([e.low, e.high, seen, e.value])))  # type: ignore[arg-type]
    rows = {workload: np.array(of) for workload, of in groups.items()}
    judged = coverage({w: (of[:, 0], of[:, 1], of[:, 2]) for w, of in rows.items()})
    constant = {}
    for workload, of in rows.items():
        others = np.concatenate([np.abs(r[:, 3] - r[:, 2]) for w, r in rows.items() if w != workload])
        half = float(np.quantile(others, 0.9))
        constant[workload] = (of[:, 3] - half, of[:, 3] + half, of[:, 2])
    level = coverage(constant)
    return Figure(
        "the same: 90% intervals of the mean over the asked seeds, at every cut",
        "coverage's interval holds 90%",
        f"{judged.inside:.1%} inside ({judged.low:.1%} to {judged.high:.1%}), score {judged.score:.3f}; "
        f"constant width {level.inside:.1%}, {level.score:.3f}",
        f"{sum(map(len, rows.values()))} predictions; exact binomial interval, clustered by workload; mean "
        "interval score on the log scale",
    )


if __name__ == "__main__":
    print(table(measure()))
