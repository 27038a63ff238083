"""Where the ticks of an axis stand, and what they say."""

import math
from collections.abc import Iterable

from matplotlib.ticker import MaxNLocator

from scaler.report.figure import Axis
from scaler.units import format_bytes, format_count, format_seconds

_FINE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)


def spread_ticks(axis: Axis, low: float, high: float, most: int) -> list[float]:
    """Choose at most `most` round positions within the limits."""
    if not axis.log:
        return _within(MaxNLocator(most - 1).tick_values(low, high), low, high)
    if axis.doubling:
        powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
        ticks = _within([2.0**power for power in powers], low, high)
        if ticks:
            return _thinned(ticks, most)
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), _FINE):
        ticks = _decades(low, high, factors)
        if len(ticks) >= 4:
            return _thinned(ticks, most)
    return _within(MaxNLocator(most - 1).tick_values(low, high), low, high)


def tick_label(axis: Axis, value: float) -> str:
    """Write a tick with its unit."""
    if axis.unit == "bytes":
        return format_bytes(value).replace(".0 ", " ")
    if axis.unit == "seconds":
        return format_seconds(value)
    return f"{value:,.6g}" if abs(value) < 100 else format_count(value)


def _decades(low: float, high: float, factors: tuple[float, ...]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return _within([factor * 10.0**power for power in powers for factor in factors], low, high)


def _within(ticks: Iterable[float], low: float, high: float) -> list[float]:
    return [float(tick) for tick in ticks if low <= tick <= high]


def _thinned(ticks: list[float], most: int) -> list[float]:
    return ticks[:: -(-len(ticks) // most)] if ticks else ticks
