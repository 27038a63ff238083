"""The rules of thumb that people follow, held against the measurement: what each would cost."""

from collections.abc import Iterable, Sequence

from scaler.batch import SMALL_DATASET_EXAMPLES
from scaler.decide.choose import Option
from scaler.decide.config import RuleOfThumb
from scaler.fit.rate_rules import RateRule

_CLOSE = 1.05  # within 5% of the best time a rule is called right
_RATE_RULES = {
    "linear": "grow the learning rate in proportion to the batch",
    "square root": "grow the learning rate with the square root of the batch",
}


def rules_of_thumb(
    ranked: Sequence[Option], rate_rules: Iterable[RateRule], untried: Option | None = None
) -> tuple[RuleOfThumb, ...]:
    """Score each rule that applies to this data set on the ranked options of one worker count.

    `untried` is a batch that the search left out, with its predicted time.
    """
    timed = {o.plan.global_batch: o.typical_time_s for o in ranked if o.typical_time_s is not None}
    if not timed:
        return ()
    best, fits = min(timed, key=timed.__getitem__), ranked[0].fits
    if untried is not None and untried.typical_time_s is not None:
        timed[untried.plan.global_batch] = untried.typical_time_s
    rules = []
    if fits.train_examples <= SMALL_DATASET_EXAMPLES:
        rules.append(
            (f"up to about {SMALL_DATASET_EXAMPLES:,} examples, take the full batch", fits.train_examples)
        )
    else:
        usual = [batch for batch in (512, 256, 128, 64) if batch in timed]
        if usual:
            rules.append(("take 64 to 512, a power of two", min(usual, key=timed.__getitem__)))
    rules.append(("take the largest batch that memory and data allow", max(timed)))
    scored = [_score(rule, batch, best, timed, batch not in fits.tried) for rule, batch in rules]
    return (*scored, *_rates(rate_rules, ranked[0]))


def _score(rule: str, batch: int, best: int, timed: dict[int, float], predicted: bool) -> RuleOfThumb:
    if batch not in timed:
        verdict = f"a global batch of {batch:,} did not reach the target or does not fit"
        return RuleOfThumb(rule=rule, global_batch=batch, agrees=False, verdict=verdict)
    ratio = timed[batch] / timed[best]
    agrees = ratio <= _CLOSE
    if predicted:
        verdict = (
            f"prediction {'agrees' if agrees else 'disagrees'}: {batch:,} was not tried; it would take "
            f"{ratio:.2f} x the time of {best:,}"
        )
    elif batch == best:
        verdict = f"measurement agrees: {batch:,} is the fastest"
    elif agrees:
        verdict = f"measurement agrees: {batch:,} takes {ratio - 1:.1%} longer than {best:,}, within 5%"
    else:
        verdict = f"measurement disagrees: {batch:,} takes {ratio:.2f} x the time of {best:,}"
    return RuleOfThumb(rule=rule, global_batch=batch, agrees=agrees, time_ratio=ratio, verdict=verdict)


def _rates(rate_rules: Iterable[RateRule], best: Option) -> list[RuleOfThumb]:
    """Score the rules that carry the reference's rate to the answer's batch, by the examples they cost."""
    found = []
    for rule in rate_rules:
        if rule.origin != "reference" or rule.rule not in _RATE_RULES:
            continue
        for ruled in rule.rates:
            if ruled.global_batch == best.plan.global_batch and ruled.cost and ruled.learning_rate:
                ratio = ruled.cost.value
                verdict = (
                    f"from the reference's {rule.from_rate:g} to {ruled.learning_rate:.3g}, where "
                    f"{best.learning_rate:.3g} is advised: {ratio:.2f} x the examples of the best rate"
                )
                found.append(
                    RuleOfThumb(
                        rule=_RATE_RULES[rule.rule],
                        global_batch=ruled.global_batch,
                        agrees=ratio <= _CLOSE,
                        time_ratio=ratio,
                        verdict=verdict,
                    )
                )
    return found
