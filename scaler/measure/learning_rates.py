"""The search for the fastest global batch and its learning rate, in few trials.

Trials and launches are weighed in one list: what is asked next is expected to better the choice most for the
seconds it takes (`worth.py`), a trial at the rate that all trials so far advise (`fit/convergence.py`). Where
ranks are free, the next best trials run beside it. Seeds are spent where the answer is.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from scaler.batch import BatchPlan
from scaler.fit.convergence import ConvergenceFit, fit_convergence
from scaler.fit.learning_rate import BatchResult, batch_results
from scaler.fit.optimizer import Optimizer, optimizer_of
from scaler.measure.evidence import Evidence, plan_task
from scaler.measure.step_times import GivenTimes, StepTimes, least_log_price, log_price
from scaler.measure.worth import worth
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.records import ConvergenceRecord, WorkloadRecord
from scaler.stats import Floats
from scaler.units import round_rate
from scaler.workload import Workload

_Asked = TypeVar("_Asked", int, BatchPlan)

_EPOCHS = 100  # a trial's default limit
_STEP = 3.0  # between the first learning rates
_EXTENSIONS = 4  # steps beyond the first two rates, while the best lies at the edge
_HOPELESS = 1.25  # a rate that needs so many times the best rate's examples cannot win any more
_FAR = 4  # times the reference's batch, up to which the first rates are tried
_GROWTH = 1.8  # in examples from a batch to the next, over that in proportion to the batch
_UNLUCKY = 2.0  # a seed that needs so many times the predicted examples need not end
MOST_RUNS = 12.0
"""Examples of the whole search, in runs at the best batch; luck may add one."""
_WORTH = 0.005  # of the objective: what a measurement is expected to save at least
_DRAWS = 1000
_FINALISTS = 24  # best plans, between which measurements are to decide
_MOST_LAUNCHES = 12  # that compete with trials
_START_S = 0.35  # of a trial, beside its steps
_APART = 1.4  # least factor between two rates of a batch
_USUAL_GROWTH, _UNKNOWN = 0.5, 0.5  # exponent of examples above the only batch known; deviation of their log
_USUAL_NOISE = 0.16  # of a trial, while one batch is known
_SIDE_BY_SIDE = 3  # most trials at once: what one tells, the others cannot heed


class _Search:
    """Trials of one workload. Decides only by those asked here, so that a resumed run asks the same."""

    def __init__(
        self,
        evidence: Evidence,
        workload: Workload,
        seeds: int,
        limit: int,
        plans: Mapping[int, BatchPlan],
        times: StepTimes,
        objective: str | None,
        optimizer: Optimizer,
    ) -> None:
        self._evidence, self._workload, self._seeds, self._limit = evidence, workload, seeds, limit
        self._plans, self._times, self._objective, self._optimizer = plans, times, objective, optimizer
        self._trials: list[ConvergenceRecord] = []
        self._fitted: ConvergenceFit | None = None
        self._expected = 3 + len(plans) + 2 + seeds
        ranks = max(plan.workers for plan in plans.values())
        self._at_once = max(1, min(_SIDE_BY_SIDE, evidence.workers // ranks))

    def run(self) -> None:
        """Bracket the best rate at a likely batch, find the fastest batch, then spend seeds there."""
        reference, batches = self._workload.reference, sorted(self._plans)
        first = min(batches, key=lambda batch: abs(math.log(batch / reference.global_batch)))
        rate = reference.learning_rate * math.sqrt(first / reference.global_batch)
        self._try(first, [rate], self._limit)
        start = self._likeliest(first) if self._reached() else first
        self._bracket(start, rate * math.sqrt(start / first))
        if start not in self._reached():
            self._bracket(first, rate)
        if not self._reached():
            return
        self._settle()
        for _ in range(2):  # seeds may make another batch the best
            best = self._best()
            rate, limit = self._fit().learning_rate(best), _UNLUCKY * self._examples(best)
            if not self._ask([self._request(best, rate, limit, seed) for seed in range(self._seeds)]):
                break
        self._settle()

    def _likeliest(self, first: int) -> int:
        """Give the batch that is expected to be fastest, not far above one whose rate is known to train."""
        near = [batch for batch in self._plans if first <= batch <= _FAR * first]
        return min(near, key=lambda batch: self._log_price(batch) + _USUAL_GROWTH * math.log(batch))

    def _bracket(self, batch: int, rate: float) -> None:
        """Try a rate and go on beside the best while that lies at the edge.

        Upwards first: too high a rate is found out sooner than one that is too low. Both ways where the
        first does not arrive.
        """
        self._try(batch, [rate], self._limit_of(batch) if self._reached() else self._limit)
        arrived = batch in self._reached()
        self._try(batch, [rate * _STEP] if arrived else [rate / _STEP, rate * _STEP], self._limit)
        for _ in range(_EXTENSIONS):
            result = self._result(batch)
            if result is None or (edge := result.edge()) == 0:
                break
            self._try(batch, [result.rates[0] / _STEP if edge < 0 else result.rates[-1] * _STEP], self._limit)

    def _round(self, batches: Sequence[int]) -> bool:
        """Try batches side by side; where a new one does not arrive, then at a tried neighbour's lower rate.

        Tells if all was answered.
        """
        new = {batch: self._near(batch) for batch in batches if batch not in self._reached()}
        limits = {batch: self._limit_of(batch) for batch in batches}
        advised = {batch: self._fit().rates.advised_rate(batch) for batch in batches}
        beside = {batch: self._fit().learning_rate(near) for batch, near in new.items()}
        seeds = Counter(trial.plan.global_batch for trial in self._trials)
        if not self._ask([self._request(b, advised[b], limits[b], seeds[b]) for b in batches]):
            return False
        lower = [b for b in new if b not in self._reached() and beside[b] < advised[b] / _APART]
        return not lower or self._ask([self._request(b, beside[b], limits[b]) for b in lower])

    def _near(self, batch: int) -> int:
        """Give the batch that reached the target and is nearest."""
        return min(self._reached(), key=lambda reached: abs(math.log(reached / batch)))

    def _limit_of(self, batch: int) -> float:
        """Examples after which a trial at the advised rate need not end."""
        if batch in self._reached():
            return _UNLUCKY * self._examples(batch)
        near = self._near(batch)
        return _GROWTH * self._examples(near) * max(1.0, batch / near)

    def _settle(self) -> None:
        """Ask what is worth most for the seconds it takes, until nothing is worth asking or affordable."""
        answered, launched = True, 0
        while answered:
            trials, launches = self._worthiest()
            batches = self._affordable(list(trials)[: self._at_once])
            launch = next(iter(launches), None) if launched < _MOST_LAUNCHES else None
            if launch is not None and not (batches and trials[batches[0]] > launches[launch]):
                answered = self._times.time_again(launch)
                launched += 1
            else:
                answered = bool(batches) and self._round(batches)

    def _worthiest(self) -> tuple[dict[int, float], dict[BatchPlan, float]]:
        """Give what trials of batches and launches of plans are worth a second; best first, none idle."""
        batches = self._contested()
        examples = self._draw_examples(batches)
        plans = self._finalists(batches, examples.mean(axis=0))
        steps_s = self._times.draw_s(plans, _DRAWS)
        place = [batches.index(plan.global_batch) for plan in plans]
        scores = examples[:, place] + log_price(self._objective, plans, steps_s)
        noise = [*np.full(len(batches), self._noise()), *np.full(len(plans), self._times.noise)]
        found = worth(scores, np.concatenate([examples, np.log(steps_s)], axis=1), np.array(noise))
        of_trials, of_launches = np.split(found, [len(batches)])
        trials_s, launches_s = self._trial_s(batches, examples.mean(axis=0)), self._times.costs_s(plans)
        return _by_second(batches, of_trials, trials_s), _by_second(plans, of_launches, launches_s)

    def _contested(self) -> list[int]:
        """List the batches that reached the target, and the untried neighbours of those."""
        batches, reached = sorted(self._plans), self._reached()
        tried = {trial.plan.global_batch for trial in self._trials}
        near = [
            b for i, b in enumerate(batches) if b not in tried and reached & {*batches[max(0, i - 1) : i + 2]}
        ]
        return sorted({*reached, *near})

    def _finalists(self, batches: Sequence[int], log_examples: Floats) -> list[BatchPlan]:
        """List the plans of these batches that may be best; of nothing timed the trials' own."""
        plans = self._times.plans(batches) or [self._plans[batch] for batch in batches]
        known = dict(zip(batches, log_examples.tolist(), strict=True))
        prices = log_price(self._objective, plans, self._times.typical_s(plans)).tolist()
        order = sorted(range(len(plans)), key=lambda i: known[plans[i].global_batch] + prices[i])
        return [plans[i] for i in order[:_FINALISTS]]

    def _trial_s(self, batches: Sequence[int], log_examples: Floats) -> Floats:
        """Predict how long a trial at each batch takes."""
        steps_s = self._times.typical_s([self._plans[batch] for batch in batches])
        return np.asarray(_START_S + np.exp(log_examples) / np.array(batches) * steps_s)

    def _try(self, batch: int, rates: Sequence[float], limit: float) -> None:
        """Ask for one seed of each rate, up to where it cannot win any more."""
        result = self._result(batch)
        if result is not None and result.examples:
            limit = min(limit, _HOPELESS * result.mean_examples)
        self._ask([self._request(batch, rate, limit) for rate in rates])

    def _request(self, batch: int, rate: float, limit: float, seed: int = 0) -> ConvergenceRequest:
        return ConvergenceRequest(
            plan=self._plans[batch],
            learning_rate=round_rate(rate),
            warmup_examples=self._workload.reference.warmup_examples,
            max_examples=math.ceil(min(limit, self._limit)),
            seed=seed,
        )

    def _ask(self, requests: Iterable[ConvergenceRequest]) -> bool:
        """Ask for trials side by side that were not asked before; tell if there were any and all answered."""
        known = {(t.plan.global_batch, t.learning_rate, t.seed) for t in self._trials}
        tasks = [
            plan_task(probe_convergence, request)
            for request in requests
            if (request.plan.global_batch, request.learning_rate, request.seed) not in known
        ]
        found = [
            record
            for record in self._evidence.ask("convergence", tasks, self._expected)
            if isinstance(record, ConvergenceRecord)
        ]
        self._trials += found
        self._fitted = None
        return 0 < len(found) == len(tasks)

    def _fit(self) -> ConvergenceFit:
        """Fit the trials so far, once."""
        self._fitted = self._fitted or fit_convergence(self._trials, self._optimizer)
        assert self._fitted is not None, "a trial reached the target"
        return self._fitted

    def _result(self, batch: int) -> BatchResult | None:
        return batch_results(self._trials).get(batch)

    def _reached(self) -> set[int]:
        return {trial.plan.global_batch for trial in self._trials if trial.reached}

    def _examples(self, batch: int) -> float:
        """Predict the mean examples to target at a batch."""
        return math.exp(float(self._log_examples([batch])[0]))

    def _log_examples(self, batches: Sequence[int]) -> Floats:
        """Predict the logarithm of each batch's mean examples to target."""
        fit = self._fit()
        if fit.steps is not None:
            return np.log(fit.typical_examples(batches))
        (only,) = fit.runs
        growth = _USUAL_GROWTH * np.maximum(0.0, np.log(np.array(batches) / only))
        return np.asarray(math.log(fit.examples(only).value) + growth)

    def _draw_examples(self, batches: Sequence[int]) -> Floats:
        """Draw the logarithm of each batch's mean examples to target [draws, batches]."""
        fit = self._fit()
        if fit.steps is not None:
            return np.log(fit.draw_examples(batches, _DRAWS))
        normal = np.random.default_rng(0).standard_normal((_DRAWS, len(batches)))
        return np.asarray(self._log_examples(batches) + _UNKNOWN * normal)

    def _noise(self) -> float:
        """By how much a trial differs from its batch's mean: standard deviation, log scale."""
        steps = self._fit().steps
        return steps.noise if steps is not None else _USUAL_NOISE

    def _log_price(self, batch: int) -> float:
        return least_log_price(self._times, self._objective, batch)

    def _best(self) -> int:
        batches = sorted(self._reached())
        scores = [e + self._log_price(b) for b, e in zip(batches, self._log_examples(batches), strict=True)]
        return batches[int(np.argmin(scores))]

    def _affordable(self, batches: Iterable[int]) -> list[int]:
        """Keep the trials that leave enough for the seeds at the best batch."""
        spent = sum(trial.trained_examples for trial in self._trials)
        left, kept = (MOST_RUNS - self._seeds + 1) * self._examples(self._best()) - spent, []
        for batch in batches:
            left -= self._examples(batch)
            if left < 0:
                break
            kept.append(batch)
        return kept


