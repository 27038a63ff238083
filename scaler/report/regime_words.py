"""Batch size 1, mini-batches and the full batch in words: a table and sentences from their figures."""

from collections.abc import Sequence

from scaler.fit.regimes import RegimeFit, RegimesFit
from scaler.report.wording import counted, interval
from scaler.stats import Estimate
from scaler.units import format_count, format_seconds

REGIME_HEADERS = (
    "batch",
    "rate",
    "steps",
    "epochs",
    "an epoch",
    "noise",
    "steps up",
    "unrest",
    "end cost",
    "ended by",
)
REGIME_NOTE = (
    "Noise: standard deviation of a step's cost from one step to the next, over the second half of the "
    "steps. Steps up: share of the steps whose cost was above the one before. Unrest: as noise, of the cost "
    "over all sampled examples from one snapshot of the weights to the next: what the weights do, whatever "
    "examples a step drew. 90% intervals are within this one run: seeds were not repeated."
)

_ABSENT = "-"
_NAMED = 3  # modules that are listed
_ENDS = {"limit": "plan", "deadline": "time", "diverged": "DIVERGED", "undefined": "not measurable"}


def regime_name(regime: RegimeFit, fit: RegimesFit) -> str:
    """Name a regime by its batch, and its rate where that is not the rule's."""
    name = format_count(regime.batch)
    if regime.batch == fit.data_examples:
        name += " (full batch)"
    return name if regime.rate_factor == 1 else f"{name} at {regime.rate_factor:g} x rate"


def format_cost(cost: float) -> str:
    """Write a cost to three digits: one that diverges has dozens."""
    return f"{cost:.3g}"


def regime_rows(fit: RegimesFit) -> list[list[tuple[str, str]]]:
    """Make a table line for each regime: cells of (value, 90% interval or nothing)."""
    return [_row(regime, fit) for regime in fit.regimes]


def _row(regime: RegimeFit, fit: RegimesFit) -> list[tuple[str, str]]:
    def estimated(estimate: Estimate | None, seconds: bool = False) -> tuple[str, str]:
        form = format_seconds if seconds else format_cost
        return (form(estimate.value), interval(estimate, form)) if estimate else (_ABSENT, "")

    rises = _ABSENT if regime.rises is None else f"{regime.rises:.0%}"
    end = _ABSENT if regime.end_cost is None else format_cost(regime.end_cost)
    return [
        (regime_name(regime, fit), ""),
        (f"{regime.learning_rate:g}", ""),
        (format_count(regime.iterations), ""),
        (format_count(regime.epochs), ""),
        estimated(regime.epoch_time_s, seconds=True),
        estimated(regime.noise),
        (rises, ""),
        estimated(regime.unrest),
        (end, ""),
        (_ENDS[regime.stop], ""),
    ]


def regime_sentences(fit: RegimesFit) -> list[str]:
    """Say what was seen, each sentence with its figures; what was not seen is left out."""
    found = [
        _lesson(fit),
        _time_sentence(fit),
        _common_sentence(fit),
        _end_sentence(fit),
        _smaller_rate_sentence(fit),
        *_fault_sentences(fit),
    ]
    return [sentence for sentence in found if sentence]


def how_sentences(fit: RegimesFit) -> list[str]:
    """Say how it was measured: the data, the rates, the bounds, the sample."""
    data = f"The data of every regime is {_of(fit.data_examples, fit.train_examples)}"
    data += "." if fit.data_examples == fit.train_examples else ", drawn at random"
    if fit.data_examples < 0.9 * fit.train_examples:
        data += f": more full batches would not fit into {format_seconds(fit.budget_s)}."
    elif fit.data_examples < fit.train_examples:
        data += ", so that passes of one size make up the full batch."
    parts = [
        data,
        "All regimes start from the same weights. The learning rate is the reference's times the square root "
        "of batch over reference batch, which keeps the variance of a step alike (Krizhevsky 2014, arXiv "
        "1404.5997); a tenth of it was tried besides at size 1, and where a regime diverged or made "
        "no real progress (less than a tenth of the largest drop in cost).",
        "A regime does 20 epochs and at least 200 steps, or what fits into an equal share of 60% of the "
        f"budget of {format_seconds(fit.budget_s)}; 30% of it is for the costs at snapshots and on the "
        "contour.",
        f"The cost at snapshots and on the contour is the mean loss over "
        f"{_of(fit.sample_examples, fit.data_examples)}, dropout off.",
    ]
    accumulated = [r for r in fit.regimes if r.passes > 1]
    if accumulated:
        parts.append(
            "Accumulated, since a larger pass does not fit or is slower: "
            + ", ".join(dict.fromkeys(f"{format_count(r.batch)} in {r.passes} passes" for r in accumulated))
            + "."
        )
    if fit.batch_statistics:
        more = " ..." if len(fit.batch_statistics) > _NAMED else ""
        parts.append(
            f"The model has batch statistics ({counted(len(fit.batch_statistics), 'module')}: "
            f"{', '.join(fit.batch_statistics[:_NAMED])}{more}), taken over one pass in training and in the "
            "cost."
        )
    return parts


