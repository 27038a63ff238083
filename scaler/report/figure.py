"""A figure as data: what is shown, before anything is drawn."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["examples", "seconds", "bytes", "plain"]
Kind = Literal["points", "line", "trace", "curve", "pale", "failed", "noisy", "path", "start"]


@dataclass(frozen=True)
class Axis:
    """One axis. Its ticks carry the unit where `label` does not."""

    label: str
    unit: Unit = "plain"
    log: bool = False
    doubling: bool = False
    """Whether the ticks of a log axis are powers of two."""


@dataclass(frozen=True)
class Point:
    """One position; `low` and `high` are its 90% interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    `points` are marks, `line` are marks in order, `trace` is one run over time, `curve` is a fit (with a band
    where its points have an interval), `pale` is background evidence, `failed` is where a measurement did not
    succeed, `noisy` is every sample (with its range where several make one point), `path` goes through a
    plane and ends in a mark, `start` is where paths begin.
    Series of one `group` share a colour. An empty label stays out of the legend.
    """

    label: str
    points: tuple[Point, ...]
    kind: Kind = "points"
    group: int = 0


@dataclass(frozen=True)
class Level:
    """A horizontal line that the data is held against."""

    y: float
    label: str


@dataclass(frozen=True)
class Surface:
    """A height over the plane, drawn as contours: `height[row][column]`, None where not finite."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    height: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Figure:
    """One figure with its finding."""

    name: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    caption: str
    """One sentence: the finding with its numbers, then the sample count and the method."""
    level: Level | None = None
    ordered: bool = False
    """Whether the groups are steps of one quantity, and colours should say so."""
    surface: Surface | None = None

    @property
    def groups(self) -> int:
        """How many colours are needed."""
        return max(series.group for series in self.series) + 1
