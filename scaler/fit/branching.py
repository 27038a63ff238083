"""The largest batch that does not lose, by branches of one state (Merrill et al. 2025, arXiv 2505.23971)."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from scaler.fit.branch_losses import (
    BranchGroup,
    ReferenceCurve,
    best_rates,
    differences,
    latest_study,
    spread,
)
from scaler.records import BranchRecord, RateScaling
from scaler.schema import Strict
from scaler.stats import CONFIDENCE, Estimate, Floats

TOLERATED = 1.25  # times the reference's examples for the same loss that is not called losing
_SLOWEST = 100.0
_HALVINGS = 30
_METHOD = "paired over data orders, variance pooled over batches; t"
_CRITICAL = "branches: (1 + B / B_crit) against the reference's; profile of the squared residuals, F"

Verdict = Literal["reference", "does not lose", "undecided", "loses"]


class BranchResult(Strict):
    """What the branches with one global batch and rate came to."""

    global_batch: int
    learning_rate: float
    rate_rule: RateScaling
    seeds: int
    loss: float | None = None
    """Mean training loss over the last half of the stretch; absent where a branch diverged."""
    difference: Estimate | None = None
    """Of that loss from the reference's, on the same examples."""
    slowdown: Estimate | None = None
    """How many times the reference's examples the same loss takes; without an upper end beyond 100."""
    held_out_difference: Estimate | None = None
    """Of the held-out loss at the end from the reference's."""
    verdict: Verdict


class BranchingFit(Strict):
    """Which of the branched batches lose to the reference's."""

    reference_batch: int
    start_examples: int | None = None
    examples: int
    """Length of each branch."""
    rewarm_examples: int
    tolerance: float
    """Loss beyond the reference's that is not called losing."""
    results: tuple[BranchResult, ...]
    """At each batch the rate that did best; the reference first."""
    critical_batch: Estimate | None = None
    """Batch that takes twice the fewest examples; absent where the branches cannot identify it."""
    critical_at_least: float | None = None
    """Lower end of its 90% interval, where there is no upper."""

    @property
    def best(self) -> BranchResult:
        """The largest batch that does not lose; the reference where no larger one is shown not to."""
        below = [r for r in self.results if self.losing is None or r.global_batch < self.losing.global_batch]
        return [r for r in below if r.verdict in ("reference", "does not lose")][-1]

    @property
    def losing(self) -> BranchResult | None:
        """The smallest batch that loses."""
        return next((r for r in self.results if r.verdict == "loses"), None)


def fit_branching(records: Iterable[BranchRecord]) -> BranchingFit | None:
    """Compare branches with the reference's; None without branches of the reference and of another batch.

    Branches with one seed see the same examples in the same order, so their losses are compared pair by
    pair. A loss is taken before its step: larger steps take theirs after fewer examples on average, and the
    reference's own curve corrects for that.
    """
    groups = best_rates(latest_study(records))
    reference = next((group for group in groups if group.growth == 1), None)
    if reference is None or len(groups) < 2 or not reference.is_finite:
        return None
    curve = ReferenceCurve(reference)
    rise = partial(curve.rise, reference)
    trained = [differences(g.windows(), reference.windows()) - curve.rise(g) for g in groups]
    held_out = [differences(g.held_out(), reference.held_out()) for g in groups]
    tolerance = max(rise(TOLERATED), spread(reference.windows()))
    tolerances = tolerance, max(tolerance, spread(reference.held_out()))
    results = [
        _result(group, own, other, rise if curve.falls else None, tolerances)
        for group, own, other in zip(groups, _estimates(trained), _estimates(held_out), strict=True)
    ]
    critical, at_least = _critical_batch(groups, curve)
    if at_least is not None and any(r.verdict == "loses" and r.global_batch <= at_least for r in results):
        at_least = (
            None  # what lost did so in held-out loss or by divergence, of which the curve knows nothing
        )
    first = reference.runs[0]
    return BranchingFit(
        reference_batch=first.reference_batch,
        start_examples=first.start_examples,
        examples=first.examples,
        rewarm_examples=first.rewarm_examples,
        tolerance=tolerance,
        results=tuple(results),
        critical_batch=critical,
        critical_at_least=at_least,
    )


def _estimates(samples: Sequence[Floats]) -> list[Estimate | None]:
    """Estimate each batch's mean difference, variance pooled over batches; the first is the reference."""
    told = [sample for sample in samples[1:] if len(sample) and np.isfinite(sample).all()]
    dof = sum(len(sample) - 1 for sample in told)
    variance = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in told) / max(dof, 1)
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, dof)) if dof else math.inf
    found: list[Estimate | None] = [None]
    for sample in samples[1:]:
        estimate = None
        if len(sample) and np.isfinite(sample).all():
            half = quantile * math.sqrt(variance / len(sample)) if dof else None
            value = float(sample.mean())
            ends = (None, None) if half is None else (value - half, value + half)
            estimate = Estimate(value=value, low=ends[0], high=ends[1], samples=len(sample), method=_METHOD)
        found.append(estimate)
    return found


