"""How a report says its numbers: shared by the page, the terminal and the captions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from scaler.batch import BatchPlan
from scaler.decide.config import BatchConfig, Comparison
from scaler.fit.powers import PowersFit
from scaler.stats import Estimate
from scaler.units import format_bytes, format_count, format_seconds

NOT_MEASURED = "not measured"
NOT_IDENTIFIABLE = "not identifiable"
SETTING = "a setting"  # in the place of an interval: chosen, not estimated
_SPELLED_OUT = 2  # unequal micro-batches that are still listed one by one

SWEEP_HEADERS = (
    "device memory",
    "global batch",
    "micro x passes",
    "workers",
    "samples/s",
    "time to target",
    "bound by",
)

EPOCH_HEADERS = ("global batch", "micro x passes", "steps/s", "samples/s", "an epoch", "fixed, per step")

Form = Callable[[float], str]


@dataclass(frozen=True)
class Row:
    """One line of a configuration: what, how much, its 90% interval, why, and from which evidence."""

    name: str
    value: str
    interval: str
    reason: str
    source: str = ""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun: '1 run', '2 runs'."""
    return f"{format_count(number)} {noun if number == 1 else plural or noun + 's'}"


def amount(estimate: Estimate | None, form: Form) -> str:
    """Write an estimate's value; an absent one is not measured, never 0."""
    return NOT_MEASURED if estimate is None else form(estimate.value)


