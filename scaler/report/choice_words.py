"""How the choice is told: by what, out of what, what it risks, and what would change it."""

from scaler.decide.config import BatchConfig, Change
from scaler.report.wording import counted, micro_batch_words
from scaler.units import format_bytes, format_count, format_seconds

CHANGE_TITLE = "What would change the answer"
CHANGE_HEADERS = ("with", "saves", "then")
PARETO_TITLE = "Faster, cheaper, fewer examples: what no other plan beats in all three"
KEPT_TITLE = "The same global batch on other worker counts"
PARETO_HEADERS = ("workers", "global batch", "micro x passes", "time to target", "cost", "examples to target")
KEPT_HEADERS = ("workers", "micro x passes", "time to target", "over its own answer")


def choice_sentence(config: BatchConfig) -> str:
    """Say by what the answer was chosen, the runner-up, and the regret and the risks."""
    choice = config.choice
    text = f"Chosen for {choice.objective}"
    if choice.feasible_plans:
        text += f" among {counted(choice.feasible_plans, 'feasible plan')}"
    if choice.limits:
        text += f", within {', '.join(_limit(name, value) for name, value in choice.limits.items())}"
    parts = [text]
    if choice.rival is not None:
        plan = choice.rival.plan
        parts.append(
            f"next comes a global batch of {format_count(plan.global_batch)} on "
            f"{counted(plan.workers, 'worker')}, {choice.rival.ratio - 1:+.1%}, which is the better one "
            f"with a probability of {choice.rival.chance:.0%}"
        )
    if choice.regret is not None:
        parts.append(f"what is not known is expected to cost {choice.regret:.1%}")
    if choice.kept is not None:
        parts.append(f"the limits are kept with a probability of {choice.kept:.0%}")
    risk = config.chosen.out_of_memory
    if risk is not None:
        shown = "under 0.1%" if risk < 0.001 else f"{risk:.1%}"
        parts.append(f"running out of memory has a probability of {shown}")
    return f"{'; '.join(parts)}."


def choice_tables(config: BatchConfig) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Give the tables of the choice that have lines, as (title, headers, lines)."""
    pareto = pareto_lines(config) if len(config.pareto) > 1 else []
    tables = [
        (CHANGE_TITLE, CHANGE_HEADERS, change_lines(config)),
        (PARETO_TITLE, PARETO_HEADERS, pareto),
        (KEPT_TITLE, KEPT_HEADERS, kept_lines(config)),
    ]
    return [table for table in tables if table[2]]


def _limit(name: str, value: float) -> str:
    if name == "time_s":
        return f"{format_seconds(value)} to the target"
    if name == "memory_bytes":
        return f"{format_bytes(value)} a device"
    if name == "efficiency_loss":
        return f"a loss of efficiency of {value:.0%}"
    return counted(int(value), "worker") if name == "workers" else f"a cost of {value:g}"


def change_lines(config: BatchConfig) -> list[tuple[str, ...]]:
    """Write what lifting each limit would save, and what the answer then is."""
    return [(change.change, f"{1 - change.ratio:.0%}", _then(change)) for change in config.changes]


def _then(change: Change) -> str:
    if not change.is_other:
        return "the same plan"
    return (
        f"{counted(change.workers, 'worker')}, a global batch of {format_count(change.global_batch)} "
        f"({format_count(change.micro_batch)} x {change.accumulation})"
    )


def pareto_lines(config: BatchConfig) -> list[tuple[str, ...]]:
    """Write the plans that no other beats in time, cost and examples at once."""
    unit = "" if config.cluster.price_per_device_hour is not None else " device-hours"
    return [
        (
            format_count(point.workers),
            format_count(point.global_batch),
            f"{format_count(point.micro_batch)} x {point.accumulation}",
            format_seconds(point.time_to_target_s),
            f"{point.cost_to_target:.3g}{unit}",
            format_count(point.examples_to_target),
        )
        for point in config.pareto
    ]


def kept_lines(config: BatchConfig) -> list[tuple[str, ...]]:
    """Write how the chosen global batch is spread over other worker counts."""
    return [
        (
            format_count(kept.workers),
            f"{micro_batch_words(kept.plan)} x {kept.plan.accumulation}",
            format_seconds(kept.time_to_target_s.value) if kept.time_to_target_s is not None else "",
            f"{kept.time_ratio:.2f} x" if kept.time_ratio is not None else "",
        )
        if kept.plan is not None
        else (format_count(kept.workers), "", "", str(kept.infeasible))
        for kept in config.kept_batch
    ]