def _slowdown(difference: Estimate, rise: Callable[[float], float]) -> Estimate | None:
    """Read off the reference's curve how many times its examples the same loss takes."""
    times = np.geomspace(0.5, _SLOWEST, 300)
    rises = np.maximum.accumulate([rise(float(r)) for r in times])
    if rises[-1] <= rises[0] or difference.value > rises[-1]:
        return None

    def read(loss: float | None) -> float | None:
        return None if loss is None or loss > rises[-1] else float(np.interp(loss, rises, times))

    return difference.model_copy(
        update={
            "value": float(np.interp(difference.value, rises, times)),
            "low": read(difference.low),
            "high": read(difference.high),
            "method": f"{difference.method}; read off the reference's curve",
        }
    )


def _result(
    group: BranchGroup,
    difference: Estimate | None,
    held_out: Estimate | None,
    rise: Callable[[float], float] | None,
    tolerances: tuple[float, float],
) -> BranchResult:
    first = group.runs[0]
    is_reference = group.growth == 1
    return BranchResult(
        global_batch=first.plan.global_batch,
        learning_rate=first.learning_rate,
        rate_rule=first.rate_rule,
        seeds=len(group.runs),
        loss=group.mean if group.is_finite else None,
        difference=difference,
        slowdown=_slowdown(difference, rise) if difference is not None and rise is not None else None,
        held_out_difference=held_out,
        verdict="reference" if is_reference else _verdict(group, (difference, held_out), tolerances),
    )


def _verdict(
    group: BranchGroup, differences: tuple[Estimate | None, Estimate | None], tolerances: tuple[float, float]
) -> Verdict:
    """Judge by the training loss, and by the held-out loss where that is surely worse."""
    trained, held_out = differences
    if not group.is_finite:
        return "loses"
    if trained is None or held_out is None or trained.low is None or held_out.low is None:
        return "undecided"
    if trained.low > tolerances[0] or held_out.low > tolerances[1]:
        return "loses"
    return "does not lose" if (trained.high or 0.0) <= tolerances[0] else "undecided"


def _critical_batch(
    groups: Sequence[BranchGroup], curve: ReferenceCurve
) -> tuple[Estimate | None, float | None]:
    """Fit B_crit to (B_crit + k B) / (B_crit + B), how much slower than the reference k times its batch is.

    The hyperbola of McCandlish et al. 2018 (arXiv 1812.06162, eq. 2.11), on the stretch. Data orders have
    effects of their own. A batch that is slower than even k times fell to its rate, and says nothing here.
    Gives (the estimate or None, the lower end of an interval without an upper or None).
    """
    reference = groups[0]
    told = []
    for group in groups:
        pairs = differences(group.windows(), reference.windows())
        if len(pairs) and pairs.mean() <= max(curve.rise(group, group.growth), 0.0):
            told.append(group)
    seeds = sorted(set.intersection(*(set(group.windows()) for group in [reference, *told])))
    losses = np.array([[group.windows()[seed] for seed in seeds] for group in told])
    dof = losses.size - len(seeds) - 1
    if len(told) < 2 or dof < 1 or not curve.falls:
        return None, None
    batch = float(reference.runs[0].reference_batch)
    quantile = float(stats.f.ppf(CONFIDENCE, 1, dof))

    def squares(critical: float) -> float:
        rises = [curve.rise(g, (critical + g.growth * batch) / (critical + batch)) for g in told]
        left = losses - np.array(rises)[:, None]
        return float(((left - left.mean(axis=0)) ** 2).sum())

    least, most = batch / 32, 32 * batch * told[-1].growth
    best = minimize_scalar(
        lambda log: squares(math.exp(log)), bounds=(math.log(least), math.log(most)), method="bounded"
    )
    held = best.fun * (1 + quantile / dof)

    def end(bound: float) -> float | None:
        """Find where the squares pass what is held, None if they do not up to the bound."""
        if squares(bound) <= held:
            return None
        inside, outside = best.x, math.log(bound)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if squares(math.exp(middle)) <= held else (inside, middle)
        return math.exp(inside)

    low, high = end(least), end(most)
    if low is None or high is None:
        return None, low
    value = math.exp(best.x)
    return Estimate(value=value, low=low, high=high, samples=losses.size, method=_CRITICAL), None
