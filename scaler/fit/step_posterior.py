"""Fits the step-time model to a few medians: most likely parameters under priors, and their covariance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import least_squares

from scaler.fit.step_model import (
    KNOTS,
    NEVER,
    Floats,
    Grid,
    Layout,
    StepShape,
    pass_value,
    step_value,
    sync_value,
)
from scaler.stats import CONFIDENCE, root_of

_ROUNDS = 5  # of the noise, which is estimated along
_SETTLED = 0.02
_SMALL = 1e-4  # a shift, to take a derivative
_FLAT = 1e-6  # below this a prior's bend is straight
_VAGUE = 5.0  # on the log scale: the data decide


@dataclass(frozen=True)
class Normal:
    """A prior belief: mean and standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class StepPriors:
    """What is known of any workload before it is measured; all without a unit.

    The defaults predict public traces of three applications on up to 16 T4 GPUs (Pollux, OSDI'21 artifact)
    best from their runs on few: `benchmarks/step_time.py` derives them again, and scores every application
    with those of the others.
    """

    straggle: Normal = Normal(0.02, 0.015)
    """Growth of the compute time with each doubling of the workers."""
    log_overlap: Normal = Normal(0.2, 0.4)
    """Of g - 1."""
    growth: Normal = Normal(0.05, 0.1)
    """Growth of the synchronisation with each doubling of the workers on a node."""
    node_growth: Normal = Normal(0.0, 0.08)
    """Growth of the logarithm of its level with each doubling of the nodes; the traces need none."""
    growth_spread: float = 0.12
    """Between node counts."""
    level_spread: float = 0.25
    """Of the logarithm of the level, for each doubling of the nodes."""
    deviation: float = 0.07
    """Of the logarithm of a measured placement's synchronisation: how far single ones may bend the rest."""
    fresh_deviation: float = 0.02
    """The same, of placements that were not measured."""
    width: float = 0.7
    """Share of the parameters' standard deviation in intervals: deviations leave more room than is needed."""
    drift: float = 0.05
    noise: float = 0.05
    """Of the median step of one fresh run, on the log scale, as strong as `noise_dof` measurements."""
    noise_dof: int = 8
    inside: Normal = Normal(-1.7, 1.0)
    """Logarithm of the level inside a node over the step, before any was seen."""
    across: Normal = Normal(2.0, 1.2)
    """Logarithm of the level across nodes over that inside one."""

    def first_level(self, nodes: int) -> Normal:
        """Give the logarithm of the level over the step, before any synchronisation was seen."""
        if nodes == 1:
            return self.inside
        deviation = math.hypot(self.inside.deviation, self.across.deviation)
        return Normal(self.inside.mean + self.across.mean, deviation)


@dataclass(frozen=True)
class Rows:
    """What was measured: a median step per run, and where known how much of it is exposed synchronisation."""

    shapes: tuple[StepShape, ...]
    step_time_s: Floats
    sync_time_s: Floats
    """nan where it was not measured."""


