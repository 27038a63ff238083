"""The form of a step's time, over nodes, workers, micro-batch and accumulation.

    compute  C = (overhead + per_example x m) x drift(m) x (1 + straggle x log2 K)
    sync     S = level(n) x (K - 1) / K x (1 + growth(n) x log2(K / n)) x deviation(n, K)
    step     T = (accumulation - 1) x C + (C^g + S^g)^(1/g)          g >= 1: how far the two overlap

for K workers on n nodes (inside one node growth counts from K = 2). The step is Pollux's (Qiao et al.,
OSDI'21, eq. 5-11), its synchronisation is not: there S grows with K - 2 and runs away. A ring moves
2 (K - 1) / K of the gradients through each link, however many there are; what shares a link, or is waited
for, grows with the logarithm of the workers, as the expected slowest of K does. `drift` bends the line over
the micro-batch, `deviation` is what one placement has of its own; both are small random effects, so that few
measurements do not bend the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KNOTS: int = 4  # of the drift, for each doubling of the micro-batch
_LEAST = 0.05  # of a factor that the search may push below zero
NEVER: float = -1e3  # logarithm of the synchronisation of one worker


@dataclass(frozen=True, order=True)
class StepShape:
    """What a step's time depends on."""

    nodes: int
    workers: int
    micro_batch: int
    accumulation: int = 1

    @property
    def placement(self) -> tuple[int, int]:
        """Nodes and workers."""
        return self.nodes, self.workers

    @property
    def knot(self) -> int:
        """Where on the logarithmic scale of micro-batches it lies, in steps of the drift."""
        return round(KNOTS * math.log2(self.micro_batch))


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the vector: six shared ones, then one of each kind per size known."""

    node_counts: tuple[int, ...]
    """Ascending; 1 stands for links inside a node."""
    placements: tuple[tuple[int, int], ...]
    """(nodes, workers) of several workers."""
    knots: tuple[int, ...]
    """Of micro-batches."""

    OVERHEAD, PER_EXAMPLE, STRAGGLE, OVERLAP, GROWTH, NODE_GROWTH = range(6)

    @classmethod
    def of(cls, shapes: Sequence[StepShape]) -> "Layout":
        """Lay out the parameters that these shapes need."""
        return cls(
            node_counts=tuple(sorted({shape.nodes for shape in shapes if shape.workers > 1})),
            placements=tuple(sorted({shape.placement for shape in shapes if shape.workers > 1})),
            knots=tuple(sorted({shape.knot for shape in shapes})),
        )

    def extended(self, shapes: Sequence[StepShape]) -> "Layout":
        """Lay out the parameters of further shapes too."""
        more = Layout.of(shapes)
        return Layout(
            node_counts=tuple(sorted({*self.node_counts, *more.node_counts})),
            placements=tuple(sorted({*self.placements, *more.placements})),
            knots=tuple(sorted({*self.knots, *more.knots})),
        )

    @property
    def levels(self) -> "slice[int, int, None]":
        """Logarithms of the synchronisation levels, by node count."""
        return slice(6, 6 + len(self.node_counts))

    @property
    def growths(self) -> "slice[int, int, None]":
        """By node count."""
        return slice(self.levels.stop, self.levels.stop + len(self.node_counts))

    @property
    def deviations(self) -> "slice[int, int, None]":
        """Logarithms, by placement."""
        return slice(self.growths.stop, self.growths.stop + len(self.placements))

    @property
    def drifts(self) -> "slice[int, int, None]":
        """Logarithms, by knot."""
        return slice(self.deviations.stop, self.deviations.stop + len(self.knots))

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return self.drifts.stop


def pass_value(x: Floats, micro_batch: Floats, workers: Floats, drift: Floats) -> Floats:
    """Give the logarithm of one pass's compute time, for arrays of shapes and their drifts."""
    examples = np.exp(x[Layout.PER_EXAMPLE]) * micro_batch
    straggle = np.maximum(1 + x[Layout.STRAGGLE] * np.log2(workers), _LEAST)
    return np.asarray(np.log(np.exp(x[Layout.OVERHEAD]) + examples) + drift + np.log(straggle))


def sync_value(nodes: Floats, workers: Floats, level: Floats, growth: Floats, deviation: Floats) -> Floats:
    """Give the logarithm of the synchronisation of several workers, for arrays of shapes."""
    shared = np.log2(np.where(nodes == 1, workers / 2, workers / nodes))
    grown = np.log(np.maximum(1 + growth * shared, _LEAST))
    return np.asarray(level + np.log((workers - 1) / workers) + grown + deviation)


