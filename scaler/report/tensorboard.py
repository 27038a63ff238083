"""A run's records and answer as TensorBoard event files: `tensorboard --logdir DIR` shows them."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scaler.batch import BatchPlan
from scaler.decide.config import BatchConfig
from scaler.errors import BadInput
from scaler.records import BranchRecord, ConvergenceRecord, Record, ThroughputRecord


def write_events(config: BatchConfig, records: Iterable[Record], folder: str | Path) -> int:
    """Write event files into a new folder, all or none; returns how many runs TensorBoard will list.

    `answer` has the chosen plan as hparams, and each predicted quantity with its interval beside what was
    observed; every trial and branch its curve over examples, and hparams; every launch its step times in s.

    Raises:
        BadInput: tensorboard is not installed, or the folder has something in it or cannot be made.
    """
    make = _writer()
    folder = Path(folder).absolute()
    try:
        if folder.exists() and any(folder.iterdir()):
            raise BadInput(f"{folder} is not empty", hint="give --tensorboard a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise BadInput(
            f"cannot write {folder}: {error.strerror}", hint="give a folder you may write to"
        ) from None
    try:
        names = _write_all(make, config, records, part)
        part.chmod(0o755)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return names


def _write_all(make: Any, config: BatchConfig, records: Iterable[Record], folder: Path) -> int:
    _write_answer(make(folder / "answer"), config)
    written = 1
    for number, record in enumerate(records):
        if isinstance(record, ConvergenceRecord):
            points = [(e.examples, e.metric) for e in record.curve]
            _write_trial(make(folder / _name(record.kind, number, record.plan)), record, "metric", points)
        elif isinstance(record, BranchRecord):
            length = record.examples / record.points
            ends = [(round(length * (n + 1)), loss) for n, loss in enumerate(record.losses)]
            _write_trial(make(folder / _name("branch", number, record.plan)), record, "loss", ends)
        elif isinstance(record, ThroughputRecord):
            with make(folder / _name("launch", number, record.plan)) as writer:
                for step, time_s in enumerate(record.step_times_s):
                    writer.add_scalar("step_time_s", time_s, step)
        else:
            continue
        written += 1
    return written


def _name(kind: str, number: int, plan: BatchPlan) -> str:
    return f"{kind}-{number:03d}-batch-{plan.global_batch}-workers-{plan.workers}"


def _write_answer(writer: Any, config: BatchConfig) -> None:
    answer = config.chosen
    hparams = {**_plan_hparams(answer.plan, answer.learning_rate), "warmup_steps": answer.warmup_steps}
    predicted = {
        name: found.value
        for name in ("step_time_s", "samples_per_s", "examples_to_target", "time_to_target_s")
        if (found := getattr(answer, name)) is not None
    }
    with writer:
        writer.add_hparams(hparams, {f"hparam/{n}": v for n, v in predicted.items()}, run_name=".")
        for comparison in config.confirmation.comparisons if config.confirmation is not None else ():
            estimate = comparison.predicted
            figures = {
                "predicted": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "observed": comparison.observed,
            }
            for name, value in figures.items():
                if value is not None:
                    writer.add_scalar(f"{comparison.quantity}/{name}", value, 0)


def _write_trial(
    writer: Any, record: ConvergenceRecord | BranchRecord, tag: str, curve: list[tuple[int, float | None]]
) -> None:
    hparams = {**_plan_hparams(record.plan, record.learning_rate), "seed": record.seed}
    finite = [(examples, value) for examples, value in curve if value is not None]
    ends: dict[str, float] = {"hparam/examples": record.examples}
    if finite:
        ends[f"hparam/{tag}"] = finite[-1][1]
    if isinstance(record, ConvergenceRecord):
        hparams["stop"] = record.stop
    with writer:
        writer.add_hparams(hparams, ends, run_name=".")
        for examples, value in finite:
            writer.add_scalar(tag, value, examples)


def _plan_hparams(plan: BatchPlan, learning_rate: float) -> dict[str, Any]:
    micro_batches = ",".join(map(str, plan.micro_batches))
    return {
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch if plan.is_equal else micro_batches,
        "accumulation": plan.accumulation,
        "workers": plan.workers,
        "zero_stage": plan.zero_stage,
        "learning_rate": learning_rate,
    }


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadInput(
            "event files need TensorBoard, which is not installed", hint="pip install 'scaler[tensorboard]'"
        ) from None
    return lambda folder: SummaryWriter(str(folder))
