"""What was seen: one frozen record per observation. Nothing after this boundary needs torch."""

import datetime
import functools
import os
import platform
from importlib import metadata
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from scaler.batch import BatchPlan, ZeroStage
from scaler.schema import Strict

CONFIRMING_SEED = 1_000_000
"""Seed of the confirming observations: predictions are held against them, so no fit may see them."""

StepPhase = Literal["data", "forward", "backward", "sync", "optimizer"]
"""Parts of a step; `sync` is what of the synchronisation no computation hides."""

Stop = Literal["reached", "limit", "diverged", "deadline"]


class Environment(Strict):
    """The machine and the versions an observation was taken with."""

    device: str
    world_size: PositiveInt
    """Ranks that took the observation together."""
    nodes: tuple[str, ...] = ()
    """Address of every rank's machine, in their order: the placement. Empty where it is this one."""
    machine: str
    cpu_count: PositiveInt
    versions: dict[str, str]


class Observation(Strict):
    """What every record carries. `task` identifies the question asked, so that no question is asked twice."""

    task: str
    seed: int
    taken_at: datetime.datetime
    environment: Environment

    @property
    def held_out(self) -> bool:
        """Whether this observation confirms an answer, and is kept from every fit."""
        return self.seed == CONFIRMING_SEED


class WorkloadRecord(Observation):
    """What the workload says of itself, and what its functions gave when they were first called."""

    kind: Literal["workload"] = "workload"
    name: str
    reference_global_batch: PositiveInt
    reference_learning_rate: PositiveFloat
    reference_warmup_examples: NonNegativeInt
    target_value: float
    target_direction: Literal["max", "min"]
    train_examples: PositiveInt
    eval_examples: PositiveInt
    parameters: PositiveInt
    batch_statistics: tuple[str, ...]
    """Modules whose output depends on the rest of the micro-batch (BatchNorm)."""
    optimizer: str = ""
    """Its class, such as AdamW; empty in records that did not look."""
    betas: tuple[float, ...] = ()
    """Of its first group of parameters, where it has any."""
    max_grad_norm: PositiveFloat | None = None
    """What the step's gradient is clipped to."""
    spread_matters: bool = False
    """Whether the workload says that convergence depends on how a batch is spread."""


class MemoryRecord(Observation):
    """The peak of device memory over two optimizer steps, or that they ran out."""

    kind: Literal["memory"] = "memory"
    plan: BatchPlan
    out_of_memory: bool
    peak_bytes: PositiveInt | None = None
    """Of the worst rank. Absent when a device ran out."""
    rank_peak_bytes: tuple[PositiveInt, ...] = ()
    """Of every rank."""
    outside_bytes: NonNegativeInt | None = None
    """Of the worst peak, what lies outside the allocator: context and communicator. CUDA only."""
    in_use_bytes: NonNegativeInt | None = None
    """Most that was in use before a device ran out."""
    retries: NonNegativeInt = 0
    """Times that cached memory had to be released for a request; a size that needs it is too large."""
    capacity_bytes: PositiveInt | None = None

    @property
    def too_large(self) -> bool:
        """Whether the plan ran out of memory, or only kept going by releasing cached memory."""
        return self.out_of_memory or self.retries > 0


MemoryItem = Literal[
    "parameters",
    "gradients",
    "optimizer_state",
    "activations",
    "temporaries",
    "buffers",
    "rounding",
    "workspaces",
    "context",
    "communicator",
]
"""What device memory is spent on: `buffers` of DDP or ZeRO, `rounding` and fragmentation of the allocator."""

HostItem = Literal["process", "data_set", "data_loading", "pinned_buffers", "model", "optimizer_offload"]

Regime = Literal["forward", "backward", "optimizer"]
Confidence = Literal["high", "medium", "low"]


class PredictedPeak(Strict):
    """The peak of one rank's memory at a micro-batch, predicted without a device. The items add up to it."""

    micro_batch: PositiveInt
    allocated_bytes: NonNegativeInt
    """In tensors."""
    reserved_bytes: NonNegativeInt
    """Held by the caching allocator."""
    peak_bytes: NonNegativeInt
    """What nvidia-smi would show: reserved, context and communicator."""
    items: dict[MemoryItem, NonNegativeInt]
    regime: Regime
    """The part of the step that sets the peak."""
    host_items: dict[HostItem, NonNegativeInt]
    """Host memory of the rank's process."""


class PredictedCurve(Strict):
    """Predicted peaks of one way of spreading, smallest micro-batch first."""

    workers: PositiveInt
    zero_stage: ZeroStage
    accumulating: bool = False
    max_micro_batch: NonNegativeInt
    """The largest that fits the cluster's device; 0 if none does."""
    fixed_bytes: NonNegativeInt
    """Context and communicator: part of every peak, whatever is allocated."""
    micro_batches: tuple[PositiveInt, ...] = ()
    peak_bytes: tuple[NonNegativeInt, ...] = ()
    """The peak at each of `micro_batches`."""
    bills: tuple[PredictedPeak, ...]
    """Itemised peaks: at the sizes asked for, else at the largest that fits (1 if none does)."""


