"""The best learning rate at every batch together: a line in log batch that bends, and deviations from it.

    log best rate = level + slope x z - fall x (softplus(z - bend) - softplus(-bend)) + deviation(batch)

with z = log(batch / middle) and softplus(x) = width log(1 + e^(x / width)). Slope, fall and width 1 are SGD's
lr_max / (1 + B_noise / B) (McCandlish et al. 2018, arXiv 1812.06162, section 2.2); slope 1/2 and fall 1
approach Adam's surge (Li et al. 2024, arXiv 2405.14578): a rise, a peak and a fall. The curves of all batches
share their shape (rate_curve), so that few trials a batch do.

The posterior is taken by population Monte Carlo (Cappé et al. 2004): draws from a proposal, weights, a new
proposal from the weighted draws. The best rate of each batch is integrated out on a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaler.fit.rate_curve import Cells, Scale, Shapes, Trial, cells_of, log_likelihoods
from scaler.stats import Floats

# Normal priors: (mean, standard deviation). Of the trend: level (from the rates tried), slope, fall (from the
# growth), bend (uniform), log width, log deviation. Of the curve: log curvature, log left, log right (from
# the scale), log seed spread and log rate spread (over the curvature), progress (from the best seen).
_LEVEL_SPREAD, _PROGRESS_SPREAD = 2.0, 1.0
_LOG_WIDTH, _LOG_DEVIATION = (np.log(0.6), 0.6), (np.log(0.1), 0.7)
_BEND_MARGIN = 1.5  # beyond the batches measured
_LOG_SEED, _LOG_RATE = (np.log(0.2), 0.8), (np.log(0.06), 0.8)

_SHAPES, _TRENDS, _GRID = 64, 1024, 121
_FEWEST_ROUNDS, _MOST_ROUNDS = 4, 9
_EFFECTIVE = (10.0, 100.0)  # draws of shapes and trends that the weights must be worth
_REACH = 3.5  # of a batch's grid, in log rate beyond those tried
_SAMPLES = 2000
_NORMAL = [0, 1, 2, 4, 5]  # of a trend's parameters, those with normal priors


@dataclass(frozen=True)
class GrowthPrior:
    """What is believed beforehand of the trend: mean and standard deviation of its slope and of its fall."""

    slope: tuple[float, float]
    fall: tuple[float, float]
    tie: float = np.inf
    """Standard deviation of log (steps to target x rate) between batches, each at its best rate.

    With SGD their product does not depend on the batch: 1 + B_noise / B cancels (McCandlish et al. 2018).
    """


USUAL_GROWTH = GrowthPrior(slope=(0.65, 0.3), fall=(0.7, 0.4))
"""Of any optimizer."""
GROWTH_OF_SGD = GrowthPrior(slope=(0.9, 0.2), fall=(0.8, 0.25), tie=0.25)
"""Linear up to the critical batch, then none."""
GROWTH_OF_ADAM = GrowthPrior(slope=(0.5, 0.2), fall=(0.6, 0.4))
"""The square root, then none or a fall."""


@dataclass(frozen=True)
class Posterior:
    """Samples of everything; arrays [samples], `log_rates` [samples, batches]."""

    batches: tuple[float, ...]
    shapes: Shapes
    log_rates: Floats
    """Of the best rate at each batch."""
    trend: Floats
    """[samples, 5]: level, slope, fall, bend, log width."""
    deviation: Floats
    middle: float
    """Logarithm of the batch at z = 0."""

    def trend_at(self, global_batch: float | Floats) -> Floats:
        """Give the trend's log rate at a batch, or at one of its own for every sample: [samples]."""
        z = np.broadcast_to(np.log(global_batch) - self.middle, len(self.trend))
        return _trend(self.trend, z[:, None])[:, 0]


def _trend(trend: Floats, z: Floats) -> Floats:
    """Trends [draws, 5] at z, [batches] or [draws, batches]: [draws, batches]."""
    level, slope, fall, bend, log_width = trend.T[:, :, None]
    width = np.exp(log_width)
    bent = width * (np.logaddexp(0, (z - bend) / width) - np.logaddexp(0, -bend / width))
    return np.asarray(level + slope * z - fall * bent)


def sample_posterior(trials: Sequence[Trial], scale: Scale, growth: GrowthPrior) -> Posterior | None:
    """Sample the posterior; None where no trial has a value. The same trials give the same samples."""
    cells, squares, dof = cells_of(trials, scale)
    if not any(own.reached for own in cells.values()):
        return None
    if not np.isfinite(growth.tie):  # a bound alone then says nothing
        cells = {batch: own for batch, own in cells.items() if own.reached}
    return _Sampler(cells, squares, dof, scale, growth).run()


