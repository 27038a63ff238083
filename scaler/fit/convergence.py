"""What all trials together say: the learning rate of every batch, and the examples to target at it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scaler.fit.batch_curve import CurvePriors
from scaler.fit.learning_rate import fit_learning_rates, telling
from scaler.fit.optimizer import Optimizer
from scaler.fit.rate_fit import RateFit
from scaler.fit.steps import BatchRuns, StepsFit, fit_batch_runs
from scaler.records import ConvergenceRecord
from scaler.stats import Estimate, Floats

_PRIORS = CurvePriors(noise=0.16, noise_dof=3.0)  # seeds of small workloads spread wider than of large ones
_AS_GOOD = 0.05  # log cost, for each seed it has, that is not worth another rate
_FAR = 0.8  # log shift of a trial that is let pass
_SURE = 0.15  # its standard deviation: about what seeds differ by


@dataclass(frozen=True)
class ConvergenceFit:
    """Learning rates and examples to target of every batch at which a trial reached the target."""

    rates: RateFit
    steps: StepsFit | None
    """Absent where only one batch reached the target."""
    runs: Mapping[int, BatchRuns]
    """Of each batch, ascending: its trials, carried to its learning rate along the fitted curve."""
    seeds: Mapping[int, Mapping[float, int]]
    """How many trials reached the target at each batch and rate."""
    chosen: Mapping[int, float]
    """Learning rate of each batch in `runs`."""

    def learning_rate(self, global_batch: int) -> float:
        """Give the rate to train a batch with; the advised one where no trial reached the target."""
        chosen = self.chosen.get(global_batch)
        return chosen if chosen is not None else self.rates.advised_rate(global_batch)

    def examples(self, global_batch: int, n_seeds: int = 1) -> Estimate:
        """Predict the mean examples to target at that rate, over so many fresh runs.

        Where one batch only reached the target, its mean, without an interval.
        """
        if self.steps is not None:
            return self.steps.examples(global_batch, n_seeds)
        ((batch, own),) = self.runs.items()
        assert batch == global_batch, "another batch is not predicted from one"
        mean = float(np.mean(own.reached))
        return Estimate(value=mean, samples=len(own.reached), method="mean over seeds")

    def examples_of(self, global_batches: Sequence[float]) -> list[Estimate]:
        """Predict `examples` of one fresh run of each batch."""
        if self.steps is not None:
            return self.steps.examples_at(global_batches, [1] * len(global_batches))
        return [self.examples(int(batch)) for batch in global_batches]

    def typical_examples(self, global_batches: Sequence[float]) -> Floats:
        """Predict the mean examples to target of each batch; nan where one other batch only reached it."""
        known = [b for b in global_batches if self.steps is not None or b in self.runs]
        values = {b: found.value for b, found in zip(known, self.examples_of(known), strict=True)}
        return np.array([values.get(b, np.nan) for b in global_batches])

    def draw_examples(
        self, global_batches: Sequence[int], draws: int, seed: int = 0, n_seeds: float = math.inf
    ) -> Floats:
        """Draw the mean examples to target at `learning_rate` over so many fresh runs: [draws, batches].

        Of infinitely many: what it may truly be. At a batch that was not tried the rate may miss the best by
        more than at one that was. Where one batch only reached the target its mean is not known to vary.
        """
        if self.steps is None:
            return np.broadcast_to(self.typical_examples(global_batches), (draws, len(global_batches)))
        found = self.steps.draw(global_batches, draws, seed, n_seeds)
        for i, batch in enumerate(global_batches):
            if batch not in self.chosen:
                found[:, i] *= self.rates.draw_cost(batch, self.learning_rate(batch), draws, seed + batch)
        return found


def fit_convergence(records: Iterable[ConvergenceRecord], optimizer: Optimizer) -> ConvergenceFit | None:
    """Fit all trials together; None where none reached the target."""
    trials = telling(records)
    rates = fit_learning_rates(trials, optimizer)
    if rates is None:
        return None
    seeds: dict[int, Counter[float]] = {}
    for trial in sorted((trial for trial in trials if trial.reached), key=lambda t: t.plan.global_batch):
        seeds.setdefault(trial.plan.global_batch, Counter())[trial.learning_rate] += 1
    chosen = {batch: _chosen_rate(rates, batch, own) for batch, own in seeds.items()}
    runs = {batch: _carried(trials, rates, batch, rate) for batch, rate in chosen.items()}
    steps = fit_batch_runs(list(runs.values()), _PRIORS) if len(runs) > 1 else None
    return ConvergenceFit(rates, steps, runs, seeds, chosen)


def _chosen_rate(rates: RateFit, global_batch: int, seeds: Mapping[float, int]) -> float:
    """Choose the advised rate, or one tried that is as good.

    Of several as good, the one with the most seeds; the more it has, the more is overlooked.
    """
    advised = rates.advised_rate(global_batch)
    least = rates.expected_loss(global_batch, advised)
    worse = {rate: rates.expected_loss(global_batch, rate) - least for rate in seeds}
    good = [rate for rate in seeds if worse[rate] < _AS_GOOD * seeds[rate]]
    return max(good, key=lambda rate: (seeds[rate], -worse[rate]), default=advised)


def _carried(trials: Sequence[ConvergenceRecord], rates: RateFit, batch: int, to_rate: float) -> BatchRuns:
    """Carry a batch's trials to one rate; leave out those from which it is far or unsure, unless all are."""
    own = [t for t in trials if t.plan.global_batch == batch and t.examples and t.stop != "diverged"]
    shifts, deviations = rates.shifts(batch, [trial.learning_rate for trial in own], to_rate)
    doubt = np.maximum(np.abs(shifts) / _FAR, deviations / _SURE)
    limit = max(1.0, min(d for trial, d in zip(own, doubt, strict=True) if trial.reached))
    runs: dict[bool, list[float]] = {True: [], False: []}
    for trial, shift, own_doubt in zip(own, shifts, doubt, strict=True):
        if own_doubt <= limit:
            runs[trial.reached].append(trial.examples * math.exp(shift))
    return BatchRuns(batch, tuple(runs[True]), tuple(runs[False]))
