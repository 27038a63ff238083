"""The length of the warm-up, measured at one batch and rate."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from scaler.records import ConvergenceRecord
from scaler.schema import Strict
from scaler.stats import Estimate, log_estimate

_METHOD = "geometric mean over seeds, each against itself; t"


class WarmupLength(Strict):
    """Runs with one length of warm-up, against the same seeds with the reference's."""

    warmup_examples: int
    ratio: Estimate | None
    """Examples to target over those with the reference's length; None where the target was not reached."""


class WarmupFit(Strict):
    """The lengths tried, and the one to use."""

    reference_examples: int
    lengths: tuple[WarmupLength, ...]
    chosen_examples: int
    """The length that needs fewest examples, if its 90% interval says that it needs fewer at all."""


def fit_warmup(
    records: Iterable[ConvergenceRecord], global_batch: int, learning_rate: float, reference_examples: int
) -> WarmupFit | None:
    """Compare lengths of warm-up; None where no other than the reference's was tried."""
    examples: dict[int, dict[int, int | None]] = defaultdict(dict)
    for record in records:
        tried = record.kind in ("convergence", "warmup") and record.stop != "deadline"
        if tried and (record.plan.global_batch, record.learning_rate) == (global_batch, learning_rate):
            examples[record.warmup_examples][record.seed] = record.examples if record.reached else None
    usual = examples.pop(reference_examples, {})
    lengths = tuple(
        WarmupLength(warmup_examples=length, ratio=_ratio(own, usual))
        for length, own in sorted(examples.items())
    )
    if not lengths:
        return None
    better = {
        found.warmup_examples: found.ratio.value
        for found in lengths
        if found.ratio is not None and found.ratio.high is not None and found.ratio.high < 1
    }
    chosen = min(better, key=lambda length: better[length], default=reference_examples)
    return WarmupFit(reference_examples=reference_examples, lengths=lengths, chosen_examples=chosen)


def _ratio(own: dict[int, int | None], usual: dict[int, int | None]) -> Estimate | None:
    """Compare runs with the same seeds; None if one did not reach the target."""
    if not own or any(examples is None for examples in own.values()):
        return None
    logs = np.array([np.log(a / b) for seed, a in own.items() if a and (b := usual.get(seed))])
    if not len(logs):
        return None
    error = float(logs.std(ddof=1) / np.sqrt(len(logs))) if len(logs) > 1 else None
    return log_estimate(float(logs.mean()), error, len(logs) - 1, len(logs), _METHOD)
