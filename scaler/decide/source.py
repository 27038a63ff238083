"""What a batch plan is taken from: a run folder, a file, or what was read from one."""

from pathlib import Path
from typing import NamedTuple, TypeAlias

from scaler.batch import BatchPlan
from scaler.decide.config import Answer, BatchConfig

PlanSource: TypeAlias = str | Path | BatchConfig | Answer | BatchPlan
"""A path is of a run folder or of a configuration file in it."""


class FoundPlan(NamedTuple):
    """A plan, and what is known beside it."""

    plan: BatchPlan
    answer: Answer | None = None
    config: BatchConfig | None = None


def find_plan(source: PlanSource, workers: int | None = None) -> FoundPlan:
    """Find the plan of a source: of several answers the one to use, or that for `workers`.

    Raises:
        BadInput: there is no configuration, or it has no answer for `workers`.
    """
    config = None
    if isinstance(source, str | Path):
        source = BatchConfig.load(source)
    if isinstance(source, BatchConfig):
        config, source = source, source.answer_for(workers)
    if isinstance(source, Answer):
        return FoundPlan(source.plan, source, config)
    return FoundPlan(source)
