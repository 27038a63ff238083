"""How examples to target (or a loss) depend on the learning rate at one global batch.

With u = log rate - log best rate, a trial lies above the best by

    f(u) = curvature x left x right x log((right e^(-u / right) + left e^(u / left)) / (left + right))

a parabola near the optimum that turns into a line `left` below it and `right` above it: too low a rate costs
in proportion, too high a rate meets a wall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from scaler.stats import Floats

_NOISE_GROWTH = 0.3  # exponent of the seeds' spread in the rate: too high a rate is a gamble
_NOISE_RANGE = (-2.0, 1.0)  # of u, within which it grows
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
    def best_log_rate(self) -> float:
        """The rate with the least mean among those that have one, else with the least bound."""
        return float(self.log_rate[np.argmin(np.where(self.bounded > 0, np.inf, self.mean))])


@dataclass(frozen=True)
class Scale:
    """What is known of the curve's height beforehand."""

    curvature: float
    """Usual value of f''(0)."""
    curvature_spread: float
    """Standard deviation of its logarithm."""
    cap: float
    """Trials so much above the best count as at least that: how bad is of no use."""
    diverged: float
    """What a trial that diverged is at least above the best: a cliff may come soon after the optimum."""


EXAMPLES = Scale(curvature=0.7, curvature_spread=0.6, cap=float(np.log(4.0)), diverged=float(np.log(1.2)))
"""For log examples to target: twice or half the best rate usually costs about a sixth more."""


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

    A trial far above the best or diverged becomes a bound. Batches without a single value are left out.
    """
    found: dict[float, Cells] = {}
    squares, dof = 0.0, 0
    for batch in sorted({trial.global_batch for trial in trials}):
        own = [trial for trial in trials if trial.global_batch == batch]
        values = [t.value for t in own if np.isfinite(t.value) and not t.bounded]
        if not values:
            continue
        ceiling = min(values) + scale.cap
        rows, spreads = [], []
        for log_rate in sorted({trial.log_rate for trial in own}):
            seeds = [trial for trial in own if trial.log_rate == log_rate]
            worst = [t.value if np.isfinite(t.value) else min(values) + scale.diverged for t in seeds]
            seen = np.minimum(worst, ceiling)
            bounded = any(t.bounded or not t.value < ceiling for t in seeds)
            if not bounded:
                spreads.append((log_rate, float(((seen - seen.mean()) ** 2).sum()), len(seen) - 1))
            rows.append((log_rate, seen.mean(), len(seen), float(bounded)))
        cells = Cells(*np.array(rows).T)
        if not cells.bounded.all():
            found[batch] = cells
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

    def excess(self, u: Floats) -> Floats:
        """f(u), the shapes along the first axis of `u`."""
        curvature, left, right = (
            p.reshape(-1, *[1] * (u.ndim - 1)) for p in (self.curvature, self.left, self.right)
        )
        both = np.logaddexp(np.log(right) - u / right, np.log(left) + u / left) - np.log(left + right)
        return np.asarray(curvature * left * right * both)


def _noise_growth(u: Floats) -> Floats:
    """Give the variance between seeds over that at the best rate."""
    return np.asarray(np.exp(2 * _NOISE_GROWTH * np.clip(u, *_NOISE_RANGE)))


def log_likelihoods(cells: Mapping[float, Cells], shapes: Shapes, grids: Sequence[Floats]) -> list[Floats]:
    """Give, for each batch, the log likelihood [draws, grid] of a best log rate on its grid.

    The level of a batch is integrated out under a flat prior; bounds are judged at its mean.
    """
    return [_log_likelihood(own, shapes, grid) for own, grid in zip(cells.values(), grids, strict=True)]


def _log_likelihood(cells: Cells, shapes: Shapes, grid: Floats) -> Floats:
    excess = shapes.excess((cells.log_rate - grid[:, None])[None])  # [draws, grid, rates]
    u = cells.log_rate - grid[:, None]
    noise = shapes.seed_spread[:, None, None] ** 2 * _noise_growth(u) / cells.seeds
    variance = noise + shapes.rate_spread[:, None, None] ** 2 + (_MISFIT * excess) ** 2
    seen = 1 - cells.bounded
    weights = seen / variance
    total = weights.sum(axis=-1)
    level = (weights * (cells.mean - excess)).sum(axis=-1) / total
    residual = cells.mean - excess - level[..., None]
    found = -0.5 * ((weights * residual**2 + seen * np.log(variance)).sum(axis=-1) + np.log(total))
    if cells.bounded.any():
        above = log_ndtr(-residual / np.sqrt(variance + 1 / total[..., None]))
        found = found + (cells.bounded * above).sum(axis=-1)
    return np.asarray(found)