def interval(estimate: Estimate | None, form: Form) -> str:
    """Write an estimate's 90% interval such as '3.9 ms to 4.6 ms', or why there is none."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return f"{NOT_IDENTIFIABLE} ({counted(estimate.samples, 'sample')})"
    return f"{form(estimate.low)} to {form(estimate.high)}"


def micro_batch_words(plan: BatchPlan) -> str:
    """Write the micro-batches: one number where they are equal, all of a few, else their range."""
    if plan.is_equal:
        return format_count(plan.micro_batch)
    if plan.workers <= _SPELLED_OUT:
        return " + ".join(format_count(entry) for entry in plan.micro_batches)
    return f"{format_count(min(plan.micro_batches))} to {format_count(plan.micro_batch)}"


def cost_words(cost: float | None) -> str:
    """Write an amount of money; what is less than a hundredth is not 0."""
    if cost is None:
        return NOT_MEASURED
    return f"{cost:,.2f}" if cost >= 0.01 else "less than 0.01"


def answer_sentence(config: BatchConfig) -> str:
    """Say the answer in one sentence."""
    answer = config.chosen
    plan = answer.plan
    passes = f", {counted(plan.accumulation, 'pass', 'passes')} each" if plan.accumulation > 1 else ""
    text = (
        f"Train {config.workload} on {counted(plan.workers, 'worker')} with a global batch of "
        f"{format_count(plan.global_batch)} (micro-batch {micro_batch_words(plan)}{passes}) "
        f"at learning rate {answer.learning_rate:g}"
    )
    time_s = answer.time_to_target_s
    if time_s is None:
        return f"{text}; {_relative(config)}"
    text += f": {format_seconds(time_s.value)} of training to the target"
    if time_s.is_identified:
        text += f" (90% interval {interval(time_s, format_seconds)})"
    return f"{text}."


def _relative(config: BatchConfig) -> str:
    """Say what is known of the time where none to the target is."""
    relative = config.chosen.relative_time
    if relative is None:
        return "the time to the target was not measured."
    reference = config.branching.reference_batch if config.branching is not None else 0
    text = f"{_times(relative.value)} the time that a global batch of {format_count(reference)} takes"
    if relative.is_identified:
        text += f" (90% interval {interval(relative, _times)})"
    return f"{text}. No run to the target fits the budget: its time is not known."


def _times(value: float) -> str:
    return f"{value:.2f} x"


def answer_rows(config: BatchConfig) -> list[Row]:
    """List the settings and the predictions of the chosen answer, each with its reason."""
    answer = config.chosen
    plan, reasons = answer.plan, _usual_reasons(config) | answer.reasons
    warmup = f"{format_count(answer.warmup_examples)} examples, {counted(answer.warmup_steps, 'step')}"

    def setting(name: str, value: str, *keys: str) -> Row:
        return Row(name, value, SETTING, _take(reasons, *keys), answer.sources.get(keys[0], ""))

    def predicted(name: str, estimate: Estimate | None, form: Form, *keys: str) -> Row:
        source = answer.sources.get(keys[0], "")
        return Row(name, amount(estimate, form), interval(estimate, form), _take(reasons, *keys), source)

    rows = [
        setting("global batch", format_count(plan.global_batch), "global_batch"),
        setting("micro-batch", micro_batch_words(plan), "micro_batch"),
        setting("accumulation", format_count(plan.accumulation), "accumulation"),
        setting("workers", format_count(plan.workers), "workers"),
        setting("ZeRO stage", str(plan.zero_stage), "zero_stage"),
        setting("learning rate", f"{answer.learning_rate:g}", "learning_rate"),
        setting("warm-up", warmup if answer.warmup_examples else "none", "warmup"),
        predicted("step time", answer.step_time_s, format_seconds, "step_time"),
        predicted("samples/s", answer.samples_per_s, format_count, "samples_per_s"),
        predicted("examples to target", answer.examples_to_target, format_count, "examples_to_target"),
        predicted("steps to target", answer.steps_to_target, format_count, "steps_to_target"),
        predicted("time to target", answer.time_to_target_s, format_seconds, "time_to_target"),
        predicted("peak memory", answer.peak_memory_bytes, format_bytes, "peak_memory"),
    ]
    if answer.relative_time is not None:
        rows.append(predicted("relative time", answer.relative_time, _times, "relative_time"))
    if answer.cost_to_target is not None:
        cost = cost_words(answer.cost_to_target)
        source = answer.sources.get("cost_to_target", "")
        why = _take(reasons, "cost_to_target")
        rows.append(Row("cost to target", cost, "as the time to target", why, source))
    rows.append(Row("batch bound by", answer.bound_by, "", _take(reasons, "bound_by")))
    # A reason given under another name is still shown.
    return rows + [Row(key.replace("_", " "), "", "", reason) for key, reason in reasons.items()]


def comparison_words(comparison: Comparison) -> tuple[str, str, str, str, str]:
    """Write a comparison as (quantity, predicted, 90% interval, observed, verdict)."""
    form = _form(comparison.quantity)
    verdict = {True: "inside", False: "OUTSIDE", None: "no interval"}[comparison.inside]
    return (
        _name(comparison.quantity),
        form(comparison.predicted.value),
        interval(comparison.predicted, form),
        form(comparison.observed),
        verdict,
    )


def confirmation_sentence(config: BatchConfig) -> str:
    """Say how the confirming run went, or that there was none."""
    run = config.confirmation
    if run is None:
        return "The chosen configuration was not trained to confirm the prediction."
    if run.reached is None or run.examples is None or run.steps is None:
        return "No run to the target fits the budget: the chosen configuration was launched, not trained."
    metric = NOT_MEASURED if run.final_metric is None else f"{run.final_metric:.4g}"
    reached = "reached the target" if run.reached else "did NOT reach the target"
    return (
        f"The chosen configuration was trained once and {reached}: {format_count(run.examples)} examples, "
        f"{counted(run.steps, 'step')}, final metric {metric}."
    )


def _take(reasons: dict[str, str], *keys: str) -> str:
    return " ".join(reasons.pop(key) for key in keys if key in reasons)


def _usual_reasons(config: BatchConfig) -> dict[str, str]:
    """Give the reasons that hold for every answer which does not bring its own."""
    answer = config.chosen
    usual = {
        "workers": f"{config.choice.objective} of {counted(len(config.answers), 'worker count')}",
        "samples_per_s": "global batch / step time",
    }
    if answer.examples_to_target is not None:
        usual["examples_to_target"] = answer.examples_to_target.method
        usual["steps_to_target"] = "examples to target / global batch"
    if answer.time_to_target_s is not None:
        usual["time_to_target"] = f"{answer.time_to_target_s.method}; training only"
    if answer.peak_memory_bytes is not None:
        usual["peak_memory"] = answer.peak_memory_bytes.method
    if answer.cost_to_target is not None:
        usual["cost_to_target"] = "workers x price per device and hour x time to target"
    return usual


def _name(quantity: str) -> str:
    if "per_s" not in quantity:
        quantity = quantity.removesuffix("_s").removesuffix("_bytes")
    return quantity.replace("_per_s", "/s").replace("_", " ")


def _form(quantity: str) -> Form:
    """Choose the unit that a compared quantity is written in, by its name."""
    if "per_s" in quantity:
        return format_count
    if quantity.endswith("_bytes"):
        return format_bytes
    return format_seconds if quantity.endswith("_s") else format_count


def sweep_lines(config: BatchConfig) -> list[tuple[str, ...]]:
    """Give a line of cells, as SWEEP_HEADERS names them, for each device memory that was swept."""
    lines: list[tuple[str, ...]] = []
    for point in config.sweep:
        memory = format_bytes(point.device_memory_bytes)
        if point.plan is None:
            lines.append((memory, "", "", "", "", "", f"nothing fits: {point.infeasible}"))
            continue
        lines.append(
            (
                memory,
                format_count(point.plan.global_batch),
                f"{micro_batch_words(point.plan)} x {point.plan.accumulation}",
                str(point.plan.workers),
                amount(point.samples_per_s, format_count),
                amount(point.time_to_target_s, format_seconds),
                str(point.bound_by),
            )
        )
    return lines


def epoch_lines(config: BatchConfig) -> list[tuple[str, ...]]:
    """Write what an epoch costs at each global batch, one line each."""
    return [
        (
            format_count(cost.plan.global_batch),
            f"{micro_batch_words(cost.plan)} x {cost.plan.accumulation}",
            format_count(cost.steps_per_s.value),
            format_count(cost.samples_per_s.value),
            format_seconds(cost.epoch_time_s.value),
            f"{format_seconds(cost.overhead_s)} ({cost.overhead_s * cost.steps_per_s.value:.0%})",
        )
        for cost in config.epochs
    ]


def epoch_sentence(config: BatchConfig) -> str:
    """Answer from the run's own figures why a smaller batch is slower per epoch; empty without them."""
    if len(config.epochs) < 2:
        return ""
    small, large = config.epochs[0], config.epochs[-1]
    times = small.epoch_time_s.value / large.epoch_time_s.value
    if times <= 1.05:
        return (
            f"A smaller batch is hardly slower per epoch here: what a step costs whatever its size, "
            f"{format_seconds(small.overhead_s)}, is little beside its examples."
        )
    examples = config.findings.train_examples
    steps = [math.ceil(examples / cost.plan.global_batch) for cost in (small, large)]
    return (
        f"A smaller batch is slower per epoch because every step costs "
        f"{format_seconds(small.overhead_s)} whatever its size: an epoch pays that {steps[0]:,} times in "
        f"batches of {small.plan.global_batch:,} ({small.overhead_s * small.steps_per_s.value:.0%} of its "
        f"{format_seconds(small.epoch_time_s.value)}) and {counted(steps[1], 'time')} in batches of "
        f"{large.plan.global_batch:,} (of {format_seconds(large.epoch_time_s.value)}): {times:.1f} x."
    )


def powers_sentence(found: PowersFit) -> str:
    """Say whether powers of two matter on this device, with both measured ratios."""
    power = found.power
    said = f"{found.verdict[0].upper()}{found.verdict[1:]}"
    return (
        f"{said}. At equal work {power - 1} and {power + 1} examples take "
        f"{found.neighbours.value:.3f} x the time of {power} (90% interval {_ratios(found.neighbours)}), and "
        f"{3 * power // 2} take {found.between.value:.3f} x what lies between {power} and {2 * power} "
        f"({_ratios(found.between)}); {counted(found.neighbours.samples, 'round')} in turn on one worker."
    )


def _ratios(estimate: Estimate) -> str:
    return interval(estimate, lambda value: f"{value:.3f}")
