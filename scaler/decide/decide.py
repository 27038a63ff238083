"""From records to a BatchConfig."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaler.batch import SMALL_DATASET_EXAMPLES, BatchPlan
from scaler.cluster import Cluster
from scaler.decide.choose import (
    Option,
    answer,
    options,
    ranked,
    reference_answer,
    untried_option,
)
from scaler.decide.config import Answer, BatchConfig, Change, Choice, Findings, Rival, RuleOfThumb
from scaler.decide.elastic import kept_batches
from scaler.decide.epochs import epoch_costs
from scaler.decide.findings import findings
from scaler.decide.fits import Fits, fit_all, workload_record
from scaler.decide.lifts import Lift, bound_of, lifted
from scaler.decide.limits import Limits, conflict
from scaler.decide.long_runs import branched_answer
from scaler.decide.objectives import Objective, load_objective
from scaler.decide.outcomes import joined
from scaler.decide.pareto import pareto_front
from scaler.decide.reasons import batch_reason
from scaler.decide.risk import drawn_outcomes, out_of_memory, regret
from scaler.decide.rules import rules_of_thumb
from scaler.decide.space import Space
from scaler.decide.spread import with_spread
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.memory import said_bytes
from scaler.fit.speeds import with_measured_speeds
from scaler.records import Record, ThroughputRecord
from scaler.stats import Floats
from scaler.workload import Reference

DEFAULT_OBJECTIVE = "time"
_EVERY = 64  # worker counts up to which each has an answer
_FINALISTS = 48  # best plans that are drawn together, to see what the choice risks
_SAVES = 0.005  # least share that a change must save to be told


@dataclass(frozen=True)
class _Ranking:
    """The plans of one worker count that keep the limits, best first, with their scores."""

    found: list[Option]
    scores: Floats


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
    sizes = workload_record(records)
    limits = limits or Limits()
    reference = Reference(
        sizes.reference_global_batch, sizes.reference_learning_rate, sizes.reference_warmup_examples
    )
    runs = [r for r in records if isinstance(r, ThroughputRecord) and not r.held_out]
    allowed = limits.counts(cluster)
    cluster = with_measured_speeds(limits.applied(cluster, said_bytes(records)), runs)
    timed = {run.plan.zero_stage for run in runs} or {0}
    stages = [
        fit_all(records, cluster, stage, measured_on)
        for stage in (sorted(timed) if zero_stage is None else [zero_stage])
    ]
    goal = _goal(objective, limits, stages[0])
    if limits.efficiency_loss is None and stages[0].reached:
        limits = limits.model_copy(update={"efficiency_loss": goal.EFFICIENCY_LOSS})
    counts: Sequence[int] = [pinned.workers] if pinned else allowed
    spaces = (
        []
        if pinned
        else [Space.of(fits, cluster, counts, fits.examples) for fits in stages if fits.step_time is not None]
    )
    counts = _reported(counts, spaces, goal, limits)
    lifts = [] if pinned else [lift for f in stages for lift in lifted(f, cluster, counts, goal, limits)]
    answers: list[Answer] = []
    infeasible: dict[int, str] = {}
    rankings: dict[int, _Ranking] = {}
    for workers in counts:
        found, why = _options(stages, cluster, workers, pinned)
        ranking = _Ranking(*ranked(found, cluster, goal, limits))
        if ranking.found:
            rankings[workers] = ranking
            answers.append(_answer(ranking, cluster, goal, lifts, reference, pinned))
        elif found:
            infeasible[workers] = "no plan keeps the limits"
        elif limits.on_outcomes:
            infeasible[workers] = why or "no trial reached the target"
        else:
            kept, why_not = _without_target(stages[0], cluster, workers, reference, pinned)
            if kept is not None:
                answers.append(kept)
            else:
                infeasible[workers] = why or why_not
    if not answers:
        raise _nothing(cluster, infeasible, spaces, limits)
    answers = [with_spread(found, records, sizes) for found in answers]
    best = min(answers, key=lambda a: _rank(a, rankings))
    own = rankings.get(best.plan.workers)
    told = findings(records, stages[0], sizes)
    return BatchConfig(
        workload=sizes.name,
        cluster=cluster,
        chosen_workers=best.plan.workers,
        choice=_choice(own, list(rankings.values()), cluster, goal, limits, spaces),
        answers=tuple(answers),
        infeasible=infeasible,
        kept_batch=kept_batches(own.found[0], cluster, answers) if own is not None and not pinned else (),
        changes=_changes(own, lifts) if own is not None else (),
        pareto=pareto_front(spaces, limits),
        findings=told,
        epochs=epoch_costs(_fits_of(stages, best.plan), cluster, best.plan),
        rules_of_thumb=_rules_of_thumb(own, cluster, told) if own is not None and not pinned else (),
        branching=stages[0].branching if best.time_to_target_s is None else None,
        records=len(records),
        versions=records[-1].environment.versions,
    )


def _goal(objective: str | None, limits: Limits, fits: Fits) -> Objective:
    """Find the objective, and hold it against what was measured."""
    goal = load_objective(objective or DEFAULT_OBJECTIVE)
    wanted = []
    if objective is not None and goal.NEEDS_TARGET:
        wanted.append(f"--objective {objective}")
    if limits.on_outcomes:
        wanted.append("a limit on time, cost or efficiency")
    if wanted and not fits.reached:
        raise BadInput(
            f"{' and '.join(wanted)} needs the examples to target, and no trial reached it",
            hint="`scaler tune ... --resume` with a longer --budget trains to the target; "
            "--objective throughput does without",
        )
    return goal


def _reported(
    counts: Sequence[int], spaces: Sequence[Space], goal: Objective, limits: Limits
) -> Sequence[int]:
    """Choose the worker counts that get an answer: all, or of very many the powers of two and the best."""
    if len(counts) <= _EVERY:
        return counts
    kept = {counts[0], counts[-1], *(2**k for k in range(32) if counts[0] <= 2**k <= counts[-1])}
    for space in spaces:
        outcomes = space.outcomes()
        scores = np.where(limits.keeps(outcomes), goal.score(outcomes), np.inf)
        if len(space) and np.isfinite(scores).any():
            kept.add(int(space.workers[int(np.nanargmin(scores))]))
    return sorted(kept)


def _options(
    stages: Sequence[Fits], cluster: Cluster, workers: int, pinned: BatchPlan | None
) -> tuple[list[Option], str]:
    """List the options of every ZeRO stage on a worker count, and why there are no others."""
    found, why = [], ""
    for fits in stages:
        own, why_not = options(fits, cluster, workers, pinned)
        found += own
        why = why or why_not
    return found, why


def _answer(
    ranking: _Ranking,
    cluster: Cluster,
    goal: Objective,
    lifts: Sequence[Lift],
    reference: Reference,
    pinned: BatchPlan | None,
) -> Answer:
    """Make a worker count's answer from its best plan."""
    best, score = ranking.found[0], float(ranking.scores[0])
    if pinned is not None:
        return answer(best, cluster, "pinned plan", reference, {})
    batches = [option.plan.global_batch for option in ranking.found]
    why = {"global_batch": batch_reason(goal.TITLE, batches, ranking.scores.tolist())}
    found = answer(best, cluster, bound_of(lifts, score, best.plan.workers), reference, why)
    risk = out_of_memory(best.fits.memory, best.plan, cluster)
    return found.model_copy(update={"out_of_memory": risk})


