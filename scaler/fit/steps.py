"""Examples to target against the global batch: what runs of some batches say of any."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scaler.fit.batch_curve import CurvePriors, Curves
from scaler.stats import CONFIDENCE, Estimate, Floats, root_of

_METHOD = "mean of curves by their evidence; mixture of t on the log scale"
_ROUNDS = 10  # of what censored runs would have needed
_NO_WORD = 1e4  # variance of what says nothing
_NEGLIGIBLE = 1e-5  # weight of a curve over the likeliest one's
_DRAWS = 4000
_HARDLY, _SURELY = 0.1, 0.05  # a bend of less than this is none; the probability of it that is tolerated
_WIDEST = 100.0  # the critical batch's interval, high over low, beyond which it is not identified
_FAR = 4.0
_PATTERN = 2  # gaps between counts, of which fewer may be even by chance
_COARSEST, _EVEN = 1e-3, 1e-3  # quantum over the smallest count; deviation from whole multiples


@dataclass(frozen=True)
class BatchRuns:
    """The runs of one global batch, in any unit of data."""

    global_batch: float
    reached: tuple[float, ...]
    """Examples to target of each run that reached it."""
    censored: tuple[float, ...] = ()
    """How far each other run got without reaching it."""


@dataclass(frozen=True)
class _Scale:
    """The covariance of log E between batches under one strength of drift."""

    drift: float
    inverse: Floats
    """[batches, batches]"""


@dataclass(frozen=True)
class StepsFit:
    """Curves weighed by their evidence, with a deviation of every batch from them."""

    curves: Curves
    priors: CurvePriors
    log_batches: Floats
    log_examples: Floats
    """Mean of each batch's runs [batches]."""
    scales: tuple[_Scale, ...]
    weights: Floats
    """Of every strength of drift and curve [scales, curves]; they add up to 1."""
    noise: float
    """Standard deviation of log E between fresh runs of a batch."""
    degrees_of_freedom: float
    quantum: float
    """What all counts are whole multiples of, such as an epoch; 0 if nothing."""
    samples: int

    @property
    def smallest_batch(self) -> float:
        """The smallest batch that was run."""
        return float(np.exp(self.log_batches[0]))

    @property
    def largest_batch(self) -> float:
        """The largest batch that was run."""
        return float(np.exp(self.log_batches[-1]))

    @property
    def model(self) -> str:
        """The likeliest curve's form, and how far it stands for all."""
        by_curve = self.weights.sum(axis=0)
        forms = [self.curves.formula(i) for i in range(len(by_curve))]
        shares = {form: by_curve[[f == form for f in forms]].sum() for form in dict.fromkeys(forms)}
        best = max(shares, key=lambda form: shares[form])
        return f"{best} ({shares[best]:.0%} of the evidence; {_METHOD})"

    @property
    def identifiable(self) -> bool:
        """Whether the curve bends within the data, enough to tell the critical batch within a factor of ten.

        A curve that is flat or proportional over all of it does not.
        """
        if len(self.log_batches) < 3:
            return False
        by_curve = self.weights.sum(axis=0)
        unbent = by_curve[self.curves.bend(self.log_batches[-1]) < _HARDLY].sum()
        all_bent = by_curve[self.curves.bend(self.log_batches[0]) > 1 - _HARDLY].sum()
        _, low, high = self._critical()
        return bool(unbent < _SURELY and all_bent < _SURELY and high - low < np.log(_WIDEST))

    def critical_batch(self) -> Estimate | None:
        """Give B_crit in examples, or None where the data cannot identify it."""
        if not self.identifiable:
            return None
        value, low, high = np.exp(self._critical()).tolist()
        return Estimate(value=value, low=low, high=high, samples=self.samples, method=_METHOD)

    def examples(self, global_batch: float, n_seeds: int = 1) -> Estimate:
        """Predict the mean examples to target over `n_seeds` fresh runs."""
        return self.examples_at([global_batch], [n_seeds])[0]

    def examples_at(self, global_batches: Sequence[float], n_seeds: Sequence[int]) -> list[Estimate]:
        """Predict the mean examples to target over so many fresh runs of each batch."""
        log_batches = np.log(np.asarray(global_batches, dtype=float))
        means, variances, weights = self._latent(log_batches)
        order = np.argsort(means, axis=0)
        found = []
        for i, seeds in enumerate(n_seeds):
            sums = np.cumsum(weights[order[:, i]])
            value = float(means[order[np.searchsorted(sums, 0.5 * sums[-1]), i], i])
            fresh = self.noise**2 / seeds + _rounding(self.quantum, value)
            low, high = _quantiles(means[:, i], variances[:, i] + fresh, weights, self.degrees_of_freedom)
            low, value, high = np.exp([min(low, value), value, max(high, value)]).tolist()
            found.append(Estimate(value=value, low=low, high=high, samples=self.samples, method=_METHOD))
        return found

    def draw(
        self, global_batches: Sequence[float], draws: int, seed: int = 0, n_seeds: float = math.inf
    ) -> Floats:
        """Draw the mean examples to target over `n_seeds` fresh runs, all batches together: [draws, batches].

        Of infinitely many runs: what the mean may truly be.
        """
        generator = np.random.default_rng(seed)
        log_batches = np.log(np.asarray(global_batches, dtype=float))
        found = []
        shares = self.weights.sum(axis=1)
        for scale, own, count in zip(
            self.scales, self.weights, generator.multinomial(draws, shares / shares.sum()), strict=True
        ):
            if count:
                means, covariance = self._around(scale, np.arange(len(own)), log_batches)
                covariance = covariance + np.eye(len(log_batches)) * self.noise**2 / n_seeds
                which = generator.choice(len(own), size=count, p=own / own.sum())
                normal = generator.standard_normal((count, len(log_batches)))
                wide = np.sqrt(self.degrees_of_freedom / generator.chisquare(self.degrees_of_freedom, count))
                found.append(means[which] + wide[:, None] * (normal @ root_of(covariance).T))
        return np.asarray(np.exp(generator.permutation(np.concatenate(found))))

    def is_extrapolated(self, global_batch: float) -> bool:
        """Whether a batch lies beyond 4 x of what was measured."""
        far = _FAR * (1 + 1e-9)  # logarithms round
        return global_batch > far * self.largest_batch or far * global_batch < self.smallest_batch

    def latent(self, log_batches: Floats) -> Floats:
        """Give the expected logarithm of a batch's mean over many runs [batches]."""
        means, _, weights = self._latent(log_batches)
        return np.asarray(weights @ means)

    def _latent(self, log_batches: Floats) -> tuple[Floats, Floats, Floats]:
        """Give mean and variance of log E [curves kept, batches], and the weights [curves kept].

        The mean of a batch over many runs, that is, without their noise. E_min is integrated out under a
        flat prior of its logarithm; a batch's deviation follows from those of the batches near it.
        """
        means, variances, weights = [], [], []
        for scale, own in zip(self.scales, self.weights, strict=True):
            kept = np.flatnonzero(own > _NEGLIGIBLE * self.weights.max())
            around, covariance = self._around(scale, kept, log_batches)
            means.append(around)
            variances.append(np.broadcast_to(np.maximum(np.diag(covariance), 0), around.shape))
            weights.append(own[kept])
        return np.concatenate(means), np.concatenate(variances), np.concatenate(weights)

    def _around(self, scale: _Scale, curves: NDArray[np.intp], log_batches: Floats) -> tuple[Floats, Floats]:
        """Give the mean of log E around curves [curves, batches], and its covariance [batches, batches]."""
        known = self.curves.log_examples(self.log_batches)[curves]
        asked = self.curves.log_examples(log_batches)[curves]
        level, precision = _level(scale, self.log_examples - known)
        rest = self.log_examples - known - level[:, None]
        across = _alike(self.priors, scale.drift, log_batches, self.log_batches)
        lines = across @ scale.inverse
        unlike = 1 - lines.sum(axis=1)
        covariance = _alike(self.priors, scale.drift, log_batches, log_batches) - lines @ across.T
        covariance += np.outer(unlike, unlike) / precision
        return level[:, None] + asked + rest @ lines.T, covariance

    def _critical(self) -> Floats:
        """Give log B_crit's median and the ends of its interval."""
        grid, place = np.unique(self.curves.log_critical, return_inverse=True)
        sums = np.cumsum(np.bincount(place, weights=self.weights.sum(axis=0)))
        edges = np.append(grid, 2 * grid[-1] - grid[-2]) - (grid[1] - grid[0]) / 2
        tail = (1 - CONFIDENCE) / 2
        return np.asarray(np.interp([0.5, tail, 1 - tail], np.append(0, sums), edges))