class _Sampler:
    """One run of population Monte Carlo."""

    def __init__(
        self, cells: dict[float, Cells], squares: float, dof: int, scale: Scale, growth: GrowthPrior
    ) -> None:
        self._cells, self._squares, self._dof = cells, squares, dof
        self._random = np.random.default_rng(0)
        logs = np.log(np.array(list(cells)))
        self._middle = float(logs.mean())
        self._z = logs - self._middle
        reached = np.array([own.reached for own in cells.values()])
        best = np.array([own.best_log_rate for own in cells.values() if own.reached])
        tried = np.array([np.mean([own.log_rate.min(), own.log_rate.max()]) for own in cells.values()])
        self._bend = (float(self._z.min()) - _BEND_MARGIN, float(self._z.max()) + _BEND_MARGIN)
        middle_bend, half_bend = np.mean(self._bend), np.ptp(self._bend) / 2
        self._trend_prior = np.array(
            [
                (float(tried.mean()), _LEVEL_SPREAD),
                growth.slope,
                growth.fall,
                (middle_bend, half_bend),
                _LOG_WIDTH,
                _LOG_DEVIATION,
            ]
        )
        curvature = float(np.log(scale.curvature))
        least = np.array([own.mean[own.bounded == 0].min() for own in cells.values() if own.reached])
        progress = float((least - logs[reached] + best).mean())
        self._shape_prior = np.array(
            [
                (curvature, scale.curvature_spread),
                scale.log_left,
                scale.log_right,
                _LOG_SEED,
                _LOG_RATE,
                (progress, _PROGRESS_SPREAD),
            ]
        )
        self._tie, self._wall = growth.tie, scale.wall
        self._start = best, self._z[reached]
        self._grids = [
            np.linspace(own.log_rate.min() - _REACH, own.log_rate.max() + _REACH, _GRID)
            for own in cells.values()
        ]

    def run(self) -> Posterior:
        """Draw, weigh and propose again until the weights are worth enough draws."""
        shapes, log_q_shapes = self._first(self._shape_prior, _SHAPES)
        trends, log_q_trends = self._first(self._trend_prior, _TRENDS)
        for number in range(_MOST_ROUNDS):
            likelihoods = log_likelihoods(self._cells, _shapes(shapes, self._wall), self._grids, self._tie)
            kernels = self._kernels(trends)
            weights = _log_products(likelihoods, kernels)
            weights += (self._log_shape_prior(shapes) - log_q_shapes)[:, None]
            weights += self._log_trend_prior(trends) - log_q_trends
            power = _tempering(weights)
            settled = power == 1 and number >= _FEWEST_ROUNDS - 1
            if settled or number == _MOST_ROUNDS - 1:
                break
            of_shapes, of_trends = _marginals(power * weights)
            if number == 1 and power > 0.2:
                self._narrow(likelihoods, kernels, power * weights)
            shapes, log_q_shapes = _propose(self._random, shapes, of_shapes, _SHAPES)
            trends, log_q_trends = _propose(self._random, trends, of_trends, _TRENDS)
        return self._posterior(shapes, trends, weights, likelihoods, kernels)

    def _first(self, prior: Floats, draws: int) -> tuple[Floats, Floats]:
        """Draw from the prior; the trend's level from around the best rates seen."""
        found = prior[:, 0] + prior[:, 1] * self._random.standard_normal((draws, len(prior)))
        log_q = _log_normal(found, prior)
        if prior is self._trend_prior:
            found[:, 2] = np.abs(found[:, 2])
            found[:, 3] = self._random.uniform(*self._bend, draws)
            through = found[:, :5].copy()
            through[:, 0] = 0.0
            best, at = self._start
            centre = (best - _trend(through, at)).mean(axis=1)
            found[:, 0] = centre + self._random.standard_normal(draws)
            log_q = (
                _log_normal(found[:, [1, 2, 4, 5]], prior[[1, 2, 4, 5]]) - 0.5 * (found[:, 0] - centre) ** 2
            )
        return found, log_q

    def _log_trend_prior(self, trends: Floats) -> Floats:
        usual = _log_normal(trends[:, _NORMAL], self._trend_prior[_NORMAL])
        low, high = self._bend
        inside = (trends[:, 2] >= 0) & (trends[:, 3] >= low) & (trends[:, 3] <= high)
        return np.where(inside, usual, -np.inf)

    def _log_shape_prior(self, shapes: Floats) -> Floats:
        """Include what the spread within cells says of the seeds' spread."""
        log_variance = 2 * (shapes[:, 3] + shapes[:, 0])
        within = -0.5 * (self._dof * log_variance + self._squares * np.exp(-log_variance))
        return np.asarray(_log_normal(shapes, self._shape_prior) + within)

    def _kernels(self, trends: Floats) -> list[Floats]:
        """Give the trend's density [grid, draws] of the best log rate at each batch."""
        means, spread = _trend(trends[:, :5], self._z), np.exp(trends[:, 5])
        found = []
        for mean, grid in zip(means.T, self._grids, strict=True):
            # A deviation finer than the grid must not fall between its points.
            width = np.hypot(spread, 0.7 * (grid[1] - grid[0]))
            kernel = np.exp(-0.5 * ((grid[:, None] - mean) / width) ** 2) / width
            found.append(kernel * (grid[1] - grid[0]))
        return found

    def _narrow(self, likelihoods: list[Floats], kernels: list[Floats], weights: Floats) -> None:
        """Take finer grids where the best rates lie."""
        share = np.exp(weights - weights.max())
        for i, (likelihood, kernel) in enumerate(zip(likelihoods, kernels, strict=True)):
            own = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
            density = (own * ((share / (own @ kernel + 1e-300)) @ kernel.T)).sum(axis=0)
            below = np.cumsum(density) / density.sum()
            grid = self._grids[i]
            low, high = np.interp([1e-3, 1 - 1e-3], below, grid)
            pad = 3 * (grid[1] - grid[0]) + 0.25 * (high - low)
            self._grids[i] = np.linspace(max(grid[0], low - pad), min(grid[-1], high + pad), _GRID)

    def _posterior(
        self,
        shapes: Floats,
        trends: Floats,
        weights: Floats,
        likelihoods: list[Floats],
        kernels: list[Floats],
    ) -> Posterior:
        share = np.exp(weights - weights.max()).ravel()
        picked = self._random.choice(share.size, _SAMPLES, p=share / share.sum())
        of_shape, of_trend = np.unravel_index(picked, weights.shape)
        log_rates = np.empty((_SAMPLES, len(self._grids)))
        for i, (likelihood, kernel, grid) in enumerate(zip(likelihoods, kernels, self._grids, strict=True)):
            own = likelihood - likelihood.max(axis=1, keepdims=True)
            density = np.exp(own[of_shape]) * kernel.T[of_trend] + 1e-300
            below = np.cumsum(density, axis=1)
            wanted = self._random.uniform(size=(_SAMPLES, 1)) * below[:, -1:]
            at = (below < wanted).sum(axis=1)
            log_rates[:, i] = grid[at] + (grid[1] - grid[0]) * self._random.uniform(-0.5, 0.5, _SAMPLES)
        return Posterior(
            batches=tuple(self._cells),
            shapes=_shapes(shapes[of_shape], self._wall),
            log_rates=log_rates,
            trend=trends[of_trend, :5],
            deviation=np.exp(trends[of_trend, 5]),
            middle=self._middle,
        )