def _lesson(fit: RegimesFit) -> str:
    noises = [
        f"{format_cost(r.noise.value)} at batch {regime_name(r, fit)} ({r.rises:.0%} of the steps went up)"
        for r in _of_each_size(fit)
        if r.noise is not None and r.rises is not None
    ]
    if len(noises) < 2:
        return ""
    return f"From one step to the next the cost varies by {listed(_ends_of(noises))}."


def _time_sentence(fit: RegimesFit) -> str:
    times = [
        f"{format_seconds(r.epoch_time_s.value)} at batch {format_count(r.batch)}"
        for r in _of_each_size(fit)
        if r.epoch_time_s is not None
    ]
    return f"An epoch takes {listed(times)}." if len(times) > 1 else ""


def _common_sentence(fit: RegimesFit) -> str:
    there = [(r, r.arrival) for r in fit.regimes if r.spans_plane and r.arrival is not None]
    if fit.common_cost is None or len(there) < 2:
        return ""
    first, arrival = min(there, key=lambda pair: pair[1].time_s)
    others = [
        f"{regime_name(r, fit)} after {_took(a.time_s, a.epochs, a.iterations)}"
        for r, a in there
        if r is not first
    ]
    return (
        f"A cost of {format_cost(fit.common_cost)}, the lowest that all reached, batch "
        f"{regime_name(first, fit)} has first, after "
        f"{_took(arrival.time_s, arrival.epochs, arrival.iterations)}; {listed(others)}."
    )


def _took(time_s: float, epochs: float, iterations: int) -> str:
    return f"{format_seconds(time_s)} ({format_count(epochs)} epochs, {counted(iterations, 'step')})"


def _end_sentence(fit: RegimesFit) -> str:
    ended = [r for r in fit.regimes if r.end_cost is not None and r.start_cost is not None]
    if not ended:
        return ""
    ends = [f"{format_cost(r.end_cost or 0)} at batch {regime_name(r, fit)}" for r in ended]
    return f"The paths start at a cost of {format_cost(ended[0].start_cost or 0)} and end at {listed(ends)}."


def _smaller_rate_sentence(fit: RegimesFit) -> str:
    single = [r for r in fit.regimes if r.batch == 1]
    if len(single) != 2 or single[0].unrest is None or single[1].unrest is None:
        return ""
    large, small = single
    assert large.unrest is not None and small.unrest is not None
    if small.unrest.value <= 0 or large.stop == "diverged" or small.stop == "diverged":
        return ""
    ratio = large.unrest.value / small.unrest.value
    change = f"{format_count(ratio)} times less" if ratio >= 1 else f"{format_count(1 / ratio)} times more"
    ends = ""
    if large.end_cost is not None and small.end_cost is not None:
        ends = (
            f"; it ends at a cost of {format_cost(small.end_cost)} after "
            f"{counted(small.iterations, 'step')} instead of {format_cost(large.end_cost)} after "
            f"{format_count(large.iterations)}"
        )
    return (
        f"At size 1 a learning rate of {small.learning_rate:g} instead of {large.learning_rate:g} makes the "
        f"cost over all sampled examples move {change} between snapshots "
        f"({format_cost(small.unrest.value)} instead of {format_cost(large.unrest.value)}){ends}."
    )


def _fault_sentences(fit: RegimesFit) -> list[str]:
    found = []
    for regime in fit.regimes:
        name = f"Batch {regime_name(regime, fit)}"
        if regime.stop == "diverged":
            found.append(
                f"{name} diverged after {counted(regime.iterations, 'step')} at learning rate "
                f"{regime.learning_rate:g}: its cost is no number any more."
            )
        elif regime.stop == "undefined":
            found.append(f"{name} is not measurable: {regime.reason}.")
        elif not regime.spans_plane and regime.start_cost is not None and regime.end_cost is not None:
            found.append(
                f"{name} made no real progress at learning rate {regime.learning_rate:g}: from a cost of "
                f"{format_cost(regime.start_cost)} to {format_cost(regime.end_cost)} in "
                f"{counted(regime.iterations, 'step')} (lowest on the way: "
                f"{format_cost(regime.lowest_cost or 0)}); its path has no part in choosing the plane."
            )
    return found


def _of_each_size(fit: RegimesFit) -> list[RegimeFit]:
    """Give one regime a batch that ended: the first that made progress, else the first."""
    ended = [regime for regime in fit.regimes if regime.stop in ("limit", "deadline")]
    chosen = {regime.batch: regime for regime in reversed(ended)}
    chosen |= {regime.batch: regime for regime in reversed(ended) if regime.spans_plane}
    return sorted(chosen.values(), key=lambda regime: regime.batch)


def _ends_of(items: Sequence[str]) -> list[str]:
    """Keep the first, the second and the last: what lies between adds no new lesson."""
    return [*items[:2], items[-1]] if len(items) > 3 else list(items)


def listed(items: Sequence[str]) -> str:
    """Join with commas and a last "and"."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def _of(number: int, whole: int) -> str:
    if number == whole:
        return f"all {format_count(whole)} examples" if whole > 1 else "one example"
    return f"{format_count(number)} of {format_count(whole)} examples"
