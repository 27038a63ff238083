"""The rules of thumb that people follow, held against the measurement."""

from scaler.batch import SMALL_DATASET_EXAMPLES
from scaler.decide.choose import Option
from scaler.decide.config import RuleOfThumb

_CLOSE = 1.05  # within 5% of the best time a rule is called right


def rules_of_thumb(
    ranked: list[Option], train_examples: int, untried: Option | None = None
) -> tuple[RuleOfThumb, ...]:
    """Score each rule that applies to this data set on the ranked options of one worker count.

    `untried` is a batch that the search left out, with its predicted time.
    """
    timed = {o.plan.global_batch: o.time_s.value for o in ranked if o.time_s is not None}
    if not timed:
        return ()
    left_out = untried.plan.global_batch if untried is not None else None
    if untried is not None and untried.time_s is not None:
        timed[untried.plan.global_batch] = untried.time_s.value
    rules = []
    if train_examples <= SMALL_DATASET_EXAMPLES:
        rules.append(
            (f"up to about {SMALL_DATASET_EXAMPLES:,} examples, take the full batch", train_examples)
        )
    else:
        usual = [batch for batch in (512, 256, 128, 64) if batch in timed]
        if usual:
            rules.append(("take 64 to 512, a power of two", min(usual, key=timed.__getitem__)))
    rules.append(("take the largest batch that memory and data allow", max(timed)))
    return tuple(_score(rule, batch, timed, batch == left_out) for rule, batch in rules)


def _score(rule: str, batch: int, timed: dict[int, float], predicted: bool) -> RuleOfThumb:
    best = min(timed, key=timed.__getitem__)
    if batch not in timed:
        verdict = f"a global batch of {batch:,} did not reach the target or does not fit"
        return RuleOfThumb(rule=rule, global_batch=batch, agrees=False, verdict=verdict)
    ratio = timed[batch] / timed[best]
    agrees = ratio <= _CLOSE
    if predicted:
        verdict = (
            f"prediction {'agrees' if agrees else 'disagrees'}: {batch:,} was not tried, since the time to "
            f"target rose before it; it would take {ratio:.2f} x the time of {best:,}"
        )
    elif batch == best:
        verdict = f"measurement agrees: {batch:,} is the fastest"
    elif agrees:
        verdict = f"measurement agrees: {batch:,} takes {ratio - 1:.1%} longer than {best:,}, within 5%"
    else:
        verdict = f"measurement disagrees: {batch:,} takes {ratio:.2f} x the time of {best:,}"
    return RuleOfThumb(rule=rule, global_batch=batch, agrees=agrees, time_ratio=ratio, verdict=verdict)
