"""How examples to target (or a loss) depend on the learning rate at one global batch.

With u = log rate - log best rate, a trial lies above the best by

    f(u) = curvature x side^2 x (e^(s |u| / side) - 1 - s |u| / side),    side = left for u < 0, else right

a parabola near the optimum that turns, some `side` away from it, into a line where s = -1 and into a wall
where s = 1. Too low a rate costs in proportion. Too high a rate is a wall for examples to a target: a little
more, and it is never reached. For a final loss it need not be one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from scaler.stats import Floats

_NOISE_GROWTH = 0.3  # exponent of the seeds' spread in the rate: too high a rate is a gamble
_NOISE_RANGE = (-2.0, 1.0)  # of u, within which it grows
_STEEPEST = 30.0  # of u / right, where a wall is high enough
_MISFIT = 0.25  # of how far a trial lies above the best, what the curve's form may be wrong by


@dataclass(frozen=True)
class Trial:
    """What one trial came to: log examples to the target, or a loss."""

    global_batch: float
    log_rate: float
    value: float
    """Less is better. Not finite where it diverged."""
    bounded: bool = False
    """Whether `value` is only a lower bound: the target was not reached until then."""


@dataclass(frozen=True)
class Cells:
    """Means over the seeds of each rate at one batch; arrays [rates]."""

    log_rate: Floats
    mean: Floats
    seeds: Floats
    bounded: Floats
    """1 where some seed did not reach the target, so that the mean is a lower bound."""

    @property
    def reached(self) -> bool:
        """Whether any rate has a mean."""
        return not self.bounded.all()

    @property
    def best_log_rate(self) -> float:
        """The rate with the least mean, where any has one."""
        return float(self.log_rate[np.argmin(np.where(self.bounded > 0, np.inf, self.mean))])


@dataclass(frozen=True)
class Scale:
    """What is known of the curve beforehand; (mean, standard deviation) are of normals."""

    curvature: float
    """Usual value of f''(0)."""
    curvature_spread: float
    """Standard deviation of its logarithm."""
    cap: float
    """Trials so much above the best count as at least that: how bad is of no use."""
    diverged: float
    """What a trial that diverged is at least above the best: a cliff may come soon after the optimum."""
    log_left: tuple[float, float] = (math.log(1.7), 0.8)
    log_right: tuple[float, float] = (math.log(2.5), 0.8)
    wall: bool = False
    """Whether the curve ends in a wall above the best rate."""


EXAMPLES = Scale(
    curvature=0.8,
    curvature_spread=0.5,
    cap=math.log(4.0),
    diverged=math.log(1.2),
    log_left=(math.log(1.1), 0.5),
    log_right=(math.log(0.28), 0.6),
    wall=True,
)
"""For log examples to target: half the best rate costs a sixth more, twice of it may never arrive."""


def scale_of_losses(trials: Sequence[Trial]) -> Scale:
    """Guess the height of a loss's curve: losses come in any unit."""
    excess, squares = [], []
    for batch in {trial.global_batch for trial in trials}:
        own = [t for t in trials if t.global_batch == batch and np.isfinite(t.value)]
        if own:
            best = min(own, key=lambda trial: trial.value)
            excess += [t.value - best.value for t in own if t.log_rate != best.log_rate]
            squares += [(t.log_rate - best.log_rate) ** 2 for t in own if t.log_rate != best.log_rate]
    typical = float(np.median(excess)) if excess else 0.0
    if typical <= 0:
        typical = max((abs(t.value) for t in trials if np.isfinite(t.value)), default=1.0) * 0.01 or 1.0
    return Scale(2 * typical / float(np.median(squares) if squares else 1.0), 1.2, 4 * typical, 0.3 * typical)


