"""Predicted beside observed, once the chosen configuration was trained."""

from collections.abc import Sequence

import numpy as np

from scaler.decide.config import Answer, BatchConfig, Comparison, Confirmation
from scaler.records import ConfirmationRecord, MemoryRecord, Record, ThroughputRecord
from scaler.stats import Estimate, settled_from


def with_confirmation(config: BatchConfig, records: Sequence[Record]) -> BatchConfig:
    """Add predicted against observed, where the chosen configuration was trained."""
    chosen = config.chosen
    confirmations = [
        r
        for r in records
        if isinstance(r, ConfirmationRecord)
        and (r.plan, r.learning_rate) == (chosen.plan, chosen.learning_rate)
    ]
    peaks = [r for r in records if isinstance(r, MemoryRecord) and r.held_out and r.plan == chosen.plan]
    runs = [r for r in records if isinstance(r, ThroughputRecord) and r.held_out and r.plan == chosen.plan]
    peak = peaks[-1] if peaks else None
    if confirmations:
        confirmation = compare(chosen, confirmations[-1], peak)
    elif runs:
        confirmation = compare_launch(chosen, runs[-1], peak)
    else:
        return config
    return config.model_copy(update={"confirmation": confirmation, "records": len(records)})


def compare(answer: Answer, record: ConfirmationRecord, memory: MemoryRecord | None) -> Confirmation:
    """Hold the answer's predictions against one confirming run."""
    used = record.step_times_s[: record.steps]
    settled = used[settled_from(used) :]
    step_time_s = float(np.median(settled))
    rows = [_row("step_time_s", answer.step_time_s, step_time_s)]
    if record.reached:
        rows.append(_row("examples_to_target", answer.examples_to_target, float(record.examples)))
        rows.append(_row("time_to_target_s", answer.time_to_target_s, record.steps * float(np.mean(settled))))
    rows.append(_peak(answer, memory))
    return Confirmation(
        reached=record.reached,
        examples=record.examples,
        steps=record.steps,
        final_metric=record.curve[-1].metric if record.curve else None,
        comparisons=tuple(row for row in rows if row is not None),
    )


def compare_launch(answer: Answer, run: ThroughputRecord, memory: MemoryRecord | None) -> Confirmation:
    """Hold the predicted step time and peak against one launch that was not trained to the target."""
    step_time_s = float(np.median(run.step_times_s[run.warmup_steps :]))
    rows = [_row("step_time_s", answer.step_time_s, step_time_s), _peak(answer, memory)]
    return Confirmation(comparisons=tuple(row for row in rows if row is not None))


def _peak(answer: Answer, memory: MemoryRecord | None) -> Comparison | None:
    if memory is None or memory.peak_bytes is None:
        return None
    return _row("peak_memory_bytes", answer.peak_memory_bytes, float(memory.peak_bytes))


def _row(quantity: str, predicted: Estimate | None, observed: float) -> Comparison | None:
    if predicted is None:
        return None
    inside = None
    if predicted.low is not None and predicted.high is not None:
        inside = predicted.low <= observed <= predicted.high
    return Comparison(quantity=quantity, predicted=predicted, observed=observed, inside=inside)
