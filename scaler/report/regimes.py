"""Figures of batch size 1, mini-batches and the full batch: cost curves, and the paths over the contour."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from scaler.fit.regimes import RegimeFit, RegimesFit
from scaler.records import BatchRegime, CostCurve, RegimesRecord
from scaler.report.figure import Axis, Figure, Point, Series, Surface
from scaler.report.regime_words import format_cost, listed, regime_name
from scaler.report.wording import amount, counted
from scaler.stats import Floats
from scaler.units import format_count, format_seconds

_SMOOTHED = 40  # points of a smoothed curve, evenly spread over the logarithm of steps
_BELOW, _ABOVE = 3.0, 10.0  # factors from the smoothed costs to where the picture ends

Shown = Sequence[tuple[BatchRegime, RegimeFit]]
Place = Callable[[BatchRegime, CostCurve], Floats]
"""Where on the x axis each block of a regime's curve ends."""


def regime_figures(record: RegimesRecord, fit: RegimesFit) -> list[Figure]:
    """Show cost against steps, epochs and seconds, and the paths; a figure without evidence is left out."""
    pairs = zip(record.regimes, fit.regimes, strict=True)
    shown = [(regime, own) for regime, own in pairs if regime.curve is not None]
    if not shown:
        return []
    calm, wild = _extremes(shown)
    quick, slow = sorted((calm, wild), key=lambda own: own.epoch_time_s.value if own.epoch_time_s else 0.0)
    axes: list[tuple[str, Axis, Place, str]] = [
        (
            "steps",
            Axis("optimizer steps", "examples", log=True),
            lambda _, curve: np.asarray(curve.iterations, dtype=float),
            f"Batch {regime_name(calm, fit)} goes up on {calm.rises or 0:.0%} of its steps, batch "
            f"{regime_name(wild, fit)} on {wild.rises or 0:.0%}",
        ),
        (
            "epochs",
            Axis("epochs", log=True),
            lambda regime, curve: (
                np.asarray(curve.iterations) * (regime.plan.global_batch / record.data_examples)
            ),
            f"An epoch is {counted(_steps(calm, fit), 'step')} at batch {format_count(calm.batch)} and "
            f"{counted(_steps(wild, fit), 'step')} at batch {format_count(wild.batch)}",
        ),
        (
            "seconds",
            Axis("training time, without evaluation", "seconds", log=True),
            lambda _, curve: np.asarray(curve.time_s),
            f"An epoch takes {_epoch(quick)} at batch {format_count(quick.batch)} and {_epoch(slow)} at "
            f"batch {format_count(slow.batch)}",
        ),
    ]
    costs = [_cost_figure(name, axis, place, finding, shown, fit) for name, axis, place, finding in axes]
    paths = paths_figure(record, fit)
    return [*costs, *([paths] if paths is not None else [])]


def paths_figure(record: RegimesRecord, fit: RegimesFit) -> Figure | None:
    """Show the paths in the plane of their first two principal directions; None without a contour."""
    contour = record.contour
    if contour is None or record.explained is None:
        return None
    series = []
    for group, (regime, own) in enumerate(zip(record.regimes, fit.regimes, strict=True)):
        inside = itertools.takewhile(
            lambda s: contour.x[0] <= s.x <= contour.x[-1] and contour.y[0] <= s.y <= contour.y[-1],
            regime.path,
        )
        points = tuple(Point(s.x, s.y) for s in inside)
        if len(points) > 1 and len(points) == len(regime.path) and regime.stop != "diverged":
            series.append(Series(f"batch {regime_name(own, fit)}", points, "path", group))
        elif len(points) > 1:
            series.append(Series(f"batch {regime_name(own, fit)}, leaves", points, "trace", group))
            series.append(Series("", points[-1:], "failed", group))
    if not series:
        return None
    start = series[0].points[0]
    series.append(Series("start", (start,), "start", 0))
    ends = [f"{regime_name(own, fit)} at {format_cost(own.end_cost)}" for own in fit.regimes if own.end_cost]
    first, second = record.explained
    snapshots = max(len(regime.path) for regime in record.regimes)
    return Figure(
        name="paths",
        title="Paths over the cost",
        x=Axis(f"first principal direction of the weights ({first:.0%} of the variance)"),
        y=Axis(f"second ({second:.0%})"),
        series=tuple(series),
        surface=Surface(contour.x, contour.y, contour.cost),
        caption=(
            f"From the same start (star) to the ends (large dots): {listed(ends)}. The plane holds "
            f"{first + second:.0%} of the variance of all paths together; up to {snapshots} snapshots a "
            f"path. Contours: the cost in the plane, {len(contour.x)} x {len(contour.y)} points, mean of "
            f"{counted(record.sample_examples, 'example')}; a path lies off the plane, so its own cost is "
            "not the contour's beneath it. One seed."
        ),
    )


