"""From records to a BatchConfig."""

from collections.abc import Sequence

from scaler.batch import SMALL_DATASET_EXAMPLES, BatchPlan
from scaler.cluster import Cluster
from scaler.decide.case import Case
from scaler.decide.choose import Option, answer, options, ranked, reference_answer, untried_option
from scaler.decide.config import Answer, BatchConfig, Findings, RuleOfThumb
from scaler.decide.elastic import kept_batches
from scaler.decide.epochs import epoch_costs
from scaler.decide.findings import findings
from scaler.decide.lifts import bound_of
from scaler.decide.limits import Limits, conflict
from scaler.decide.long_runs import branched_answer
from scaler.decide.outcomes import joined
from scaler.decide.pareto import pareto_front
from scaler.decide.reasons import batch_reason, stage_reason
from scaler.decide.risk import out_of_memory
from scaler.decide.rules import rules_of_thumb
from scaler.decide.spread import with_spread
from scaler.decide.verdict import Ranking, changes_of, choice_of
from scaler.errors import NothingFeasible
from scaler.records import Record


def decide(
    records: Sequence[Record],
    cluster: Cluster,
    zero_stage: int | None = 0,
    pinned: BatchPlan | None = None,
    objective: str | None = None,
    limits: Limits | None = None,
    measured_on: Cluster | None = None,
) -> BatchConfig:
    """Choose the batch configuration for every worker count of the cluster, and the one to use.

    `zero_stage` None compares the plans of every stage that was measured. By default the objective is the
    least time to target, or where that is not known the most samples/s. Where the records are of another
    cluster, `measured_on`, step times are scaled to these devices.

    Raises:
        BadInput: the records do not even hold the sizes of the workload, or what the objective needs; or
            the cluster files do not say how the devices compare.
        NothingFeasible: no worker count has an answer, says why for each; or none within the limits.
    """
    case = Case.of(records, cluster, zero_stage, pinned, objective, limits or Limits(), measured_on)
    rankings: dict[int, Ranking] = {}
    answers: list[Answer] = []
    infeasible: dict[int, str] = {}
    for workers in case.counts:
        found, why = _options(case, workers)
        ranking = Ranking(*ranked(found, case.cluster, case.objective, case.limits))
        if ranking.found:
            rankings[workers] = ranking
            answers.append(_answer(case, ranking))
            continue
        kept, why_not = _without_target(case, workers) if not found else (None, "no plan keeps the limits")
        if kept is not None:
            answers.append(kept)
        else:
            infeasible[workers] = why or why_not
    if not answers:
        raise _nothing(case, infeasible)
    answers = [with_spread(found, records, case.sizes) for found in answers]
    best = min(answers, key=lambda a: _rank(a, rankings))
    own = rankings.get(best.plan.workers)
    told = findings(records, case.stages[0], case.sizes)
    searched = own if pinned is None else None
    return BatchConfig(
        workload=case.sizes.name,
        cluster=case.cluster,
        chosen_workers=best.plan.workers,
        choice=choice_of(case, own, list(rankings.values())),
        answers=tuple(answers),
        infeasible=infeasible,
        kept_batch=kept_batches(searched.found[0], case.cluster, answers) if searched else (),
        changes=changes_of(case, own) if own else (),
        pareto=pareto_front(case.spaces, case.limits),
        findings=told,
        epochs=epoch_costs(own.found[0].fits if own else case.stages[0], case.cluster, best.plan),
        rules_of_thumb=_rules_of_thumb(searched, case.cluster, told) if searched else (),
        branching=case.stages[0].branching if best.time_to_target_s is None else None,
        records=len(records),
        versions=records[-1].environment.versions,
    )


def _options(case: Case, workers: int) -> tuple[list[Option], str]:
    """List the options of every ZeRO stage on a worker count, and why there are no others."""
    found, why = [], ""
    for fits in case.stages:
        own, why_not = options(fits, case.cluster, workers, case.pinned)
        found += own
        why = why or why_not
    return found, why


def _answer(case: Case, ranking: Ranking) -> Answer:
    """Make a worker count's answer from its best plan."""
    best, score = ranking.found[0], float(ranking.scores[0])
    if case.pinned is not None:
        return answer(best, case.cluster, "pinned plan", case.reference, {})
    batches = [option.plan.global_batch for option in ranking.found]
    why = {"global_batch": batch_reason(case.objective.TITLE, batches, ranking.scores.tolist())}
    if len(case.stages) > 1:
        why["zero_stage"] = stage_reason(best.plan.zero_stage, [fits.zero_stage for fits in case.stages])
    bound = bound_of(case.lifts, score, best.plan.workers)
    found = answer(best, case.cluster, bound, case.reference, why)
    return found.model_copy(
        update={"out_of_memory": out_of_memory(best.fits.memory, best.plan, case.cluster)}
    )


def _without_target(case: Case, workers: int) -> tuple[Answer | None, str]:
    """Answer where no time to target is known: by branching, else the reference; or say why not."""
    if case.limits.on_outcomes:
        return None, "no trial reached the target"
    fits = case.stages[0]
    if fits.branching is not None and case.pinned is None:
        return branched_answer(fits, fits.branching, case.cluster, workers, case.reference)
    return reference_answer(fits, case.cluster, workers, case.reference, case.pinned)


def _nothing(case: Case, infeasible: dict[int, str]) -> NothingFeasible:
    """Make the error of a cluster without any answer."""
    filled = [space for space in case.spaces if len(space)]
    if case.limits.on_outcomes and filled:
        places = [(space, place) for space in filled for place in range(len(space))]
        outcomes = joined([space.outcomes for space in filled])
        return conflict(case.limits, outcomes, lambda i: _words(places[i][0].entry(places[i][1])))
    faults = [f"  - {workers} workers: {why}" for workers, why in infeasible.items()]
    return NothingFeasible(
        "\n".join([f"no batch configuration for {case.cluster.name}:", *faults]),
        hint="a longer --budget measures more; more device memory or another ZeRO stage fits more",
    )


def _words(entry: dict[str, int]) -> str:
    many = "s" if entry["workers"] > 1 else ""
    stage = f" at ZeRO stage {entry['zero_stage']}" if entry["zero_stage"] else ""
    return f"a global batch of {entry['global_batch']:,} on {entry['workers']} worker{many}{stage}"


def _rank(found: Answer, rankings: dict[int, Ranking]) -> tuple[bool, float]:
    """Order answers by the objective; those without a target come last, by throughput."""
    own = rankings.get(found.plan.workers)
    return own is None, float(own.scores[0]) if own is not None else -found.samples_per_s.value


def _rules_of_thumb(own: Ranking, cluster: Cluster, told: Findings) -> tuple[RuleOfThumb, ...]:
    """Hold the rules against the ranked options; of small data against the full batch, tried or not."""
    best = own.found[0]
    fits, full = best.fits, best.fits.train_examples
    small = full <= SMALL_DATASET_EXAMPLES
    untried = untried_option(fits, cluster, full, best.plan.workers) if small else None
    return rules_of_thumb(own.found, told.learning_rate_rules, untried)
