"""What the trials say of the best learning rate: at any batch, its growth, and what another rate costs."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaler.fit.rate_curve import EXAMPLES, Scale, Trial, cells_of, scale_of_losses
from scaler.fit.rate_posterior import USUAL_GROWTH, GrowthPrior, Posterior, sample_posterior
from scaler.stats import CONFIDENCE, Estimate, Floats
from scaler.units import format_count

METHOD = (
    "one curve in log rate for all batches, its best rate on a bending line in log batch with deviations; "
    "posterior quantiles"
)
_IDENTIFIED = 1.0  # width of the exponent's interval beyond which the trials did not tell it
_FLAT = 0.25  # exponent below which the best rate is called saturated
_BARELY = 1e-4
_CHOICES = np.linspace(0.02, 0.98, 49)  # quantiles of the best rate
_WORST = EXAMPLES.cap  # log cost of a rate at which nothing trains
_MOST = np.log(100.0)  # log cost that is told


@dataclass(frozen=True)
class RateFit:
    """The posterior, and which batches' best rates have worse ones tried on both sides."""

    posterior: Posterior
    trials: int
    bracketed: frozenset[float]
    out_of: tuple[float, ...]
    """Every batch with a trial that has a value."""

    def best_rate(self, global_batch: float) -> Estimate:
        """Give the best learning rate at a batch, measured or not: median and 90% interval."""
        return self._estimate(np.exp(self._log_rates(global_batch)))

    def advised_rate(self, global_batch: float) -> float:
        """Give the rate with the least expected examples (or exp(loss)) at a batch.

        Lower than the middle of the best rate's interval, as too high a rate costs more than too low a one.
        """
        log_rates = np.quantile(self._log_rates(global_batch), _CHOICES)
        costs = np.exp(np.minimum(self._excess(global_batch, log_rates), _WORST)).mean(axis=0)
        return float(np.exp(log_rates[costs.argmin()]))

    def cost(self, global_batch: float, learning_rate: float) -> Estimate:
        """Give the examples that a rate takes at a batch over those that the best rate takes."""
        excess = self._excess(global_batch, np.log([learning_rate]))[:, 0]
        return self._estimate(np.exp(np.minimum(excess, _MOST)))

    def draw_cost(self, global_batch: float, learning_rate: float, draws: int, seed: int = 0) -> Floats:
        """Draw `cost` from what the trials leave open: [draws]."""
        excess = np.minimum(self._excess(global_batch, np.log([learning_rate]))[:, 0], _WORST)
        return np.asarray(np.exp(np.random.default_rng(seed).choice(excess, draws)))

    def shifts(
        self, global_batch: float, learning_rates: Sequence[float], to_rate: float
    ) -> tuple[Floats, Floats]:
        """Give mean and standard deviation of log examples at one rate over those at others, [rates] each."""
        excess = np.minimum(self._excess(global_batch, np.log([to_rate, *learning_rates])), _WORST)
        shifts = excess[:, :1] - excess[:, 1:]
        return shifts.mean(axis=0), shifts.std(axis=0)

    def expected_loss(self, global_batch: float, learning_rate: float) -> float:
        """Average the logarithm of `cost`: what is at stake while the best rate is not known better."""
        return float(np.minimum(self._excess(global_batch, np.log([learning_rate])), _WORST).mean())

    def exponent(self) -> Estimate | None:
        """Give p in lr ~ B^p over the batches measured, up to the bend; None where trials do not tell it."""
        if len(self.bracketed) < 2:
            return None
        bend = self.posterior.trend[:, 3] + self.posterior.middle
        low, high = self._span
        ends = np.clip(bend, low + np.log(2.0), max(high, low + np.log(2.0)))
        rise = self.posterior.trend_at(np.exp(ends)) - self.posterior.trend_at(np.exp(low))
        found = self._estimate(rise / (ends - low))
        assert found.low is not None and found.high is not None
        return found if found.high - found.low < _IDENTIFIED else None

    def saturates(self) -> bool | None:
        """Whether the best rate has stopped to grow (exponent under 0.25) at the largest batch measured.

        None where the trials do not tell at 90%.
        """
        if len(self.bracketed) < 2:
            return None
        below = float((self._last_exponent() < _FLAT).mean())
        return True if below > CONFIDENCE else False if below < 1 - CONFIDENCE else None

    def falls(self) -> bool:
        """Whether the best rate falls (at 90%) at the largest batch measured."""
        return len(self.bracketed) > 1 and float((self._last_exponent() < 0).mean()) > CONFIDENCE

    def is_extrapolated(self, global_batch: float) -> bool:
        """Whether a batch lies beyond 4 x of those measured."""
        low, high = np.exp(self._span)
        return bool(global_batch > 4.001 * high or 4.001 * global_batch < low)

    def unidentified(self) -> tuple[str, ...]:
        """Say what the trials do not tell."""
        notes = []
        if len(self.out_of) == 1:
            notes.append(
                f"one global batch ({format_count(self.out_of[0])}) only: how the best rate grows with the "
                "batch is not identifiable; at other batches it is the usual growth"
            )
        open_ended = [batch for batch in self.out_of if batch not in self.bracketed]
        if open_ended:
            notes.append(
                "not identifiable at global batch "
                + ", ".join(map(format_count, open_ended))
                + ": the best rate tried has no worse one on both sides, so the optimum may lie beyond"
            )
        if len(self.bracketed) > 1 and self.exponent() is None:
            notes.append("the exponent of the growth is not identifiable from these trials")
        return tuple(notes)

    @property
    def identifiable(self) -> bool:
        """Whether the growth is known, from at least two batches with a best rate inside those tried."""
        return self.exponent() is not None

    @property
    def _span(self) -> tuple[float, float]:
        return float(np.log(min(self.out_of))), float(np.log(max(self.out_of)))

    def _last_exponent(self) -> Floats:
        """Slope of the trend over the last doubling measured."""
        end = self._span[1]
        before = self.posterior.trend_at(np.exp(end) / 2)
        return np.asarray((self.posterior.trend_at(np.exp(end)) - before) / np.log(2.0))

    def _log_rates(self, global_batch: float) -> Floats:
        """Sample the best log rate at a batch."""
        if global_batch in self.posterior.batches:
            return np.asarray(self.posterior.log_rates[:, self.posterior.batches.index(global_batch)])
        own = np.random.default_rng(1).standard_normal(len(self.posterior.deviation))
        return self.posterior.trend_at(global_batch) + self.posterior.deviation * own

    def _excess(self, global_batch: float, log_rates: Floats) -> Floats:
        """How far rates lie above the best, on the log scale: [samples, rates]."""
        return self.posterior.shapes.excess(log_rates - self._log_rates(global_batch)[:, None])

    def _estimate(self, samples: Floats) -> Estimate:
        low, middle, high = np.quantile(samples, [0.5 - CONFIDENCE / 2, 0.5, 0.5 + CONFIDENCE / 2])
        return Estimate(
            value=float(middle), low=float(low), high=float(high), samples=self.trials, method=METHOD
        )