def _cost_figure(name: str, axis: Axis, place: Place, finding: str, shown: Shown, fit: RegimesFit) -> Figure:
    smooth = [_smoothed(regime, place) for regime, _ in shown]
    ended = [group for group, (_, own) in enumerate(shown) if own.stop != "diverged"]
    heights = [point.y for group in ended or range(len(shown)) for point in smooth[group]]
    ceiling = max(heights) * _ABOVE if ended else max(points[0].y for points in smooth) * _ABOVE**2
    logarithmic = min(heights) > 0
    floor = min(heights) / _BELOW if logarithmic else -math.inf
    series = []
    for group, (regime, own) in enumerate(shown):
        label = "batch " + regime_name(own, fit) + (" DIVERGED" if own.stop == "diverged" else "")
        series.append(Series("", _clipped(_samples(regime, place), floor, ceiling), "noisy", group))
        series.append(Series(label, _clipped(smooth[group], floor, ceiling), "curve", group))
    cut = [regime_name(own, fit) for _, own in shown if own.stop == "deadline"]
    out = f" Ended by its share of the time: batch {listed(cut)}." if cut else ""
    frame = (
        f"{format_cost(floor)} to {format_cost(ceiling)}" if logarithmic else f"up to {format_cost(ceiling)}"
    )
    out += f" The frame is {frame}; costs outside are drawn on its edge."
    return Figure(
        name=name,
        title=f"Cost against {name}",
        x=axis,
        y=Axis("cost of the step's batch", log=logarithmic),
        series=tuple(series),
        caption=(
            f"{finding}. Strong: means over windows of equal width on the logarithm of steps; faint: every "
            f"step, beyond 250 steps means of blocks with their least and greatest.{out} "
            f"{counted(len(shown), 'regime')} of one seed, "
            f"{counted(sum(own.iterations for _, own in shown), 'step')}."
        ),
    )


def _extremes(shown: Shown) -> tuple[RegimeFit, RegimeFit]:
    """Give the largest and the smallest batch at the rule's rate."""
    ordered = sorted((own for _, own in shown), key=lambda own: (own.batch, own.rate_factor))
    return ordered[-1], max((own for own in ordered if own.batch == ordered[0].batch), key=_factor)


def _factor(own: RegimeFit) -> float:
    return own.rate_factor


def _epoch(own: RegimeFit) -> str:
    return amount(own.epoch_time_s, format_seconds)


def _steps(own: RegimeFit, fit: RegimesFit) -> int:
    return max(1, round(fit.data_examples / own.batch))


def _samples(regime: BatchRegime, place: Place) -> tuple[Point, ...]:
    """Give every block; those of several steps with their least and greatest cost."""
    curve = regime.curve
    assert curve is not None
    blocks = zip(
        place(regime, curve),
        np.diff(curve.iterations, prepend=0),
        curve.mean,
        curve.low,
        curve.high,
        strict=True,
    )
    return tuple(
        Point(float(x), mean, *((low, high) if steps > 1 else ())) for x, steps, mean, low, high in blocks
    )


def _clipped(points: Sequence[Point], floor: float, ceiling: float) -> tuple[Point, ...]:
    def clip(value: float | None) -> float | None:
        return None if value is None else min(max(value, floor), ceiling)

    return tuple(
        dataclasses.replace(p, y=clip(p.y) or 0.0, low=clip(p.low), high=clip(p.high)) for p in points
    )


def _smoothed(regime: BatchRegime, place: Place) -> tuple[Point, ...]:
    curve = regime.curve
    assert curve is not None
    steps = np.asarray(curve.iterations)
    lengths = np.diff(steps, prepend=0)
    edges = np.geomspace(1, max(2, steps[-1]), _SMOOTHED)
    windows = np.searchsorted(edges, steps - 1e-9)
    x, mean = place(regime, curve), np.asarray(curve.mean)
    found = []
    for window in np.unique(windows):
        own = windows == window
        found.append(Point(float(x[own].mean()), float(np.average(mean[own], weights=lengths[own]))))
    return tuple(found)
