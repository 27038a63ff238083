"""LaunchConfig: one launch, shared by the command line, launch/tune.py and Python."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.limits import Limits
from scaler.decide.objectives import NAMES
from scaler.schema import Strict, parse, read_yaml
from scaler.units import parse_seconds


def _cluster(value: Any) -> Any:
    return Cluster.load(value) if isinstance(value, (str, Path)) else value


class Budget(Strict):
    """What measuring may take: exactly one of these."""

    seconds: PositiveFloat | None = None
    device_hours: PositiveFloat | None = None
    run_share: Annotated[float | None, Field(gt=0, le=1)] = None
    """Of a training run at the reference, up to its target's `max_examples`."""

    def __str__(self) -> str:
        if self.device_hours is not None:
            return f"{self.device_hours:g} device-hours"
        return f"{100 * self.run_share:g}%" if self.run_share is not None else f"{self.seconds:g}s"


def _budget(value: Any) -> Any:
    text = str(value).strip()
    if value is None or isinstance(value, Budget | dict):
        return value
    if text.endswith("%"):
        return Budget(run_share=_positive(text.removesuffix("%"), text) / 100)
    if text.endswith("device-hours"):
        return Budget(device_hours=_positive(text.removesuffix("device-hours"), text))
    return Budget(seconds=parse_seconds(text))


def _written(budget: Budget | None) -> str | None:
    return None if budget is None else str(budget)


def _stage(value: Any) -> Any:
    stages = {str(stage): stage for stage in range(4)}
    if value == "auto" or str(value) in stages:
        return stages.get(str(value), value)
    raise ValueError("a ZeRO stage is 0, 1, 2, 3 or auto")


def _positive(number: str, text: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise ValueError(f"{text!r} is not a budget such as 20m, 3 device-hours or 5%") from None


class LaunchConfig(Strict):
    """What to tune, where, and within what. Round-trips through YAML."""

    workload: str
    """Address: `digits` (built in), `file.py:name` or `package.module:name`."""
    cluster: Annotated[Cluster, BeforeValidator(_cluster)]
    """A cluster, or the path of its file."""
    storage_path: str = "RUN"
    """The run folder: a path, s3://bucket/run or gs://bucket/run."""
    plan: BatchPlan | None = None
    """Measure only this batch plan, instead of searching for one."""
    budget: Annotated[Budget | None, BeforeValidator(_budget), PlainSerializer(_written)] = None
    """Bounds measuring: `20m`, `3 device-hours`, or `5%` of a training run. Default: no bound."""
    from_checkpoint: str | None = None
    """A state that torch.save wrote: branch it instead of training to the target."""
    zero_stage: Annotated[int | Literal["auto"], PlainValidator(_stage)] = 0
    """DeepSpeed ZeRO stage of every plan; `auto` compares those that let a pass hold more."""
    seeds: PositiveInt = 3
    """Trials per batch and learning rate."""
    objective: str | None = None
    """What to choose by: time, cost, examples or throughput. Default: the least time to target."""
    limits: Limits = Limits()
    """What the answer may not exceed."""
    sweep: tuple[Annotated[ByteSize, Field(gt=0)], ...] = ()
    """Memories of one device to decide for too, such as [1MiB, 2MiB]. Mock devices measure each."""
    runtime: Literal["ray", "local"] = "ray"
    """`local` runs in this process on one device, without Ray."""
    address: str | None = None
    """Ray cluster to connect to. Default: RAY_ADDRESS, else one is started here."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers."""

    @classmethod
    def load(cls, path: str | Path) -> "LaunchConfig":
        """Read a launch file; a relative cluster path in it is relative to the file.

        A workload's file is looked for beside the launch file, then in the current folder.

        Raises:
            BadInput: the file is absent or not YAML, or keys are unknown, missing or impossible (all listed).
        """
        path = Path(path)
        data = read_yaml(path)
        if isinstance(data, dict) and isinstance(data.get("cluster"), str):
            data = {**data, "cluster": Cluster.load(path.parent / data["cluster"])}
        if isinstance(data, dict) and isinstance(data.get("from_checkpoint"), str):
            data = {**data, "from_checkpoint": str((path.parent / data["from_checkpoint"]).absolute())}
        if isinstance(data, dict) and isinstance(data.get("workload"), str):
            place, _, name = data["workload"].rpartition(":")
            if place.endswith(".py") and (path.parent / place).is_file():
                data = {**data, "workload": f"{path.parent / place}:{name}"}
        return parse(cls, data, str(path))

    @property
    def stage(self) -> int:
        """ZeRO stage that is measured first."""
        return 0 if self.zero_stage == "auto" else self.zero_stage

    @property
    def compared_stage(self) -> int | None:
        """ZeRO stage of the plans to decide among; None for every one measured."""
        return None if self.zero_stage == "auto" else self.zero_stage

    @property
    def budget_s(self) -> float | None:
        """Seconds that measuring may take; None without a bound, and for a share of a run not yet timed."""
        if self.budget is None or self.budget.device_hours is None:
            return self.budget.seconds if self.budget is not None else None
        return 3600 * self.budget.device_hours / self.cluster.max_workers

    def to_yaml(self) -> str:
        """Write the launch as YAML that `load` reads back to the same launch."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in NAMES:
            raise ValueError(f"there is no objective of that name; choose one of {', '.join(NAMES)}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "LaunchConfig":
        plan = self.plan
        if plan is not None and plan.workers not in self.cluster.worker_counts:
            low, high = self.cluster.workers
            raise ValueError(f"plan: {plan.arithmetic()}, but the cluster has {low} to {high} workers")
        if plan is not None and plan.zero_stage != self.stage:
            raise ValueError(f"plan: its zero_stage is {plan.zero_stage}, the launch's {self.zero_stage}")
        most = self.limits.workers
        if plan is not None and most is not None and plan.workers > most:
            raise ValueError(f"plan: {plan.arithmetic()}, but limits allow at most {most} workers")
        if plan is not None and self.from_checkpoint is not None:
            raise ValueError("from_checkpoint: branches search for a batch, and plan leaves none to find")
        if self.stage and self.runtime == "local":
            raise ValueError("zero_stage: DeepSpeed needs worker processes; use runtime: ray")
        return self