def cells_of(trials: Sequence[Trial], scale: Scale) -> tuple[dict[float, Cells], float, int]:
    """Average trials over seeds, for each batch: (cells, squares within them as at the best rate, degrees).

    A trial far above the best or diverged becomes a bound. Batches without a single value have bounds only.
    """
    found: dict[float, Cells] = {}
    squares, dof = 0.0, 0
    for batch in sorted({trial.global_batch for trial in trials}):
        own = [trial for trial in trials if trial.global_batch == batch]
        values = [t.value for t in own if np.isfinite(t.value) and not t.bounded]
        if not values:
            own = [trial for trial in own if np.isfinite(trial.value)]
        least = min(values, default=np.inf)
        ceiling = least + scale.cap
        rows, spreads = [], []
        for log_rate in sorted({trial.log_rate for trial in own}):
            seeds = [trial for trial in own if trial.log_rate == log_rate]
            worst = [t.value if np.isfinite(t.value) else least + scale.diverged for t in seeds]
            seen = np.minimum(worst, ceiling)
            bounded = any(t.bounded or not t.value < ceiling for t in seeds)
            if not bounded:
                spreads.append((log_rate, float(((seen - seen.mean()) ** 2).sum()), len(seen) - 1))
            rows.append((log_rate, seen.mean(), len(seen), float(bounded)))
        if not rows:
            continue
        found[batch] = cells = Cells(*np.array(rows).T)
        if cells.reached:
            dof += sum(number for _, _, number in spreads)
            squares += sum(
                own / float(_noise_growth(np.array(log_rate - cells.best_log_rate)))
                for log_rate, own, _ in spreads
            )
    return found, squares, dof


@dataclass(frozen=True)
class Shapes:
    """Draws of the curve's parameters, shared by all batches; arrays [draws]."""

    curvature: Floats
    left: Floats
    right: Floats
    seed_spread: Floats
    """Standard deviation of one trial at the best rate."""
    rate_spread: Floats
    """Standard deviation of a rate's mean over many seeds around the curve."""
    wall: bool
    progress: Floats
    """log (steps to target x rate) at the best rate: nearly the same at every batch."""

    def excess(self, u: Floats) -> Floats:
        """f(u), the shapes along the first axis of `u`."""
        curvature, left, right = (
            p.reshape(-1, *[1] * (u.ndim - 1)) for p in (self.curvature, self.left, self.right)
        )
        side = np.where(u < 0, left, right)
        share = np.abs(u) / side * np.where((u > 0) & self.wall, 1.0, -1.0)
        return np.asarray(curvature * side**2 * (np.expm1(np.minimum(share, _STEEPEST)) - share))


def _noise_growth(u: Floats) -> Floats:
    """Give the variance between seeds over that at the best rate."""
    return np.asarray(np.exp(2 * _NOISE_GROWTH * np.clip(u, *_NOISE_RANGE)))


def log_likelihoods(
    cells: Mapping[float, Cells], shapes: Shapes, grids: Sequence[Floats], tie: float
) -> list[Floats]:
    """Give, for each batch, the log likelihood [draws, grid] of a best log rate on its grid.

    The level of a batch is integrated out; bounds are judged at its mean. `tie` is the standard deviation of
    log (steps x rate) between batches, each at its best rate; infinite where values are no examples.
    """
    return [
        _log_likelihood(own, shapes, grid, np.log(batch), tie)
        for (batch, own), grid in zip(cells.items(), grids, strict=True)
    ]


def _log_likelihood(cells: Cells, shapes: Shapes, grid: Floats, log_batch: float, tie: float) -> Floats:
    excess = shapes.excess((cells.log_rate - grid[:, None])[None])  # [draws, grid, rates]
    u = cells.log_rate - grid[:, None]
    noise = shapes.seed_spread[:, None, None] ** 2 * _noise_growth(u) / cells.seeds
    variance = noise + shapes.rate_spread[:, None, None] ** 2 + (_MISFIT * excess) ** 2
    seen = 1 - cells.bounded
    weights = seen / variance
    tied = shapes.progress[:, None] + log_batch - grid  # the level that the rate implies
    total = weights.sum(axis=-1) + tie**-2
    level = ((weights * (cells.mean - excess)).sum(axis=-1) + tie**-2 * tied) / total
    residual = cells.mean - excess - level[..., None]
    found = -0.5 * ((weights * residual**2 + seen * np.log(variance)).sum(axis=-1) + np.log(total))
    found -= 0.5 * tie**-2 * (tied - level) ** 2
    if cells.bounded.any():
        above = log_ndtr(-residual / np.sqrt(variance + 1 / total[..., None]))
        found = found + (cells.bounded * above).sum(axis=-1)
    return np.asarray(found)