def _without_target(
    fits: Fits, cluster: Cluster, workers: int, reference: Reference, pinned: BatchPlan | None
) -> tuple[Answer | None, str]:
    """Answer where no time to target is known: by branching, else the reference."""
    if fits.branching is not None and pinned is None:
        return branched_answer(fits, fits.branching, cluster, workers, reference)
    return reference_answer(fits, cluster, workers, reference, pinned)


def _nothing(
    cluster: Cluster, infeasible: dict[int, str], spaces: Sequence[Space], limits: Limits
) -> NothingFeasible:
    """Make the error of a cluster without any answer."""
    filled = [space for space in spaces if len(space)]
    if limits.on_outcomes and filled:
        places = [(space, place) for space in filled for place in range(len(space))]
        outcomes = joined([space.outcomes() for space in filled])
        return conflict(limits, outcomes, lambda i: _words(places[i][0].entry(places[i][1])))
    faults = [f"  - {workers} workers: {why}" for workers, why in infeasible.items()]
    return NothingFeasible(
        "\n".join([f"no batch configuration for {cluster.name}:", *faults]),
        hint="a longer --budget measures more; more device memory or another ZeRO stage fits more",
    )


def _words(entry: dict[str, int]) -> str:
    return f"a global batch of {entry['global_batch']:,} on {entry['workers']} workers"