def step_value(x: Floats, compute: Floats, sync: Floats, accumulation: Floats) -> tuple[Floats, Floats]:
    """Join a pass and the synchronisation, all logarithms, to the last pass with it and to the step."""
    overlap = 1 + np.exp(x[Layout.OVERLAP])
    last = np.logaddexp(overlap * compute, overlap * sync) / overlap
    with np.errstate(divide="ignore"):
        return last, np.logaddexp(np.log(accumulation - 1) + compute, last)


class Grid:
    """Shapes as arrays, with the places of their parameters."""

    def __init__(self, layout: Layout, shapes: Sequence[StepShape]) -> None:
        self.size = layout.size
        self.nodes, self.workers, self.micro_batch, self.accumulation = np.array(
            [(s.nodes, s.workers, s.micro_batch, s.accumulation) for s in shapes], dtype=float
        ).T
        self._rows = np.arange(len(shapes))
        self._synchronised = np.flatnonzero(self.workers > 1)
        several = [shape for shape in shapes if shape.workers > 1]
        counts, placements, knots = (
            {key: i for i, key in enumerate(keys)}
            for keys in (layout.node_counts, layout.placements, layout.knots)
        )
        by_count = np.array([counts[s.nodes] for s in several], dtype=int)
        self._level, self._growth = by_count + layout.levels.start, by_count + layout.growths.start
        self._deviation = np.array([placements[s.placement] for s in several], dtype=int)
        self._deviation += layout.deviations.start
        self._drift = np.array([knots[s.knot] for s in shapes], dtype=int) + layout.drifts.start
        nodes, workers = self.nodes[self._synchronised], self.workers[self._synchronised]
        self._shared = np.log2(np.where(nodes == 1, workers / 2, workers / nodes))

    def log_compute(self, x: Floats) -> tuple[Floats, Floats]:
        """Give the logarithm of one pass's compute time [shapes] and its derivatives [shapes, parameters]."""
        overhead, examples = np.exp(x[Layout.OVERHEAD]), np.exp(x[Layout.PER_EXAMPLE]) * self.micro_batch
        doublings = np.log2(self.workers)
        straggle = 1 + x[Layout.STRAGGLE] * doublings
        slopes = np.zeros((len(self._rows), self.size))
        slopes[:, Layout.OVERHEAD] = overhead / (overhead + examples)
        slopes[:, Layout.PER_EXAMPLE] = examples / (overhead + examples)
        slopes[:, Layout.STRAGGLE] = np.where(
            straggle > _LEAST, doublings / np.maximum(straggle, _LEAST), 0.0
        )
        slopes[self._rows, self._drift] = 1
        return pass_value(x, self.micro_batch, self.workers, x[self._drift]), slopes

    def log_sync(self, x: Floats) -> tuple[Floats, Floats]:
        """Give the logarithm of the synchronisation [shapes] and its derivatives [shapes, parameters]."""
        growth = 1 + x[self._growth] * self._shared
        values = np.full(len(self._rows), NEVER)
        slopes = np.zeros((len(self._rows), self.size))
        rows = self._synchronised
        values[rows] = sync_value(
            self.nodes[rows], self.workers[rows], x[self._level], x[self._growth], x[self._deviation]
        )
        slopes[rows, self._level] = slopes[rows, self._deviation] = 1
        slopes[rows, self._growth] = np.where(growth > _LEAST, self._shared / np.maximum(growth, _LEAST), 0.0)
        return values, slopes

    def log_step(self, x: Floats, longer_sync: Floats | float = 0.0) -> tuple[Floats, Floats]:
        """Give the logarithm of the step time [shapes] and its derivatives [shapes, parameters].

        `longer_sync` is added to the logarithm of the synchronisation.
        """
        extra = np.exp(x[Layout.OVERLAP])
        overlap = 1 + extra
        (compute, compute_slopes), (sync, sync_slopes) = self.log_compute(x), self.log_sync(x)
        sync = sync + longer_sync
        last, value = step_value(x, compute, sync, self.accumulation)
        exposed = np.exp(overlap * (sync - last))[:, None]  # the share that synchronisation has in the sum
        slopes = (1 - exposed) * compute_slopes + exposed * sync_slopes
        mean = (1 - exposed[:, 0]) * compute + exposed[:, 0] * np.where(sync > NEVER, sync, 0.0)
        slopes[:, Layout.OVERLAP] += (mean - last) / overlap * extra
        own = np.exp(last - value)[:, None]
        return value, own * slopes + (1 - own) * compute_slopes