class Prediction(Strict):
    """What tracing the workload's step on tensors without bytes says of its memory."""

    curves: tuple[PredictedCurve, ...]
    """None where the model could not be traced; the notes then say why."""
    confidence: Confidence
    notes: tuple[str, ...] = ()


class PredictionRecord(Observation):
    """A prediction, kept with what was measured."""

    kind: Literal["prediction"] = "prediction"
    prediction: Prediction
    capacity_bytes: PositiveInt | None = None
    """Of the device that the prediction is for."""


class ThroughputRecord(Observation):
    """Every step time of one launch of one plan, warm-up and outliers included."""

    kind: Literal["throughput"] = "throughput"
    plan: BatchPlan
    nodes: PositiveInt = 1
    """Machines that the ranks ran on."""
    step_times_s: tuple[PositiveFloat, ...]
    warmup_steps: NonNegativeInt
    """How many of the first step times are not to be used: until then they fall or rise."""
    phase_times_s: dict[StepPhase, tuple[NonNegativeFloat, ...]] = Field(default_factory=dict)
    """Rank 0's parts of every step; a part that was not measured is absent."""
    outliers: tuple[NonNegativeInt, ...] = ()
    """Steps far slower than the others; medians do not heed them."""
    rank_compute_s: tuple[PositiveFloat, ...] = ()
    """Of every rank: median of its steps less their exposed synchronisation."""


class PowersRecord(Observation):
    """Times of passes of sizes around a power of two, taken in turn on one worker."""

    kind: Literal["powers"] = "powers"
    micro_batches: tuple[PositiveInt, ...]
    """2^k - 1, 2^k, 2^k + 1, 3 x 2^(k-1), 2^(k+1)."""
    step_times_s: tuple[tuple[PositiveFloat, ...], ...]
    """Of each size, a value a round."""


class SquaredNorms(Strict):
    """Squared gradient norms of successive steps: of `small_batch` examples, and of the global batch."""

    small: tuple[float, ...]
    big: tuple[float, ...]


class NoiseRecord(Observation):
    """Squared gradient norms per step: of `small_batch` examples (mean over workers), and of the batch."""

    kind: Literal["noise"] = "noise"
    plan: BatchPlan
    learning_rate: PositiveFloat
    small_batch: PositiveFloat
    small_squared_norms: tuple[float, ...]
    big_squared_norms: tuple[float, ...]
    groups: dict[str, SquaredNorms] = Field(default_factory=dict)
    """Of each group of parameters; they add up to the above. Empty where there is one."""
    preconditioned: SquaredNorms | None = None
    """Of P G, with P = 1 / (sqrt(v) + eps) of an Adam-like optimizer's previous step; of some steps."""
    left_out_steps: NonNegativeInt = 0
    """Steps whose gradients were not finite: an overflow in fp16, or a loss that is nan."""


class CostCurve(Strict):
    """The cost of every step's own batch, before its update, in blocks of steps; the last may be shorter.

    One value a block in every field. The first 250 blocks are of one step, the others of equal length.
    """

    iterations: tuple[PositiveInt, ...]
    """Steps done at the end of each block."""
    time_s: tuple[NonNegativeFloat, ...]
    """Training time until then."""
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    squared_change: tuple[NonNegativeFloat, ...]
    """Mean squared difference from the step before."""
    rises: tuple[NonNegativeInt, ...]
    """Steps whose cost was above the one before."""


class Snapshot(Strict):
    """The weights at one moment of a path: their cost, and where they lie in the plane of all paths."""

    iteration: NonNegativeInt
    time_s: NonNegativeFloat
    cost: float | None
    """Mean loss over the cost sample, dropout off; absent where it is not finite."""
    x: float
    y: float


class BatchRegime(Strict):
    """One batch size and rate, trained from the weights that all regimes start from."""

    plan: BatchPlan
    learning_rate: PositiveFloat
    rate_factor: PositiveFloat = 1.0
    """On the rate that square-root scaling gives."""
    stop: Literal["limit", "deadline", "diverged", "undefined"]
    """`undefined`: not a single step can be computed; `reason` says why."""
    reason: str = ""
    planned_iterations: PositiveInt
    iterations: NonNegativeInt
    train_time_s: NonNegativeFloat
    curve: CostCurve | None = None
    path: tuple[Snapshot, ...] = ()
    spans_plane: bool = False
    """Whether the path took part in choosing the plane: it dropped by a tenth of the largest drop in cost."""