def _shapes(parameters: Floats, wall: bool) -> Shapes:
    log_curvature, log_left, log_right, log_seed, log_rate, progress = parameters.T
    curvature = np.exp(log_curvature)
    return Shapes(
        curvature,
        np.exp(log_left),
        np.exp(log_right),
        curvature * np.exp(log_seed),
        curvature * np.exp(log_rate),
        wall,
        progress,
    )


def _log_normal(values: Floats, prior: Floats) -> Floats:
    """Log density of independent normals, [draws], up to a constant."""
    return np.asarray(-0.5 * (((values - prior[:, 0]) / prior[:, 1]) ** 2).sum(axis=1))


def _log_products(likelihoods: list[Floats], kernels: list[Floats]) -> Floats:
    """Integrate every batch's best rate out: log weights [shapes, trends]."""
    total = np.zeros((len(likelihoods[0]), kernels[0].shape[1]))
    for likelihood, kernel in zip(likelihoods, kernels, strict=True):
        top = likelihood.max(axis=1, keepdims=True)
        total += top + np.log(np.exp(likelihood - top) @ kernel + 1e-300)
    return total


def _marginals(log_weights: Floats) -> tuple[Floats, Floats]:
    share = np.exp(log_weights - log_weights.max())
    share /= share.sum()
    return share.sum(axis=1), share.sum(axis=0)


def _tempering(log_weights: Floats) -> float:
    """Find the largest power up to 1 of the weights at which they are worth enough draws."""

    def enough(power: float) -> bool:
        worth = [1 / float((share**2).sum()) for share in _marginals(power * log_weights)]
        return all(own >= least for own, least in zip(worth, _EFFECTIVE, strict=True))

    low, high = 0.0, 1.0
    if enough(high):
        return high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def _propose(random: np.random.Generator, draws: Floats, share: Floats, number: int) -> tuple[Floats, Floats]:
    """Draw from a multivariate t (five degrees) with the weighted draws' mean and widened covariance."""
    mean = share @ draws
    covariance = 1.3 * ((draws - mean).T * share) @ (draws - mean) + 1e-6 * np.eye(draws.shape[1])
    root = np.linalg.cholesky(covariance)
    normal = random.standard_normal((number, draws.shape[1]))
    stretch = np.sqrt(5 / random.chisquare(5, (number, 1)))
    found = mean + (normal * stretch) @ root.T
    distance = ((normal * stretch) ** 2).sum(axis=1)
    return found, -0.5 * (5 + draws.shape[1]) * np.log1p(distance / 5)