def _rank(found: Answer, rankings: dict[int, _Ranking]) -> tuple[bool, float]:
    """Order answers by the objective; those without a target come last, by throughput."""
    own = rankings.get(found.plan.workers)
    return own is None, float(own.scores[0]) if own is not None else -found.samples_per_s.value


def _choice(
    own: _Ranking | None,
    rankings: Sequence[_Ranking],
    cluster: Cluster,
    goal: Objective,
    limits: Limits,
    spaces: Sequence[Space],
) -> Choice:
    """Say by what was chosen and out of what, and draw what that risks."""
    number = sum(len(space) for space in spaces)
    given = limits.model_dump(mode="json", exclude_none=True)
    if own is None:
        return Choice(objective="the most samples/s", limits=given, feasible_plans=number)
    pairs = [pair for r in rankings for pair in zip(r.scores.tolist(), r.found, strict=True)]
    others = sorted((pair for pair in pairs if pair[1] is not own.found[0]), key=lambda pair: pair[0])
    finalists = [own.found[0], *(option for _, option in others[: _FINALISTS - 1])]
    outcomes = drawn_outcomes(finalists, cluster)
    scores = goal.score(outcomes)
    rival = None
    if len(finalists) > 1:
        rival = Rival(
            plan=finalists[1].plan,
            learning_rate=finalists[1].learning_rate,
            ratio=others[0][0] / float(own.scores[0]),
            chance=float((scores[:, 1] < scores[:, 0]).mean()),
        )
    return Choice(
        objective=goal.TITLE,
        limits=given,
        feasible_plans=max(number, len(pairs)),
        regret=regret(scores),
        kept=float(limits.keeps(outcomes)[:, 0].mean()) if limits.on_outcomes else None,
        rival=rival,
    )


def _changes(own: _Ranking, lifts: Sequence[Lift]) -> tuple[Change, ...]:
    """Say what the answer would be with each limit lifted, where that saves anything."""
    plan, found = own.found[0].plan, dict[str, Change]()
    for lift in lifts:
        score, place = lift.best()
        if not score < (1 - _SAVES) * float(own.scores[0]):
            continue
        entry = lift.space.entry(place)
        numbers = (plan.workers, plan.global_batch, plan.micro_batch, plan.accumulation, plan.zero_stage)
        change = Change(
            limit=lift.limit,
            change=lift.change,
            ratio=score / float(own.scores[0]),
            is_other=tuple(entry.values()) != numbers,
            **entry,
        )
        if lift.limit not in found or change.ratio < found[lift.limit].ratio:
            found[lift.limit] = change
    return tuple(sorted(found.values(), key=lambda change: change.ratio))


def _fits_of(stages: Sequence[Fits], plan: BatchPlan) -> Fits:
    return next((fits for fits in stages if fits.zero_stage == plan.zero_stage), stages[0])


def _rules_of_thumb(own: _Ranking, cluster: Cluster, told: Findings) -> tuple[RuleOfThumb, ...]:
    """Hold the rules against the ranked options; of small data against the full batch, tried or not."""
    best = own.found[0]
    fits, full = best.fits, best.fits.train_examples
    small = full <= SMALL_DATASET_EXAMPLES
    untried = untried_option(fits, cluster, full, best.plan.workers) if small else None
    return rules_of_thumb(own.found, told.learning_rate_rules, untried)
