"""The search for the best learning rate, from the reference batch outwards, in few trials.

Many rates get one seed and a short limit; seeds are spent where the answer is. What one batch taught is
known at the next through the fit of all trials (`fit/rate_fit.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence

from scaler.batch import BatchPlan
from scaler.fit.learning_rate import BatchResult, batch_results, fit_learning_rates
from scaler.fit.rate_fit import RateFit
from scaler.measure.evidence import Evidence, plan_task
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.records import ConvergenceRecord, WorkloadRecord
from scaler.workload import Workload

StepTime = Callable[[int], float]
"""Global batch -> seconds of a step with the fastest plan; any unit will do."""

_EPOCHS = 100  # a trial's default limit
_STEP = 3.0  # between the first learning rates
_EXTENSIONS = 3  # steps beyond the first three rates, while the best lies at the edge
_HOPELESS = 1.25  # a rate that needs so many times the best rate's examples cannot win any more
_GROWTH = 1.3  # in examples from a batch to the next, over that in proportion to the batch
_LOSES = 1.25  # a batch whose time to target is so many times the best's ends the walk that way
_KNOWN = 0.04  # expected log cost of the fitted best rate below which a batch needs no other rate
_APART = 1.4  # least factor between two rates of a batch
_AS_GOOD = 0.01  # log cost that is not worth a rate of its own
_ROUNDS = (2, 0)  # more rates at the batch that is best so far; settling may make another the best


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
    ) -> None:
        self._evidence, self._workload, self._seeds, self._limit = evidence, workload, seeds, limit
        self._plans, self._step_time_s = plans, step_time_s
        self._trials: list[ConvergenceRecord] = []
        self._expected = 3 + len(plans) + _ROUNDS[0] + seeds

    def run(self) -> None:
        """Bracket the best rate at the reference, walk both ways, then settle on the best batch."""
        reference, batches = self._workload.reference, sorted(self._plans)
        start = min(batches, key=lambda batch: abs(math.log(batch / reference.global_batch)))
        middle = batches.index(start)
        self._bracket(start, reference.learning_rate * math.sqrt(start / reference.global_batch))
        if self._time(start) == math.inf:
            return
        for way in (batches[middle + 1 :], batches[:middle][::-1]):
            before = start
            for batch in way:
                if not self._look(batch, before) or self._time(batch) > _LOSES * self._best_time():
                    break
                before = batch
        for more in _ROUNDS:
            if not self._settle(more):
                break

    def _bracket(self, batch: int, rate: float) -> None:
        """Try the reference's rate and its neighbours, and go on while the best lies at the edge."""
        self._try(batch, [rate], self._limit)
        self._try(batch, [rate / _STEP, rate * _STEP], self._limit)
        for _ in range(_EXTENSIONS):
            result = self._result(batch)
            if result is None or (edge := result.edge()) == 0:
                break
            self._try(batch, [result.rates[0] / _STEP if edge < 0 else result.rates[-1] * _STEP], self._limit)

    def _look(self, batch: int, before: int) -> bool:
        """Try what the fit says is best at a batch; tell whether the target was reached.

        Where it was not, once more the rate found at the batch before, if that is clearly lower.
        """
        beside, fit = self._result(before), self._fit()
        assert beside is not None and beside.best_rate is not None and fit is not None
        limit = _GROWTH * beside.mean_examples * max(1.0, batch / before)
        best = fit.best_rate(batch).value
        for rate in (best, beside.best_rate):
            if rate == best or rate < best / _APART:
                self._try(batch, [rate], limit)
            if (result := self._result(batch)) is not None and result.best_rate is not None:
                return True
        return False

    def _settle(self, more: int) -> bool:
        """At the batch with the least time, try up to `more` rates while the best is not known, then seeds.

        Tells if anything was asked: it may have made another batch the best.
        """
        reached = [batch for batch in self._plans if self._time(batch) < math.inf]
        if not reached:
            return False
        asked, batch = len(self._trials), min(reached, key=self._time)
        for _ in range(more):
            rate = self._doubtful_rate(batch)
            if rate is None or not self._try(batch, [rate], self._limit):
                break
        fit = self._fit()
        assert fit is not None, "a trial reached the target"
        self._ask(batch, [self._settled_rate(fit, batch)], self._limit, range(self._seeds))
        return len(self._trials) > asked

    def _doubtful_rate(self, batch: int) -> float | None:
        """Choose a rate towards the end of the best rate's interval that lies farther from those tried.

        None where the best rate is known well enough.
        """
        fit, result = self._fit(), self._result(batch)
        assert fit is not None and result is not None, "a trial reached the target"
        best = fit.best_rate(batch)
        assert best.low is not None and best.high is not None
        if fit.expected_loss(batch, best.value) < _KNOWN:
            return None
        ends = (math.sqrt(best.value * end) for end in (best.low, best.high))
        far = {rate: min(abs(math.log(rate / tried)) for tried in result.rates) for rate in ends}
        rate = max(far, key=lambda rate: far[rate])
        return rate if far[rate] > math.log(_APART) else None

    def _settled_rate(self, fit: RateFit, batch: int) -> float:
        """Choose the fitted best rate, or one already tried that is as good."""
        best = fit.best_rate(batch).value
        tried = {t.learning_rate for t in self._trials if t.plan.global_batch == batch and t.reached}
        least = min(tried, key=lambda rate: fit.expected_loss(batch, rate), default=best)
        worse = fit.expected_loss(batch, least) - fit.expected_loss(batch, best)
        return least if worse < _AS_GOOD else best

    def _try(self, batch: int, rates: Sequence[float], limit: float) -> bool:
        """Ask for one seed of each rate, up to where it cannot win any more; tell if all were answered."""
        result = self._result(batch)
        if result is not None and result.examples:
            limit = min(limit, _HOPELESS * result.mean_examples)
        return self._ask(batch, rates, limit)

    def _ask(self, batch: int, rates: Sequence[float], limit: float, seeds: Sequence[int] = (0,)) -> bool:
        """Ask for trials side by side, those asked before left out; tell if all were answered."""
        known = {(t.plan.global_batch, t.learning_rate, t.seed) for t in self._trials}
        requests = [
            ConvergenceRequest(
                plan=self._plans[batch],
                learning_rate=float(f"{rate:.4g}"),
                warmup_examples=self._workload.reference.warmup_examples,
                max_examples=math.ceil(min(limit, self._limit)),
                seed=seed,
            )
            for rate in rates
            for seed in seeds
        ]
        tasks = [
            plan_task(probe_convergence, request)
            for request in requests
            if (batch, request.learning_rate, request.seed) not in known
        ]
        found = [
            record
            for record in self._evidence.ask("convergence", tasks, self._expected)
            if isinstance(record, ConvergenceRecord)
        ]
        self._trials += found
        return len(found) == len(tasks)

    def _fit(self) -> RateFit | None:
        return fit_learning_rates(self._trials)

    def _result(self, batch: int) -> BatchResult | None:
        return batch_results(self._trials).get(batch)

    def _time(self, batch: int) -> float:
        """Time to the target; infinite where it was not reached."""
        result = self._result(batch)
        return result.mean_examples / batch * self._step_time_s(batch) if result is not None else math.inf

    def _best_time(self) -> float:
        return min(map(self._time, self._plans))


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

    At the batch nearest the reference rates 3 x apart are tried until the best lies within. Each neighbour
    gets one trial at the rate that the fit of all trials gives it; a way ends where the target is not reached
    or the time to it clearly rises. The batch with the least time then gets more rates while its best is not
    known well, and `seeds` seeds at it; so does another that this makes the best. Without `step_time_s`
    every step takes as long.
    """
    known = {batch: plan for batch, plan in plans.items() if plan is not None}
    if known:
        _Search(evidence, workload, seeds, trial_limit(workload, sizes), known, step_time_s).run()
