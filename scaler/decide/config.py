"""BatchConfig: the answer, as written to batch-config.yaml (docs/batch-config.md describes it)."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.fit.branching import BranchingFit
from scaler.fit.powers import PowersFit
from scaler.fit.rate_rules import RateRule
from scaler.runs import RunFolder
from scaler.schema import Strict, parse, read_yaml
from scaler.stats import Estimate
from scaler.storage import is_url

Bound = Literal[
    "memory",
    "dataset size",
    "largest batch measured",
    "critical batch",
    "communication",
    "step overhead",
    "worker count",
    "computation",
    "pinned plan",
    "no evidence",
]


class Answer(Strict):
    """The batch configuration for one worker count. A number without evidence is absent."""

    plan: BatchPlan
    learning_rate: float
    warmup_examples: int
    warmup_steps: int
    step_time_s: Estimate
    samples_per_s: Estimate
    examples_to_target: Estimate | None = None
    steps_to_target: Estimate | None = None
    time_to_target_s: Estimate | None = None
    """Training steps only: evaluation and start-up are not in it."""
    relative_time: Estimate | None = None
    """Time for the same loss over that of the reference batch on the same workers, where no time is known."""
    cost_to_target: float | None = None
    """In the currency of the cluster's price."""
    peak_memory_bytes: Estimate | None = None
    out_of_memory: float | None = None
    """Probability that the plan needs more than the device has."""
    bound_by: Bound
    reasons: dict[str, str]
    """Why each number is what it is."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where each number comes from: records and the fit to them, the cluster's file, or the reference."""


class Rival(Strict):
    """The plan that would be chosen next, on any worker count."""

    plan: BatchPlan
    learning_rate: float
    ratio: float
    """Of what is to be least, over the answer's."""
    chance: float
    """Probability that it is better than the answer."""


class Choice(Strict):
    """By what the answer was chosen, out of what, and what that risks."""

    objective: str
    limits: dict[str, float] = Field(default_factory=dict)
    feasible_plans: int
    """(workers, global batch, micro-batch, accumulation, ZeRO stage) that fit and were compared."""
    regret: float | None = None
    """Expected share by which the answer is worse than the truly best plan: what is not known costs this."""
    regret_step_time: float | None = None
    """What of it step times leave open, by themselves."""
    kept: float | None = None
    """Probability that the answer keeps all limits; absent where nothing predicted is limited."""
    rival: Rival | None = None


class Change(Strict):
    """What the answer would be if one limit were lifted."""

    limit: Bound
    change: str
    ratio: float
    """Of what is to be least, over today's answer's."""
    workers: int
    global_batch: int
    micro_batch: int
    accumulation: int
    zero_stage: int = 0
    is_other: bool
    """Whether that is another plan than today's."""


class ParetoPoint(Strict):
    """A plan that no other beats in time, cost and examples at once."""

    workers: int
    global_batch: int
    micro_batch: int
    accumulation: int
    zero_stage: int = 0
    time_to_target_s: float
    cost_to_target: float
    """In device-hours where the cluster has no price."""
    examples_to_target: float


class KeptBatch(Strict):
    """A worker count with the chosen global batch kept exactly: rate, warm-up and steps stay as they are."""

    workers: int
    plan: BatchPlan | None = None
    step_time_s: Estimate | None = None
    time_to_target_s: Estimate | None = None
    time_ratio: float | None = None
    """Time over that of the worker count's own answer, which changes the batch and its rate."""
    infeasible: str | None = None


class Findings(Strict):
    """What the fits say of the workload, whatever the cluster."""

    train_examples: int
    parameters: int
    max_grad_norm: float | None = None
    """What gradients were clipped to; absent where they were not."""
    noise_scale: Estimate | None = None
    noise_scale_groups: dict[str, Estimate] = Field(default_factory=dict)
    """Of each group of parameters where it is identifiable."""
    noise_scale_preconditioned: Estimate | None = None
    """A diagnostic: of the gradient as an Adam-like optimizer scales it."""
    critical_batch: Estimate | None = None
    """Absent where the data cannot identify it."""
    learning_rate_exponent: Estimate | None = None
    """p in lr ~ B^p over the batches measured, up to where the growth bends."""
    learning_rate_saturates: bool | None = None
    """Whether the growth has ended at the largest batch measured; absent where the trials do not tell."""
    learning_rate_rules: tuple[RateRule, ...] = ()
    """Published rules, held against the best rate at every batch that reached the target."""
    step_overhead_s: float | None = None
    seconds_per_example: float | None = None
    powers_of_two: PowersFit | None = None
    """Whether a micro-batch had better be a power of two."""
    notes: tuple[str, ...] = ()
    """What could not be measured or identified, and why."""


