"""Whether a micro-batch had better be a power of two on this device."""

import math
from collections.abc import Iterable

import numpy as np

from scaler.records import PowersRecord
from scaler.schema import Strict
from scaler.stats import Estimate, Floats, block_bootstrap

_MATTERS = 0.02  # share of a pass's time from which on a size is avoided
_GRAIN = (
    8  # what tensor cores want 16-bit sizes to be multiples of (NVIDIA, Matrix Multiplication Background)
)
_METHOD = "median ratio of passes in turn; bootstrap in blocks of rounds"


class PowersFit(Strict):
    """Times of a pass over those on a straight line through its neighbours: 1 where nothing matters."""

    power: int
    """2^k, the size that was held against others."""
    neighbours: Estimate
    """Mean of 2^k - 1 and 2^k + 1 examples over 2^k examples."""
    between: Estimate
    """3 x 2^(k-1) examples over the mean of 2^k and 2^(k+1)."""

    verdict: str
    """Whether powers of two matter on this device, in a sentence."""

    @property
    def grain(self) -> int:
        """Give what micro-batches had better be multiples of: 8 where odd sizes are slower, else 1."""
        return _GRAIN if _is_slower(self.neighbours) else 1


def fit_powers(records: Iterable[PowersRecord]) -> PowersFit | None:
    """Judge the last record; None without one.

    A pass takes overhead + per_example x size: at equal work neighbours of a size, and the two ends of a
    stretch, average to its own time.
    """
    found = list(records)
    if not found:
        return None
    below, power, above, middle, double = np.array(found[-1].step_times_s)
    neighbours, between = _ratio((below + above) / 2, power), _ratio(middle, (power + double) / 2)
    size = found[-1].micro_batches[1]
    return PowersFit(
        power=size, neighbours=neighbours, between=between, verdict=_verdict(size, neighbours, between)
    )


def _is_slower(ratio: Estimate) -> bool:
    return ratio.low is not None and ratio.low > 1 + _MATTERS


def _verdict(power: int, neighbours: Estimate, between: Estimate) -> str:
    if _is_slower(between):
        return f"powers of two are faster here: {3 * power // 2} examples take {between.value - 1:.1%} more"
    if _is_slower(neighbours):
        return (
            f"multiples of {_GRAIN} are faster here, powers of two among them no more than others: "
            f"{power - 1} and {power + 1} examples take {neighbours.value - 1:.1%} more"
        )
    if _is_even(neighbours) and _is_even(between):
        return (
            f"powers of two do not matter here: any size near {power} takes its share of the time, "
            f"within {_MATTERS:.0%}"
        )
    found = "powers of two are not faster here"
    if max(neighbours.high or math.inf, between.high or math.inf) > 1 + _MATTERS:
        found = "not settled whether powers of two are faster here"
    return (
        f"{found}: {power - 1} and {power + 1} examples take {_more(neighbours)}, "
        f"{3 * power // 2} take {_more(between)}"
    )


def _is_even(ratio: Estimate) -> bool:
    return ratio.is_identified and (ratio.low or 0) >= 1 - _MATTERS and (ratio.high or 0) <= 1 + _MATTERS


def _more(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value - 1:+.1%} more (too few rounds for an interval)"
    return f"{ratio.low - 1:+.1%} to {ratio.high - 1:+.1%} more"


def _ratio(over: Floats, under: Floats) -> Estimate:
    logs = np.log(over / under)
    interval = block_bootstrap(logs, lambda rows: float(np.median(rows)))
    low, high = np.exp(interval) if interval else (None, None)
    return Estimate(
        value=float(np.exp(np.median(logs))), low=low, high=high, samples=len(logs), method=_METHOD
    )