def fit_batch_runs(runs: Sequence[BatchRuns], priors: CurvePriors | None = None) -> StepsFit:
    """Fit runs of at least one batch that reached the target.

    A censored run counts as what it would have needed, with as little weight as so little is known of it
    (the likelihood that it needs more, to second order around what the others say).
    """
    priors = priors or CurvePriors()
    runs = sorted((run for run in runs if run.reached or run.censored), key=lambda run: run.global_batch)
    reached = [np.log(np.array(run.reached)) for run in runs]
    dof = priors.noise_dof + sum(max(0, len(logs) - 1) for logs in reached)
    squares = sum(float(((logs - logs.mean()) ** 2).sum()) for logs in reached if len(logs))
    noise = float(np.sqrt((priors.noise_dof * priors.noise**2 + squares) / dof))
    quantum = _quantum([count for run in runs for count in run.reached])
    log_batches = np.log([run.global_batch for run in runs])
    curves = Curves(priors, log_batches[0], log_batches[-1])
    expected: Floats | None = None
    for _ in range(_ROUNDS if any(run.censored for run in runs) else 1):
        values, variances = _means(runs, noise, quantum, expected)
        scales, weights = _weighed(curves, priors, log_batches, values, variances)
        found = StepsFit(
            curves=curves,
            priors=priors,
            log_batches=log_batches,
            log_examples=values,
            scales=scales,
            weights=weights,
            noise=noise,
            degrees_of_freedom=dof,
            quantum=quantum,
            samples=sum(len(logs) for logs in reached),
        )
        expected = found.latent(log_batches)
    return found