def _by_second(asked: Sequence[_Asked], worths: Floats, costs_s: Floats) -> dict[_Asked, float]:
    """Give what each is worth a second, best first; without those that are not worth asking, or cannot be."""
    kept = [i for i in range(len(asked)) if worths[i] > _WORTH and np.isfinite(costs_s[i])]
    return {asked[i]: worths[i] / costs_s[i] for i in sorted(kept, key=lambda i: -worths[i] / costs_s[i])}


def trial_limit(workload: Workload, sizes: WorkloadRecord) -> int:
    """Examples after which a trial stops without having reached the target."""
    return workload.target.max_examples or _EPOCHS * sizes.train_examples


def search_learning_rates(
    evidence: Evidence,
    workload: Workload,
    seeds: int,
    sizes: WorkloadRecord,
    plans: Mapping[int, BatchPlan | None],
    times: StepTimes | None = None,
    objective: str | None = None,
) -> None:
    """Find the best learning rate at the global batches of `plans` that may have the least time to target.

    The reference is tried, then at the batch that is likely to be fastest, up to 4 x as large, rates 3 x
    apart until the best lies within. Then comes what betters the choice most for its seconds, while that is
    worth asking: trials at batches tried and their neighbours, at the rate that all trials advise, and
    launches of the plans that may be best. The best batch gets `seeds` seeds, and so does another that this
    makes the best. Without `times` every step takes as long.
    """
    known = {batch: plan for batch, plan in plans.items() if plan is not None}
    if known:
        optimizer = optimizer_of([sizes])
        limit = trial_limit(workload, sizes)
        _Search(evidence, workload, seeds, limit, known, times or GivenTimes(), objective, optimizer).run()