class EpochCost(Strict):
    """What one pass over the data takes at a global batch, training steps only."""

    plan: BatchPlan
    steps_per_s: Estimate
    samples_per_s: Estimate
    epoch_time_s: Estimate
    overhead_s: float
    """Of a step, what does not depend on how many examples it has: fixed costs of its passes, and waiting."""


class RuleOfThumb(Strict):
    """A rule people follow, held against the measurement."""

    rule: str
    global_batch: int
    agrees: bool
    time_ratio: float | None = None
    """Predicted time to target when following it, over the answer's."""
    verdict: str


class Comparison(Strict):
    """One predicted quantity beside what the confirming run observed."""

    quantity: str
    predicted: Estimate
    observed: float
    inside: bool | None = None
    """Whether the observation lies in the 90% interval; absent where there is none."""


class Confirmation(Strict):
    """The chosen configuration, trained once; only launched where no run to the target fits the budget."""

    reached: bool | None = None
    examples: int | None = None
    steps: int | None = None
    final_metric: float | None = None
    comparisons: tuple[Comparison, ...]


class SweepPoint(Strict):
    """The decision for another memory of one device."""

    device_memory_bytes: int
    plan: BatchPlan | None = None
    """The configuration to use; absent where nothing fits."""
    samples_per_s: Estimate | None = None
    time_to_target_s: Estimate | None = None
    peak_memory_bytes: Estimate | None = None
    bound_by: Bound | None = None
    infeasible: str | None = None
    """Why there is no plan."""


class BatchConfig(Strict):
    """One batch configuration per worker count, the one to use, and what it rests on."""

    schema_version: Literal[1] = 1
    workload: str
    cluster: Cluster
    chosen_workers: int
    """Worker count of the answer to use."""
    choice: Choice
    answers: tuple[Answer, ...]
    """Of every worker count; where there are very many, of some and the one to use."""
    infeasible: dict[int, str] = Field(default_factory=dict)
    """Worker counts without an answer, and why."""
    kept_batch: tuple[KeptBatch, ...] = ()
    """Of every worker count with an answer, where there is more than one."""
    changes: tuple[Change, ...] = ()
    """What would change the answer, largest saving first."""
    pareto: tuple[ParetoPoint, ...] = ()
    """Fastest first."""
    findings: Findings
    epochs: tuple[EpochCost, ...] = ()
    """At every global batch tried, on the chosen worker count; empty where one micro-batch was timed."""
    rules_of_thumb: tuple[RuleOfThumb, ...] = ()
    branching: BranchingFit | None = None
    """Branches of one state, where no run to the target fits the budget."""
    confirmation: Confirmation | None = None
    sweep: tuple[SweepPoint, ...] = ()
    """What more or less memory of one device would change; empty unless asked for."""
    records: int
    """How many observations it rests on."""
    versions: dict[str, str]

    @classmethod
    def load(cls, path: str | Path) -> "BatchConfig":
        """Read a configuration file, or the one of a run folder.

        Raises:
            BadInput: there is none, or it is not one; lists every fault.
        """
        if not is_url(path) and Path(path).is_file():
            return parse(cls, read_yaml(Path(path)), str(path))
        with RunFolder.open(path) as run:
            file = run.batch_config
            if not file.is_file():
                raise BadInput(
                    f"{path} has no {file.name}: it was not decided yet",
                    hint=f"`scaler report {path}` decides",
                )
            return parse(cls, read_yaml(file), str(run.where(file)))

    def answer_for(self, workers: int | None = None) -> Answer:
        """Give the answer of a worker count; by default the one to use.

        Raises:
            BadInput: that worker count has none.
        """
        if workers is None:
            return self.chosen
        found = next((answer for answer in self.answers if answer.plan.workers == workers), None)
        if found is None:
            counts = ", ".join(str(answer.plan.workers) for answer in self.answers)
            why = f": {self.infeasible[workers]}" if workers in self.infeasible else ""
            raise BadInput(
                f"there is no answer for {workers} workers{why}",
                hint=f"there are answers for {counts}; `scaler recommend RUN --cluster FILE` makes others",
            )
        return found

    @property
    def chosen(self) -> Answer:
        """The answer to use."""
        return next(a for a in self.answers if a.plan.workers == self.chosen_workers)

    def to_dict(self) -> dict[str, Any]:
        """Give plain data, absent numbers left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_yaml(self) -> str:
        """Write the file's text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)