def _means(
    runs: Sequence[BatchRuns], noise: float, quantum: float, expected: Floats | None
) -> tuple[Floats, Floats]:
    """Give the logarithm of each batch's mean over its runs, and its variance [batches]."""
    values, variances = np.zeros(len(runs)), np.full(len(runs), _NO_WORD)
    for i, run in enumerate(runs):
        parts = []
        if run.reached:
            value = float(np.log(np.mean(run.reached)))
            parts.append((value, noise**2 / len(run.reached)))
        for limit in run.censored if expected is not None else ():
            assert expected is not None
            above = (np.log(limit) - expected[i]) / noise
            pull = float(np.exp(stats.norm.logpdf(above) - stats.norm.logsf(above)))
            known = max(pull * (pull - above), 1e-9)  # share of a run's information
            parts.append((expected[i] + noise * pull / known, min(noise**2 / known, _NO_WORD)))
        if parts:
            points, widths = np.array(parts).T
            variances[i] = 1 / (1 / widths).sum()
            values[i] = variances[i] * (points / widths).sum()
            variances[i] += _rounding(quantum, values[i])
    return values, variances


def _weighed(
    curves: Curves, priors: CurvePriors, log_batches: Floats, values: Floats, variances: Floats
) -> tuple[tuple[_Scale, ...], Floats]:
    """Weigh every strength of drift and curve by the likelihood of the means, E_min integrated out."""
    known = curves.log_examples(log_batches)
    scales, logs = [], []
    for drift, probability in priors.drift:
        covariance = _alike(priors, drift, log_batches, log_batches) + np.diag(variances)
        root = np.diag(np.linalg.cholesky(covariance))  # of the determinant
        scale = _Scale(drift, np.asarray(np.linalg.inv(covariance)))
        level, precision = _level(scale, values - known)
        rest = values - known - level[:, None]
        misfit = np.einsum("ki,ij,kj->k", rest, scale.inverse, rest)
        size = np.log(root).sum() + 0.5 * np.log(precision)
        logs.append(np.log(probability) + curves.log_prior - 0.5 * misfit - size)
        scales.append(scale)
    evidence = np.array(logs)
    weights = np.exp(evidence - evidence.max())
    return tuple(scales), weights / weights.sum()


def _level(scale: _Scale, differences: Floats) -> tuple[Floats, float]:
    """Give the best log E_min of every curve [curves], and how precise it is."""
    pulls = scale.inverse.sum(axis=0)
    precision = float(pulls.sum())
    return differences @ pulls / precision, precision


def _alike(priors: CurvePriors, drift: float, left: Floats, right: Floats) -> Floats:
    """Covariance of two batches' deviations from the curve: near ones share the drift."""
    distance = np.abs(left[:, None] - right[None, :])
    shared = drift**2 * np.exp(-distance / (priors.drift_doublings * np.log(2)))
    return np.asarray(shared + np.where(distance < 1e-9, priors.own**2, 0.0))


def _quantiles(means: Floats, variances: Floats, weights: Floats, dof: float) -> tuple[float, float]:
    """Give the ends of the 90% interval of a mixture of t distributions, from draws in strata."""
    sums = np.cumsum(weights)
    strata = (np.arange(_DRAWS) + 0.5) / _DRAWS
    which = np.minimum(np.searchsorted(sums, strata * sums[-1]), len(sums) - 1)
    shuffled = np.random.default_rng(0).permutation(strata)
    draws = means[which] + np.sqrt(variances[which]) * stats.t.ppf(shuffled, dof)
    low, high = np.quantile(draws, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)


def _quantum(counts: Sequence[float]) -> float:
    """Find what all counts are whole multiples of, where that is coarse enough to matter; else 0."""
    values = np.unique(np.asarray(counts, dtype=float))
    gaps = np.diff(values)
    if len(gaps) < _PATTERN or gaps.min() < _COARSEST * values[0]:
        return 0.0
    multiples = values / gaps.min()
    return float(gaps.min()) if np.allclose(multiples, np.round(multiples), atol=_EVEN) else 0.0


def _rounding(quantum: float, log_value: float) -> float:
    """Variance that counting in quanta adds to a logarithm: uniform within one."""
    return float((quantum * np.exp(-log_value)) ** 2 / 12)