@dataclass(frozen=True)
class Posterior:
    """Parameters with their covariance, after the rows."""

    layout: Layout
    parameters: Floats
    covariance: Floats
    noise: float
    """Standard deviation of one fresh run around the model, on the log scale."""
    degrees_of_freedom: float
    middle: float
    """Logarithm of the median row."""
    priors: StepPriors

    def log_step(self, shapes: Sequence[StepShape]) -> tuple[Floats, Floats, Floats]:
        """Give the logarithms of step times [shapes], their derivatives and the covariance used.

        Sizes that were not measured have parameters of their own, drawn from the known ones.
        """
        layout, x, covariance = self._extended(shapes)
        return *Grid(layout, shapes).log_step(x), covariance

    def predict(self, shapes: Sequence[StepShape]) -> tuple[Floats, Floats, Floats]:
        """Give the logarithm of the median step of one fresh run of each shape, and of its interval's ends.

        The interval is linear in the parameters, except for what a very uncertain synchronisation does: it
        may come to rule the step, and without it the step is as long as its computation.
        """
        layout, x, covariance = self._extended(shapes)
        grid = Grid(layout, shapes)
        values, slopes = grid.log_step(x)
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, self.degrees_of_freedom))
        far, least = quantile * self.priors.width, quantile * self.noise
        squared = far**2 * _variances(slopes, covariance) + least**2
        longer = far * np.sqrt(_variances(grid.log_sync(x)[1], covariance))
        above, below = grid.log_step(x, longer)[0] - values, values - grid.log_step(x, -longer)[0]
        linear = longer * (grid.log_step(x, _SMALL)[0] - values) / _SMALL
        # Of the linear interval, the part that is the synchronisation's makes way for what it would do.
        rest = np.maximum(squared - linear**2, 0.0)
        own = np.minimum(1.0, squared / np.maximum(linear, _SMALL) ** 2)
        low = values - np.maximum(least, np.sqrt(rest + own * np.minimum(below, linear) ** 2))
        high = values + np.maximum(least, np.sqrt(rest + own * np.maximum(above, linear) ** 2))
        return values, low, high

    def typical(self, nodes: Floats, workers: Floats, micro_batch: Floats, accumulation: Floats) -> Floats:
        """Give the logarithm of the step time of very many shapes, as arrays; without intervals."""
        x = self.parameters
        knots, knot = np.unique(np.round(KNOTS * np.log2(micro_batch)).astype(int), return_inverse=True)
        drift = self._drift_lines(knots.tolist())[0] @ x[self.layout.drifts]
        compute = pass_value(x, micro_batch, workers, drift[knot])
        sync = np.full(len(nodes), NEVER)
        several = np.flatnonzero(workers > 1)
        counts, count = np.unique(nodes[several].astype(int), return_inverse=True)
        levels, growths = np.zeros(len(counts)), np.zeros(len(counts))
        for i, own in enumerate(counts.tolist()):
            line, offset, _ = self._level(own)
            levels[i], growths[i] = line @ x + offset, self._growth(own)[0] @ x
        deviation = np.zeros(len(several))
        for i, (own, ranks) in enumerate(self.layout.placements, self.layout.deviations.start):
            deviation[(nodes[several] == own) & (workers[several] == ranks)] = x[i]
        sync[several] = sync_value(nodes[several], workers[several], levels[count], growths[count], deviation)
        return step_value(x, compute, sync, accumulation)[1]

    def draw(self, shapes: Sequence[StepShape], draws: int, seed: int) -> Floats:
        """Draw the logarithms of what step times truly are, without the noise of a run: [draws, shapes]."""
        values, slopes, covariance = self.log_step(shapes)
        root = root_of(slopes @ covariance @ slopes.T)
        normal = np.random.default_rng(seed).standard_normal((draws, len(shapes)))
        return np.asarray(values + self.priors.width * normal @ root.T)

    def _extended(self, shapes: Sequence[StepShape]) -> tuple[Layout, Floats, Floats]:
        """Add the parameters of sizes that were not measured: each a known one's line plus a spread."""
        old, priors = self.layout, self.priors
        new = old.extended(shapes)
        if new == old:
            return old, self.parameters, self.covariance
        lines = np.zeros((new.size, old.size))
        spread = np.zeros((new.size, new.size))
        offset = np.zeros(new.size)
        lines[:6, :6] = np.eye(6)
        for i, nodes in enumerate(new.node_counts):
            level, growth = new.levels.start + i, new.growths.start + i
            lines[level], offset[level], spread[level, level] = self._level(nodes)
            lines[growth], spread[growth, growth] = self._growth(nodes)
        for i, placement in enumerate(new.placements, new.deviations.start):
            if placement in old.placements:
                lines[i, old.deviations.start + old.placements.index(placement)] = 1
            else:
                spread[i, i] = priors.fresh_deviation**2
        among = _alike(new.knots, new.knots)
        weights, across = self._drift_lines(new.knots)
        lines[new.drifts, old.drifts] = weights
        spread[new.drifts, new.drifts] = priors.drift**2 * (among - weights @ across.T)
        covariance = lines @ self.covariance @ lines.T + spread
        return new, lines @ self.parameters + offset, covariance

    def _level(self, nodes: int) -> tuple[Floats, float, float]:
        """Give a node count's level as a line over the known parameters, an offset, and its own variance."""
        old, priors = self.layout, self.priors
        line = np.zeros(old.size)
        near = nodes if nodes in old.node_counts else _nearest(nodes, old.node_counts)
        if near is None:  # nothing synchronised was measured
            first = priors.first_level(nodes)
            return line, self.middle + first.mean, first.deviation**2
        line[old.levels.start + old.node_counts.index(near)] = 1
        if near == nodes:
            return line, 0.0, 0.0
        if near == 1 or nodes == 1:
            return line, priors.across.mean * (1 if near == 1 else -1), priors.across.deviation**2
        doublings = float(np.log2(nodes / near))
        line[Layout.NODE_GROWTH] = doublings
        return line, 0.0, priors.level_spread**2 * abs(doublings)

    def _growth(self, nodes: int) -> tuple[Floats, float]:
        """Give a node count's growth as a line over the known parameters, and its own variance."""
        line, known = np.zeros(self.layout.size), nodes in self.layout.node_counts
        own = self.layout.growths.start + self.layout.node_counts.index(nodes) if known else Layout.GROWTH
        line[own] = 1
        return line, 0.0 if known else self.priors.growth_spread**2

    def _drift_lines(self, knots: Sequence[int]) -> tuple[Floats, Floats]:
        """Give knots' drifts as lines over the known ones, and their correlation with them."""
        known = self.layout.knots
        across = _alike(knots, known)
        return np.asarray(np.linalg.solve(_alike(known, known), across.T).T), across