def fit_examples(trials: Sequence[Trial], growth: GrowthPrior = USUAL_GROWTH) -> RateFit | None:
    """Fit log examples to target; None where no trial reached it."""
    return _fit(tuple(trials), EXAMPLES, growth)


def fit_losses(trials: Sequence[Trial]) -> RateFit | None:
    """Fit losses, on the log scale where all are positive; None where none is finite."""
    finite = [trial.value for trial in trials if np.isfinite(trial.value)]
    if not finite:
        return None
    if min(finite) > 0:
        trials = [Trial(t.global_batch, t.log_rate, float(np.log(t.value)), t.bounded) for t in trials]
    return _fit(tuple(trials), scale_of_losses(trials), USUAL_GROWTH)


@functools.lru_cache(maxsize=16)
def _fit(trials: tuple[Trial, ...], scale: Scale, growth: GrowthPrior) -> RateFit | None:
    posterior = sample_posterior(trials, scale, growth)
    if posterior is None:
        return None
    cells = {batch: own for batch, own in cells_of(trials, scale)[0].items() if own.reached}
    bracketed = frozenset(
        batch
        for batch, own in cells.items()
        if own.log_rate.min() + _BARELY < own.best_log_rate < own.log_rate.max() - _BARELY
    )
    return RateFit(posterior, len(trials), bracketed, tuple(cells))
