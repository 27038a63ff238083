"""Which learning-rate rule holds, in words and cells: shared by the page and the terminal."""

from scaler.decide.config import BatchConfig
from scaler.fit.rate_rules import RateRule, RuledRate
from scaler.report.wording import counted
from scaler.units import format_count

TITLE = "Which learning-rate rule holds here"
_NOT_APPLICABLE = "not applicable"
_FAR = 4.0  # times the examples, beyond which the curve's form is not known


def rule_headers(config: BatchConfig) -> tuple[str, ...]:
    """Name the columns: the rule, where its rate comes from, and every global batch it was carried to."""
    rules = config.findings.learning_rate_rules
    return (
        ("rule", "from rate", *(format_count(ruled.global_batch) for ruled in rules[0].rates))
        if rules
        else ()
    )


def rule_lines(config: BatchConfig) -> list[list[tuple[str, str]]]:
    """Write each rule's rate at each batch and what following it costs, as (value, 90% interval) cells.

    * marks a rate outside the best rate's interval. A rule that applies nowhere has its line once, whatever
    rate it would start from.
    """
    lines = []
    for rule in config.findings.learning_rate_rules:
        applied = any(ruled.not_applicable is None for ruled in rule.rates)
        if not applied and rule.origin != "reference":
            continue
        origin = f"{rule.from_rate:.3g}, {rule.origin}" if applied else _NOT_APPLICABLE
        cells = [_cell(ruled) if applied else ("", "") for ruled in rule.rates]
        lines.append([(rule.rule, ""), (origin, ""), *cells])
    return lines


def rule_notes(config: BatchConfig) -> list[str]:
    """Say what the rules are, where they do not apply and why, and how to read the cells."""
    rules = [rule for rule in config.findings.learning_rate_rules if rule.origin == "reference"]
    if not rules:
        return []
    notes = [
        f"Rates carried from batch {format_count(rules[0].from_batch)} (k: the batch over it), with the "
        "examples to target they cost over the best rate's by the fitted curve; * outside the 90% interval "
        "of the best rate. Changes that a rule makes to the betas were not measured."
    ]
    for rule in rules:
        reasons: dict[str, list[str]] = {}
        for ruled in rule.rates:
            if ruled.not_applicable is not None:
                reasons.setdefault(ruled.not_applicable, []).append(format_count(ruled.global_batch))
        whole = [reason for reason, batches in reasons.items() if len(batches) == len(rule.rates)]
        parts = whole or [f"at {', '.join(batches)}: {reason}" for reason, batches in reasons.items()]
        outside = f"; {_NOT_APPLICABLE}: {'; '.join(parts)}" if parts else ""
        notes.append(f"{rule.rule}: {rule.formula}{outside}")
    return notes


def rule_sentence(config: BatchConfig) -> str:
    """Say which rule follows the measurement best from the measured best rate; empty without rules."""
    rules = [rule for rule in config.findings.learning_rate_rules if rule.origin == "measured best"]
    worst = {rule.rule: cost for rule in rules if (cost := _worst_cost(rule)) is not None}
    if not worst:
        return ""
    best, last = (choose(worst, key=lambda name: worst[name][0]) for choose in (min, max))
    batches = counted(len(rules[0].rates), "batch", "batches")
    text = f"From the measured best rate, {best} scaling stays nearest over {batches}: at most "
    text += _more(*worst[best])
    return f"{text}." if best == last else f"{text}. With {last} scaling it is up to {_more(*worst[last])}."


def _worst_cost(rule: RateRule) -> tuple[float, int] | None:
    """Give the dearest (cost, batch) of a rule that applies to every batch."""
    costs = [(ruled.cost.value, ruled.global_batch) for ruled in rule.rates if ruled.cost is not None]
    return max(costs) if len(costs) == len(rule.rates) else None


def _more(cost: float, batch: int) -> str:
    more = f"{cost - 1:.0%} more examples" if cost < _FAR else f"over {_FAR:g} x the examples"
    return f"{more} (at batch {format_count(batch)})"


def _cell(ruled: RuledRate) -> tuple[str, str]:
    rate, cost = ruled.learning_rate, ruled.cost
    if rate is None or cost is None:
        return _NOT_APPLICABLE, ""
    bounds = "" if cost.low is None or cost.high is None else f"{_extra(cost.low)} to {_extra(cost.high)}"
    return f"{rate:.3g}{'' if ruled.inside else '*'} {_extra(cost.value)}", bounds


def _extra(cost: float) -> str:
    return f"+{cost - 1:.0%}" if cost < _FAR else f"> {_FAR:g} x"