def fit_rows(rows: Rows, priors: StepPriors) -> Posterior:
    """Find the most likely parameters; the noise is estimated along with them (at least one row)."""
    layout = Layout.of(rows.shapes)
    search = _Search(layout, rows, priors)
    x, noise = search.start(), priors.noise
    for _ in range(_ROUNDS):
        found = least_squares(search.residuals, x, search.slopes, args=(noise,), max_nfev=200)
        x = found.x
        covariance = np.linalg.inv(found.jac.T @ found.jac)
        misfit = search.grid.log_step(x)[0] - search.log_step
        slopes = found.jac[: len(misfit)]
        used = float(np.trace(slopes @ covariance @ slopes.T))  # parameters that the data decided
        dof = priors.noise_dof + max(0.0, len(misfit) - used)
        before, noise = noise, float(np.sqrt((priors.noise_dof * priors.noise**2 + (misfit**2).sum()) / dof))
        if abs(np.log(noise / before)) < _SETTLED:
            break
    return Posterior(layout, x, covariance, noise, dof, search.middle, priors)


class _Search:
    """The residuals of one fit: of the rows, then of the priors."""

    def __init__(self, layout: Layout, rows: Rows, priors: StepPriors) -> None:
        self.layout, self.priors = layout, priors
        self.grid = Grid(layout, rows.shapes)
        self.log_step = np.log(rows.step_time_s)
        self._split = ~np.isnan(rows.sync_time_s) & (self.grid.workers > 1)
        compute_s = np.where(self._split, rows.step_time_s - rows.sync_time_s, 1.0)
        self._log_pass = np.log(compute_s / self.grid.accumulation)
        self.middle = float(np.median(self.log_step))
        self._batch = float(np.log(np.median(self.grid.micro_batch)))
        alike = priors.drift**2 * _alike(layout.knots, layout.knots)
        self._whiten = np.linalg.inv(np.linalg.cholesky(alike))

    def start(self) -> Floats:
        """Give a point to search from."""
        layout, priors = self.layout, self.priors
        x = np.zeros(layout.size)
        x[Layout.OVERHEAD] = self.log_step.min() - np.log(2)
        x[Layout.PER_EXAMPLE] = x[Layout.OVERHEAD] - self._batch
        x[Layout.STRAGGLE] = priors.straggle.mean
        x[Layout.OVERLAP] = priors.log_overlap.mean
        x[Layout.GROWTH] = x[layout.growths] = priors.growth.mean
        x[layout.levels] = [self.middle + priors.first_level(nodes).mean for nodes in layout.node_counts]
        return x

    def residuals(self, x: Floats, noise: float) -> Floats:
        """Give the misfit of rows and priors, each over its standard deviation."""
        usual = self._usual(x)[0]
        return np.concatenate(
            [
                (self.grid.log_step(x)[0] - self.log_step) / noise,
                (self.grid.log_compute(x)[0] - self._log_pass)[self._split] / noise,
                np.sign(usual) * np.sqrt(2 * np.log1p(usual**2 / 2)),
                self._whiten @ x[self.layout.drifts],
                self._levels(x)[0],
            ]
        )

    def slopes(self, x: Floats, noise: float) -> Floats:
        """Give the derivatives of the residuals [residuals, parameters]."""
        usual, usual_slopes = self._usual(x)
        bend = np.sqrt(2 * np.log1p(usual**2 / 2))
        bent = np.where(
            np.abs(usual) < _FLAT, 1.0, np.abs(usual) / ((1 + usual**2 / 2) * np.maximum(bend, _FLAT))
        )
        drifts = np.zeros((len(self.layout.knots), self.layout.size))
        drifts[:, self.layout.drifts] = self._whiten
        return np.concatenate(
            [
                self.grid.log_step(x)[1] / noise,
                self.grid.log_compute(x)[1][self._split] / noise,
                bent[:, None] * usual_slopes,
                drifts,
                self._levels(x)[1],
            ]
        )

    def _usual(self, x: Floats) -> tuple[Floats, Floats]:
        """Give what priors say is small, over how small, and its derivatives.

        Data may leave these priors: they have the tails of Cauchy's distribution.
        """
        layout, priors = self.layout, self.priors
        rows = [
            (Layout.STRAGGLE, priors.straggle),
            (Layout.OVERLAP, priors.log_overlap),
            (Layout.GROWTH, priors.growth),
            (Layout.NODE_GROWTH, priors.node_growth),
            *(
                (i, Normal(0.0, priors.growth_spread))
                for i in range(layout.growths.start, layout.growths.stop)
            ),
            *(
                (i, Normal(0.0, priors.deviation))
                for i in range(layout.deviations.start, layout.deviations.stop)
            ),
        ]
        scale = np.array([prior.deviation for _, prior in rows])
        slopes = np.zeros((len(rows), layout.size))
        slopes[range(len(rows)), [i for i, _ in rows]] = 1
        slopes[4 : 4 + len(layout.node_counts), Layout.GROWTH] = -1  # growths are held to the shared one
        mean = np.array([prior.mean for _, prior in rows])
        return (slopes @ x - mean) / scale, slopes / scale[:, None]

    def _levels(self, x: Floats) -> tuple[Floats, Floats]:
        """Give how far levels are from what is expected: the first is free, the next grows from it.

        And how far the line of the compute time is from the rows; all vaguely.
        """
        layout, counts, priors = self.layout, self.layout.node_counts, self.priors
        slopes = np.zeros((2 + len(counts), layout.size))
        expected = np.zeros(2 + len(counts))
        slopes[0, Layout.OVERHEAD] = slopes[1, Layout.PER_EXAMPLE] = 1 / _VAGUE
        expected[:2] = self.middle / _VAGUE, (self.middle - self._batch) / _VAGUE
        for i, nodes in enumerate(counts):
            level = layout.levels.start + i
            if i == 0 or counts[i - 1] == 1:
                first = priors.first_level(nodes)
                slopes[2 + i, level] = 1 / first.deviation
                expected[2 + i] = (self.middle + first.mean) / first.deviation
            else:
                doublings = float(np.log2(nodes / counts[i - 1]))
                scale = priors.level_spread * np.sqrt(doublings)
                slopes[2 + i, [level, level - 1, Layout.NODE_GROWTH]] = np.array([1, -1, -doublings]) / scale
        return slopes @ x - expected, slopes


def _variances(slopes: Floats, covariance: Floats) -> Floats:
    return np.asarray(((slopes @ covariance) * slopes).sum(axis=1))


def _alike(left: Sequence[int], right: Sequence[int]) -> Floats:
    """Correlation of the drift between knots: falls off over a doubling of the micro-batch."""
    distance = np.abs(np.subtract.outer(np.array(left), np.array(right))) / KNOTS
    return np.asarray(np.exp(-distance)) + np.where(distance == 0, 1e-9, 0.0)


def _nearest(nodes: int, known: Sequence[int]) -> int | None:
    """Choose the node count to draw a level from: of several nodes if any, else the other kind."""
    if not known:
        return None
    kind = [n for n in known if (n == 1) == (nodes == 1)] or list(known)
    return min(kind, key=lambda n: abs(np.log2(n / nodes)))
