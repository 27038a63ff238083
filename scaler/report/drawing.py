"""Draws a figure as SVG text that is inlined into a page."""

import io
import itertools
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from scaler.report.figure import Axis, Figure, Level, Point, Series, Surface
from scaler.report.ticks import spread_ticks, tick_label

_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe & Ito
_MARKERS = "osD^vPX"
_LEVELS, _STEEPEST = 14, 0.9  # of a contour; share of the plane below its highest level
_INK, _GRID = "#333333", "#e4e4e4"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
}
_UNDATED = {"Date": None, "Creator": None, "Format": None, "Type": None}


def draw(figure: Figure) -> str:
    """Draw `figure` as one <svg> element; the same figure gives the same text."""
    # Names in the drawing start with the figure's, so that several fit on one page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": figure.name}):
        canvas = Canvas(figsize=(7.6, 3.9), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        colours = _colours(figure)
        if figure.surface is not None:
            _draw_surface(axes, figure.surface)
        for series in figure.series:
            _draw_series(axes, series, colours[series.group])
        if figure.level is not None:
            axes.axhline(figure.level.y, color=_INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        _finish(axes, figure)
        _legend(axes, figure, colours)
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata=_UNDATED)
    return _inline(text.getvalue(), figure)


def _colours(figure: Figure) -> list[str]:
    if figure.ordered or figure.groups > len(_PALETTE):
        ramp = matplotlib.colormaps["viridis"]
        return [to_hex(ramp(position)) for position in np.linspace(0, 0.85, max(figure.groups, 2))]
    return list(itertools.islice(_PALETTE, figure.groups))


def _draw_surface(axes: Axes, surface: Surface) -> None:
    """Draw contours whose levels are steps of one factor, a number on each; None counts as the highest."""
    heights = np.array(surface.height, dtype=float)  # None is nan
    if np.isnan(heights).all():
        return
    heights = np.where(np.isnan(heights), np.nanmax(heights), heights)
    low, high = float(heights.min()), float(np.quantile(heights, _STEEPEST))
    levels = np.geomspace(low, high, _LEVELS) if low > 0 else np.linspace(low, high, _LEVELS)
    shown = sorted({rounded for level in levels if low < (rounded := float(f"{level:.2g}")) < high})
    if shown:
        style: dict[str, Any] = {"colors": "#9a9a9a", "linewidths": 0.7, "zorder": 1}
        lines = axes.contour(surface.x, surface.y, heights, levels=shown, **style)
        axes.clabel(lines, fontsize=7, fmt="%g", colors="#6a6a6a")


def _draw_series(axes: Axes, series: Series, colour: str) -> None:
    x, y = [p.x for p in series.points], [p.y for p in series.points]
    if series.kind == "path":
        axes.plot(x[-1:], y[-1:], color=colour, marker="o", markersize=8, markeredgecolor="white", zorder=5)
    if series.kind in ("curve", "noisy"):
        band = [p for p in series.points if p.low is not None and p.high is not None]
        if band:
            low, high = [p.low or 0.0 for p in band], [p.high or 0.0 for p in band]
            alpha = 0.15 if series.kind == "curve" else 0.12
            axes.fill_between([p.x for p in band], low, high, color=colour, alpha=alpha, linewidth=0)
    else:
        _error_bars(axes, series.points, colour)
    axes.plot(x, y, **_line_style(series, colour))


def _line_style(series: Series, colour: str) -> dict[str, Any]:
    marker = _MARKERS[series.group % len(_MARKERS)]
    if series.kind == "curve":
        return {"color": colour, "linewidth": 1.5, "zorder": 2}
    if series.kind == "trace":
        return {"color": colour, "linewidth": 1.3, "marker": marker, "markersize": 2.5, "zorder": 3}
    if series.kind == "noisy":
        return {"color": colour, "linewidth": 0.7, "alpha": 0.3, "zorder": 1}
    if series.kind == "path":
        # Paths that lie on one another show as nested lines.
        width = max(1.0, 3.4 - 0.4 * series.group)
        return {"color": colour, "linewidth": width, "marker": ".", "markersize": width + 3, "zorder": 3}
    if series.kind == "start":
        return {"color": _INK, "linestyle": "none", "marker": "*", "markersize": 13, "zorder": 6}
    if series.kind == "line":
        return {"color": colour, "linewidth": 1.5, "marker": marker, "markersize": 4.5, "zorder": 3}
    marks: dict[str, Any] = {"linestyle": "none", "color": colour, "marker": marker, "zorder": 4}
    if series.kind == "pale":
        return {**marks, "color": "#a8a8a8", "marker": "o", "markersize": 4, "zorder": 2}
    if series.kind == "failed":
        return {**marks, "color": "#b00020", "marker": "x", "markersize": 7, "markeredgewidth": 1.8}
    return {**marks, "markersize": 5, "alpha": 0.85, "markeredgewidth": 0}


def _error_bars(axes: Axes, points: tuple[Point, ...], colour: str) -> None:
    for point in points:
        if point.low is not None and point.high is not None:
            axes.plot([point.x, point.x], [point.low, point.high], color=colour, linewidth=1, zorder=2)


def _finish(axes: Axes, figure: Figure) -> None:
    points = [point for series in figure.series for point in series.points]
    heights = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    heights += [figure.level.y] if figure.level is not None else []
    _scale(axes.xaxis, figure.x, [p.x for p in points], most=9)
    _scale(axes.yaxis, figure.y, heights, most=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
    if figure.level is not None:
        _name_level(axes, figure.level)


def _name_level(axes: Axes, level: Level) -> None:
    """Write the level's label at the left end, on its side with more room."""
    above = axes.transAxes.inverted().transform(axes.transData.transform((1, level.y)))[1] < 0.5
    axes.annotate(
        level.label,
        (0.01, level.y),
        (0, 4 if above else -4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="bottom" if above else "top",
        fontsize=9,
    )


def _scale(axis: Any, wanted: Axis, values: list[float], most: int) -> None:
    """Set scale, limits with a little air, and ticks that carry their units."""
    low, high = min(values), max(values)
    if wanted.log:
        air = max((high / low) ** 0.06, 1.08)
        limits, scale = (low / air, high * air), "log"
    else:
        air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        limits, scale = (low - air, high + air), "linear"
    name = axis.axis_name
    getattr(axis.axes, f"set_{name}scale")(scale)
    getattr(axis.axes, f"set_{name}lim")(*limits)
    ticks = spread_ticks(wanted, *limits, most=most)
    axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.set_ticks(ticks, labels=[tick_label(wanted, tick) for tick in ticks])
    getattr(axis.axes, f"set_{name}label")(wanted.label)


def _legend(axes: Axes, figure: Figure, colours: list[str]) -> None:
    named = [series for series in figure.series if series.label]
    if len(named) < 2:
        return
    handles = [Line2D([], [], label=s.label, **_line_style(s, colours[s.group])) for s in named]
    title = "global batch" if figure.ordered else None
    legend = axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=9,
        title=title,
        title_fontsize=9,
    )
    legend.set_in_layout(True)


def _inline(text: str, figure: Figure) -> str:
    """Keep the <svg> element alone: sized by its page, ids of its own, described for screen readers."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{figure.name}-", svg)
    attributes = f'<svg role="img" aria-label="{figure.title}" '
    return re.sub(r'^<svg (.*?)width="[^"]*"(.*?)height="[^"]*"', rf"{attributes}\1\2", svg, count=1)
