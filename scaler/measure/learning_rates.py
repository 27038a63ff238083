"""The search for the best learning rate at every global batch, from the reference outwards."""

import math
from collections.abc import Mapping, Sequence

from scaler.batch import BatchPlan
from scaler.fit.learning_rate import BatchResult, batch_results
from scaler.measure.evidence import Evidence, plan_task
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.records import ConvergenceRecord, WorkloadRecord
from scaler.workload import Workload

_EPOCHS = 100  # a trial's default limit
_STEP = 3.0  # between neighbouring learning rates
_EXTENSIONS = 3  # steps beyond the first three rates, while the best lies at the edge
_HOPELESS = 1.5  # a rate that needs so many times the best rate's examples cannot win any more
_GROWTH = 3.0  # doubling the batch at most doubles the examples; more than this is not the same curve


class _Search:
    """Trials of one workload; every answer is kept in `evidence`."""

    def __init__(
        self, evidence: Evidence, workload: Workload, seeds: int, sizes: WorkloadRecord, batches: int
    ) -> None:
        self._evidence = evidence
        self._workload = workload
        self._seeds = seeds
        self._limit = trial_limit(workload, sizes)
        self._expected = 3 * seeds * batches

    def best_rate(self, plan: BatchPlan, centre: float, limit: float) -> BatchResult | None:
        """Find the best rate around `centre`, extending the grid while the best lies at its edge.

        Decides only by the trials asked here, so that a resumed run asks the same ones again.
        """
        limit = min(self._limit, limit)
        trials = self._try(plan, [centre], limit)
        result = batch_results(trials).get(plan.global_batch)
        trials += self._try(plan, [centre / _STEP, centre * _STEP], _useful(result, limit))
        result = batch_results(trials).get(plan.global_batch)
        for _ in range(_EXTENSIONS):
            if result is None or (edge := result.edge()) == 0 or self._evidence.out_of_budget():
                break
            rate = result.rates[0] / _STEP if edge < 0 else result.rates[-1] * _STEP
            trials += self._try(plan, [rate], _useful(result, limit))
            result = batch_results(trials).get(plan.global_batch)
        return result

    def _try(self, plan: BatchPlan, rates: Sequence[float], limit: float) -> list[ConvergenceRecord]:
        tasks = [
            plan_task(
                probe_convergence,
                ConvergenceRequest(
                    plan=plan,
                    learning_rate=float(f"{rate:.4g}"),
                    warmup_examples=self._workload.reference.warmup_examples,
                    max_examples=math.ceil(limit),
                    seed=seed,
                ),
            )
            for rate in rates
            for seed in range(self._seeds)
        ]
        records = self._evidence.ask("convergence", tasks, self._expected)
        return [record for record in records if isinstance(record, ConvergenceRecord)]


def _useful(result: BatchResult | None, limit: float) -> float:
    """Examples beyond which a trial cannot make its rate the best any more."""
    return min(limit, _HOPELESS * max(result.examples)) if result and result.examples else limit


def trial_limit(workload: Workload, sizes: WorkloadRecord) -> int:
    """Examples after which a trial stops without having reached the target."""
    return workload.target.max_examples or _EPOCHS * sizes.train_examples


def search_learning_rates(
    evidence: Evidence,
    workload: Workload,
    seeds: int,
    sizes: WorkloadRecord,
    plans: Mapping[int, BatchPlan | None],
) -> None:
    """Find the best learning rate at every global batch in `plans`.

    Starts at the batch nearest the reference; each neighbour starts from the rate found beside it, scaled by
    the square root of the batch. Growing stops where a batch does not reach the target.
    """
    batches = [batch for batch in sorted(plans) if plans[batch] is not None]
    if not batches:
        return
    search = _Search(evidence, workload, seeds, sizes, len(batches))
    reference = workload.reference
    start = min(batches, key=lambda batch: abs(math.log(batch / reference.global_batch)))
    middle = batches.index(start)
    origin = _walk(search, plans, [start], reference.global_batch, reference.learning_rate, math.inf)
    for way in (batches[middle + 1 :], batches[:middle][::-1]):
        if origin is not None and origin.best_rate is not None:
            _walk(search, plans, way, start, origin.best_rate, origin.mean_examples)


def _walk(
    search: _Search,
    plans: Mapping[int, BatchPlan | None],
    way: Sequence[int],
    batch: int,
    rate: float,
    examples: float,
) -> BatchResult | None:
    """Search each batch of `way`, starting from a neighbour's rate and examples to target."""
    result = None
    for following in way:
        plan = plans[following]
        assert plan is not None
        limit = _GROWTH * examples * max(1.0, following / batch)
        result = search.best_rate(plan, rate * math.sqrt(following / batch), limit)
        if result is None or result.best_rate is None:
            break
        batch, rate, examples = following, result.best_rate, result.mean_examples
    return result