class Contour(Strict):
    """The cost over a grid in the plane: `cost[row][column]` at (`x[column]`, `y[row]`)."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    cost: tuple[tuple[float | None, ...], ...]


class RegimesRecord(Observation):
    """Batch size 1, mini-batches and the full batch side by side, from the same weights."""

    kind: Literal["regimes"] = "regimes"
    name: str
    budget_s: PositiveFloat
    train_examples: PositiveInt
    data_examples: PositiveInt
    """Of them, those that were the data of every regime: as many as the full batch."""
    sample_examples: PositiveInt
    """Of the data, those over which the cost of snapshots and of the contour is a mean."""
    parameters: PositiveInt
    batch_statistics: tuple[str, ...]
    regimes: tuple[BatchRegime, ...]
    explained: tuple[float, float] | None = None
    """Shares of the variance of the paths' weights along the plane's two directions."""
    contour: Contour | None = None


class Evaluation(Strict):
    """One point of a training curve. A metric that was not finite is absent."""

    examples: NonNegativeInt
    train_time_s: float
    metric: float | None


class ConvergenceRecord(Observation):
    """One training run to the target; `examples` is how far it got, whether it reached it or not."""

    kind: Literal["convergence"] = "convergence"
    plan: BatchPlan
    learning_rate: PositiveFloat
    warmup_examples: NonNegativeInt
    dataset_examples: PositiveInt
    stop: Stop
    examples: NonNegativeInt
    steps: NonNegativeInt
    curve: tuple[Evaluation, ...]
    time_limit_s: NonNegativeFloat | None = None
    """What a deadline gave it, where that ended it."""

    @property
    def reached(self) -> bool:
        """Whether the target was met; else `examples` is a censored observation."""
        return self.stop == "reached"

    @property
    def trained_examples(self) -> int:
        """Examples that it was trained on: one that reached the target went on until that was confirmed."""
        return self.curve[-1].examples if self.curve else self.examples


class WarmupRecord(ConvergenceRecord):
    """A trial at the chosen batch and rate with another length of warm-up than the reference's."""

    kind: Literal["warmup"] = "warmup"  # type: ignore[assignment]


class ConfirmationRecord(ConvergenceRecord):
    """The chosen plan, trained once on its real workers, with every step time."""

    kind: Literal["confirmation"] = "confirmation"  # type: ignore[assignment]
    step_times_s: tuple[PositiveFloat, ...]


RateScaling = Literal["linear", "square root"]
"""How the learning rate of a branch follows its batch."""


class CheckpointRecord(Observation):
    """A user's checkpoint that fits the workload."""

    kind: Literal["checkpoint"] = "checkpoint"
    examples: NonNegativeInt | None = None
    """It was trained on, where the file says so."""
    optimizer_state: bool
    """Whether the optimizer goes on as it was; one that keeps no state always does."""
    learning_rate: NonNegativeFloat | None = None
    """Of the saved optimizer."""


class BranchRecord(Observation):
    """A short stretch of training from a state; branches with one seed see the same examples in one order."""

    kind: Literal["branch"] = "branch"
    plan: BatchPlan
    reference_batch: PositiveInt
    learning_rate: PositiveFloat
    rate_rule: RateScaling
    start_examples: NonNegativeInt | None = None
    """How far the state had got; absent where a user's file does not say."""
    examples: PositiveInt
    """Length of the stretch."""
    rewarm_examples: NonNegativeInt = 0
    points: PositiveInt
    """Equal parts of the stretch."""
    losses: tuple[float | None, ...]
    """Mean training loss of each part; ends with the first that is not finite."""
    held_out_examples: PositiveInt
    held_out_loss: float | None = None
    final_metric: float | None = None


Record = Annotated[
    WorkloadRecord
    | PredictionRecord
    | MemoryRecord
    | ThroughputRecord
    | PowersRecord
    | NoiseRecord
    | ConvergenceRecord
    | WarmupRecord
    | ConfirmationRecord
    | RegimesRecord
    | CheckpointRecord
    | BranchRecord,
    Field(discriminator="kind"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that measurements depend on, where installed."""
    found = {"python": platform.python_version()}
    for package in ("scaler", "torch", "ray", "deepspeed", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device: str, world_size: int, nodes: tuple[str, ...] = ()) -> Environment:
    """Describe this process's machine; `device` is the device's own name, `nodes` those of all ranks."""
    return Environment(
        device=device,
        world_size=world_size,
        nodes=nodes,
        machine=f"{platform.system()} {platform.machine()}",
        cpu_count=os.cpu_count() or 1,
        versions=versions(),
    )


def now() -> datetime.datetime:
    """The time of an observation, in UTC."""
    return datetime.datetime.now(datetime.UTC)
