"""The search for the fastest global batch and its learning rate, in few trials.

Every trial is the one that tells most for its examples, at the rate that all trials so far advise
(`fit/convergence.py`); where ranks are free, the next best ones run beside it. Seeds are spent where the
answer is.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from scipy.stats import norm

from scaler.batch import BatchPlan
from scaler.fit.convergence import ConvergenceFit, fit_convergence
from scaler.fit.learning_rate import BatchResult, batch_results
from scaler.fit.optimizer import Optimizer, optimizer_of
from scaler.measure.evidence import Evidence, plan_task
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.records import ConvergenceRecord, WorkloadRecord
from scaler.units import round_rate
from scaler.workload import Workload

StepTime = Callable[[int], float]
"""Global batch -> seconds of a step with the fastest plan; any unit will do."""

_EPOCHS = 100  # a trial's default limit
_STEP = 3.0  # between the first learning rates
_EXTENSIONS = 4  # steps beyond the first two rates, while the best lies at the edge
_HOPELESS = 1.25  # a rate that needs so many times the best rate's examples cannot win any more
_FAR = 4  # times the reference's batch, up to which the first rates are tried
_GROWTH = 1.8  # in examples from a batch to the next, over that in proportion to the batch
_UNLUCKY = 2.0  # a seed that needs so many times the predicted examples need not end
_MOST_RUNS = 10.5  # examples of the whole search, in runs at the best batch; luck may add one
_WORTH = 0.01  # least expected share of the time to target that a trial as long as the best run is to save
_APART = 1.4  # least factor between two rates of a batch
_USUAL_GROWTH, _UNKNOWN = 0.5, 0.5  # exponent of examples above the only batch known; deviation of their log
_WIDTH = 3.29  # of a 90% interval, in standard deviations
_MANY = 10**6  # seeds: the mean without its luck
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
        step_time_s: StepTime,
        optimizer: Optimizer,
    ) -> None:
        self._evidence, self._workload, self._seeds, self._limit = evidence, workload, seeds, limit
        self._plans, self._step_time_s, self._optimizer = plans, functools.cache(step_time_s), optimizer
        self._trials: list[ConvergenceRecord] = []
        self._fitted: ConvergenceFit | None = None
        self._predicted: dict[int, tuple[float, float]] = {}
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
        while (batches := self._affordable(self._worthiest())) and self._round(batches):
            pass
        for _ in range(2):  # seeds may make another batch the best
            best = self._best()
            rate, limit = self._fit().learning_rate(best), _UNLUCKY * self._examples(best)
            if not self._ask([self._request(best, rate, limit, seed) for seed in range(self._seeds)]):
                break

    def _likeliest(self, first: int) -> int:
        """Give the batch that is expected to be fastest, not far above one whose rate is known to train."""
        near = [batch for batch in self._plans if first <= batch <= _FAR * first]
        return min(near, key=lambda batch: self._step_time_s(batch) * batch ** (_USUAL_GROWTH - 1))

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

    def _worthiest(self) -> list[int]:
        """Order batches by what their next trial tells, for its examples, of which batch is the fastest.

        Of those tried and their neighbours; as many as run at once. None where it does not matter any more.
        """
        best, batches, reached = self._best(), sorted(self._plans), self._reached()
        tried = {trial.plan.global_batch for trial in self._trials}
        near = {
            b for i, b in enumerate(batches) if b not in tried and reached & {*batches[max(0, i - 1) : i + 2]}
        }
        worth = {
            b: self._stake(b) * self._examples(best) / self._examples(b) for b in (reached | near) - {best}
        }
        found: list[int] = []
        for rival in sorted(worth, key=lambda batch: -worth[batch]):
            if worth[rival] < _WORTH:
                break
            # Of a rival that was tried, and the best, the one that is known less tells more.
            pair = [rival] if rival in near else sorted((best, rival), key=self._doubt, reverse=True)
            found += [batch for batch in pair if batch not in found]
        return found[: self._at_once]

    def _doubt(self, batch: int) -> float:
        return self._time(batch)[1] / math.sqrt(self._examples(batch))

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
        self._fitted, self._predicted = None, {}
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
        return math.exp(self._log_examples(batch)[0])

    def _log_examples(self, batch: int) -> tuple[float, float]:
        """Predict the logarithm of a batch's mean examples to target, and its standard deviation; once."""
        if batch not in self._predicted:
            self._predicted[batch] = self._predict(self._fit(), batch)
        return self._predicted[batch]

    @staticmethod
    def _predict(fit: ConvergenceFit, batch: int) -> tuple[float, float]:
        if fit.steps is None:
            (only,) = fit.runs
            growth = _USUAL_GROWTH * max(0.0, math.log(batch / only))
            return math.log(fit.examples(only).value) + growth, _UNKNOWN
        found = fit.examples(batch, _MANY)
        assert found.low is not None and found.high is not None
        return math.log(found.value), math.log(found.high / found.low) / _WIDTH

    def _time(self, batch: int) -> tuple[float, float]:
        """Predict the logarithm of the time to target, and its standard deviation."""
        examples, deviation = self._log_examples(batch)
        return examples + math.log(self._step_time_s(batch) / batch), deviation

    def _best(self) -> int:
        return min(self._reached(), key=lambda batch: self._time(batch)[0])

    def _stake(self, batch: int) -> float:
        """Expect by how much (log time) a batch is faster than the best so far, where it is."""
        (best, own), (time, other) = self._time(self._best()), self._time(batch)
        gap, deviation = time - best, math.hypot(own, other)
        z = gap / deviation
        return float(deviation * (norm.pdf(z) - z * norm.sf(z)))

    def _affordable(self, batches: Iterable[int]) -> list[int]:
        """Keep the trials that leave enough for the seeds at the best batch."""
        spent = sum(trial.trained_examples for trial in self._trials)
        left, kept = (_MOST_RUNS - self._seeds + 1) * self._examples(self._best()) - spent, []
        for batch in batches:
            left -= self._examples(batch)
            if left < 0:
                break
            kept.append(batch)
        return kept


def trial_limit(workload: Workload, sizes: WorkloadRecord) -> int:
    """Examples after which a trial stops without having reached the target."""
    return workload.target.max_examples or _EPOCHS * sizes.train_examples


def search_learning_rates(
    evidence: Evidence,
    workload: Workload,
    seeds: int,
    sizes: WorkloadRecord,
    plans: Mapping[int, BatchPlan | None],
    step_time_s: StepTime = lambda _: 1.0,
) -> None:
    """Find the best learning rate at the global batches of `plans` that may have the least time to target.

    The reference is tried, then at the batch that is likely to be fastest, up to 4 x as large, rates 3 x
    apart until the best lies within. Then batches tried and their neighbours get the trials that tell most of
    which is the fastest, each at the rate that all trials advise, while that is worth their examples. The
    fastest gets `seeds` seeds, and so does another that this makes the fastest. Without `step_time_s` every
    step takes as long.
    """
    known = {batch: plan for batch, plan in plans.items() if plan is not None}
    if known:
        optimizer = optimizer_of([sizes])
        limit = trial_limit(workload, sizes)
        _Search(evidence, workload, seeds, limit, known, step_time_s, optimizer).run()
