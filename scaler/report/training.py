"""Figures of how training responds to the global batch: curves, examples to target, learning rates."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from scaler.fit.convergence import ConvergenceFit
from scaler.fit.learning_rate import BatchResult, batch_results
from scaler.fit.rate_fit import RateFit
from scaler.fit.steps import StepsFit
from scaler.records import ConvergenceRecord
from scaler.report.figure import Axis, Figure, Level, Point, Series
from scaler.report.wording import counted, interval
from scaler.units import format_count

_GLOBAL_BATCH = Axis("global batch (examples)", "examples", log=True, doubling=True)
_CURVE_POINTS = 60

Direction = Literal["max", "min"]
Trials = Sequence[ConvergenceRecord]


def curves_figure(trials: Trials, target: tuple[float, str] | None = None) -> Figure | None:
    """Show one training curve per global batch at its best learning rate; None where none reached the target.

    `target` is the metric's value and 'max' or 'min', the direction in which it is met.
    """
    series: list[Series] = []
    ends: list[ConvergenceRecord] = []
    for result in _reached(trials):
        run = min(_best_runs(trials, result), key=lambda trial: trial.seed)
        points = tuple(
            Point(e.examples, e.metric) for e in run.curve if e.metric is not None and e.examples > 0
        )
        if points:
            label = f"{format_count(result.global_batch)} (rate {run.learning_rate:g})"
            series.append(Series(label, points, "trace", len(series)))
            ends.append(run)
    if not series:
        return None
    first = min(ends, key=lambda run: run.examples)
    return Figure(
        name="curves",
        title="Training curves",
        x=Axis("training examples", "examples", log=True),
        y=Axis("metric on the evaluation data"),
        series=tuple(series),
        level=Level(target[0], f"target, {target_words(target)}") if target else None,
        ordered=True,
        caption=(
            f"Global batch {format_count(first.plan.global_batch)} reaches the target with the fewest "
            f"examples, {format_count(first.examples)}. One seed of each of "
            f"{counted(len(series), 'global batch', 'global batches')} at its best learning rate."
        ),
    )


def examples_figure(trials: Trials, fitted: ConvergenceFit | None) -> Figure | None:
    """Show examples to target against the global batch, with the fit; None where none reached the target."""
    reached = _reached(trials)
    if not reached:
        return None
    seeds = tuple(Point(r.global_batch, float(e)) for r in reached for e in r.examples)
    series = [Series("one seed at the best rate", seeds, "points", 0)]
    fit = fitted.steps if fitted is not None else None
    if fit is not None:
        series.append(Series("fit with 90% band of one run", _fitted(fit), "curve", 1))
    missed = [r for r in batch_results(trials).values() if r.best_rate is None]
    if missed:
        far = {
            r.global_batch: max(t.examples for t in trials if t.plan.global_batch == r.global_batch)
            for r in missed
        }
        marks = tuple(Point(batch, float(examples)) for batch, examples in far.items() if examples)
        series.append(Series("target not reached", marks, "failed", 2))
    return Figure(
        name="examples",
        title="Examples to target",
        x=_GLOBAL_BATCH,
        y=Axis("examples to target", "examples", log=True),
        series=tuple(series),
        caption=_examples_caption(reached, fit, len(seeds)),
    )


def rates_figure(trials: Trials, fitted: ConvergenceFit | None) -> Figure | None:
    """Show the best learning rate against the global batch; None where none reached the target."""
    reached = _reached(trials)
    if not reached:
        return None
    results = batch_results(trials).values()
    tried = tuple(Point(r.global_batch, rate) for r in results for rate in r.rates)
    best = tuple(Point(r.global_batch, r.best_rate) for r in reached if r.best_rate is not None)
    assert fitted is not None, "a trial reached the target"
    fit = fitted.rates
    exponent = fit.exponent()
    if exponent is not None:
        ends = ", and no more at the largest" if fit.saturates() else ""
        finding = (
            f"The best learning rate grows as the global batch to the power {format_count(exponent.value)} "
            f"(90% interval {interval(exponent, format_count)}; {exponent.method}){ends}: "
            "0.5 is square-root scaling, 1 is linear scaling"
        )
    else:
        rates = ", ".join(f"{p.y:g} at {format_count(p.x)}" for p in best)
        finding = (
            f"The best learning rate is {rates}; its growth with the batch is not identifiable from "
            f"{counted(len(best), 'global batch', 'global batches')}"
        )
    return Figure(
        name="rates",
        title="Learning rate",
        x=_GLOBAL_BATCH,
        y=Axis("learning rate", log=True),
        series=(
            Series("tried", tried, "pale", 1),
            Series("best tried", best, "points", 0),
            Series("best, fitted, with 90% band", _best_rates(fit, reached), "curve", 0),
        ),
        caption=f"{finding}. {counted(len(tried), 'rate')} tried in {counted(len(trials), 'trial')}.",
    )


def target_words(target: tuple[float, str]) -> str:
    """Write a target such as '0.95 or more'."""
    assert target[1] in get_args(Direction)
    return f"{target[0]:.6g} or {'more' if target[1] == 'max' else 'less'}"


def _reached(trials: Trials) -> list[BatchResult]:
    return [r for r in batch_results(trials).values() if r.best_rate is not None]


def _best_runs(trials: Trials, result: BatchResult) -> list[ConvergenceRecord]:
    wanted = (result.global_batch, result.best_rate)
    return [
        t
        for t in trials
        if t.kind == "convergence" and t.reached and (t.plan.global_batch, t.learning_rate) == wanted
    ]


def _best_rates(fit: RateFit, reached: Sequence[BatchResult]) -> tuple[Point, ...]:
    found = [(result.global_batch, fit.best_rate(result.global_batch)) for result in reached]
    return tuple(Point(batch, rate.value, rate.low, rate.high) for batch, rate in found)


def _fitted(fit: StepsFit) -> tuple[Point, ...]:
    sizes = np.unique(np.geomspace(fit.smallest_batch, fit.largest_batch, _CURVE_POINTS).round()).tolist()
    estimates = fit.examples_at(sizes, [1] * len(sizes))
    return tuple(Point(size, e.value, e.low, e.high) for size, e in zip(sizes, estimates, strict=True))


def _examples_caption(reached: Sequence[BatchResult], fit: StepsFit | None, seeds: int) -> str:
    first, last = reached[0], reached[-1]
    text = (
        f"Global batch {format_count(first.global_batch)} takes {format_count(first.mean_examples)} examples"
    )
    if last is not first:
        text += (
            f", and {format_count(last.global_batch)} takes {format_count(last.mean_examples)}, "
            f"{format_count(last.mean_examples / first.mean_examples)} times as many"
        )
    critical = fit.critical_batch() if fit else None
    if critical is not None:
        text += (
            f"; the critical batch is {format_count(critical.value)} "
            f"(90% interval {interval(critical, format_count)})"
        )
    else:
        text += "; the critical batch is not identifiable from this"
    method = f"; curve: {fit.model}" if fit else ""
    return f"{text}. {counted(seeds, 'run')}{method}."
