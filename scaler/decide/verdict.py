"""What is said of the choice: out of what it was made, what it risks, and what would change it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scaler.decide.case import Case
from scaler.decide.choose import Option, outcomes_of
from scaler.decide.config import Change, Choice, Rival
from scaler.decide.risk import drawn_outcomes, regret
from scaler.stats import Floats

_FINALISTS = 48  # best plans that are drawn together
_SAVES = 0.005  # least share that a change must save to be told


@dataclass(frozen=True)
class Ranking:
    """The plans of one worker count that keep the limits, best first, with their scores."""

    found: list[Option]
    scores: Floats


def choice_of(case: Case, own: Ranking | None, rankings: Sequence[Ranking]) -> Choice:
    """Say by what was chosen and out of what, and draw what that risks; `own` holds the plan chosen."""
    number = sum(len(space) for space in case.spaces)
    given = case.limits.model_dump(mode="json", exclude_none=True)
    if own is None:
        branched = case.stages[0].branching is not None and case.pinned is None
        objective = "the largest batch that does not lose" if branched else "the most samples/s"
        return Choice(objective=objective, limits=given, feasible_plans=number)
    pairs = [pair for r in rankings for pair in zip(r.scores.tolist(), r.found, strict=True)]
    others = sorted((pair for pair in pairs if pair[1] is not own.found[0]), key=lambda pair: pair[0])
    finalists = [own.found[0], *(option for _, option in others[: _FINALISTS - 1])]
    outcomes = drawn_outcomes(finalists, case.cluster)
    scores = case.objective.score(outcomes)
    typical = np.broadcast_to(outcomes_of(finalists, case.cluster).examples, outcomes.examples.shape)
    timing = case.objective.score(replace(outcomes, examples=typical))
    rival = None
    if len(finalists) > 1:
        rival = Rival(
            plan=finalists[1].plan,
            learning_rate=finalists[1].learning_rate,
            ratio=others[0][0] / float(own.scores[0]),
            chance=float((scores[:, 1] < scores[:, 0]).mean()),
        )
    return Choice(
        objective=case.objective.TITLE,
        limits=given,
        feasible_plans=max(number, len(pairs)),
        regret=regret(scores),
        regret_step_time=regret(timing),
        kept=float(case.limits.keeps(outcomes)[:, 0].mean()) if case.limits.on_outcomes else None,
        rival=rival,
    )


def changes_of(case: Case, own: Ranking) -> tuple[Change, ...]:
    """Say what the answer would be with each limit lifted, where that saves anything."""
    plan, found = own.found[0].plan, dict[str, Change]()
    for lift in case.lifts:
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
