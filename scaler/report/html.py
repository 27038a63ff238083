"""The report as one HTML page that needs nothing beside it."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from scaler.decide.config import Answer, BatchConfig
from scaler.records import ConvergenceRecord, NoiseRecord, Record, WorkloadRecord
from scaler.report import choice_words, rate_words
from scaler.report.branches import BRANCH_HEADERS, branch_lines, branch_sentence
from scaler.report.drawing import draw
from scaler.report.figures import build_figures
from scaler.report.noise_words import noise_estimates
from scaler.report.training import target_words
from scaler.report.wording import (
    EPOCH_HEADERS,
    NOT_IDENTIFIABLE,
    NOT_MEASURED,
    SWEEP_HEADERS,
    Form,
    amount,
    answer_rows,
    answer_sentence,
    comparison_words,
    confirmation_sentence,
    cost_words,
    counted,
    epoch_lines,
    epoch_sentence,
    interval,
    micro_batch_words,
    powers_sentence,
    sweep_lines,
)
from scaler.stats import Estimate
from scaler.units import format_bytes, format_count, format_seconds

Lines = list[tuple[str, ...]]


def render(config: BatchConfig, records: list[Record], target: tuple[float, str] | None = None) -> str:
    """Write the report page.

    `target` is the metric's value and 'max' or 'min', the direction in which it is met; by default the
    recorded one.
    """
    target = target or _recorded_target(records)
    figures = build_figures(config, records, target)
    return load_template("page.html").render(
        config=config,
        sentence=answer_sentence(config),
        choice=choice_words.choice_sentence(config),
        confirmed=confirmation_sentence(config),
        target=target_words(target) if target else None,
        rows=answer_rows(config),
        priced=_is_priced(config),
        counts=_worker_counts(config),
        tables=choice_words.choice_tables(config),
        comparisons=[comparison_words(c) for c in config.confirmation.comparisons]
        if config.confirmation
        else [],
        rules=[
            (r.rule, format_count(r.global_batch), _ratio(r.time_ratio), r.agrees, r.verdict)
            for r in config.rules_of_thumb
        ],
        epochs=epoch_lines(config),
        epoch_headers=EPOCH_HEADERS,
        epoch_sentence=epoch_sentence(config),
        powers=powers_sentence(config.findings.powers_of_two) if config.findings.powers_of_two else "",
        rate_title=rate_words.TITLE,
        rate_sentence=rate_words.rule_sentence(config),
        rate_headers=rate_words.rule_headers(config),
        rate_rules=rate_words.rule_lines(config),
        rate_notes=rate_words.rule_notes(config),
        branch_headers=BRANCH_HEADERS,
        branches=branch_lines(config),
        branch_sentence=branch_sentence(config.branching) if config.branching else "",
        sweep_headers=SWEEP_HEADERS,
        sweep=sweep_lines(config),
        # draw() escapes its own text; nothing else is trusted.
        figures=[(f.name, f.title, Markup(draw(f)), f.caption) for f in figures.present],
        absent=figures.absent,
        findings=_findings(config, records),
        kinds=sorted(Counter(record.kind for record in records).items()),
        taken=taken_words(records),
        environments=environments(records),
        methods=_methods(config),
    )


@functools.cache
def load_template(name: str) -> Template:
    """Load a page of this package; every value put into it is escaped."""
    folder = resources.files("scaler.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _recorded_target(records: Iterable[Record]) -> tuple[float, str] | None:
    sizes = next((record for record in records if isinstance(record, WorkloadRecord)), None)
    return (sizes.target_value, sizes.target_direction) if sizes else None


def _worker_counts(config: BatchConfig) -> list[dict[str, object]]:
    """Make one table line per worker count: cells of (value, interval), or why there is no answer."""
    lines: list[dict[str, object]] = [
        {
            "workers": answer.plan.workers,
            "chosen": answer.plan.workers == config.chosen_workers,
            "cells": _cells(answer, _is_priced(config)),
        }
        for answer in config.answers
    ]
    for workers, reason in config.infeasible.items():
        lines.append({"workers": workers, "chosen": False, "reason": reason})
    return sorted(lines, key=lambda line: int(str(line["workers"])))


def _is_priced(config: BatchConfig) -> bool:
    return config.cluster.price_per_device_hour is not None


def _cells(answer: Answer, priced: bool) -> Lines:
    def predicted(estimate: Estimate | None, form: Form) -> tuple[str, str]:
        return amount(estimate, form), interval(estimate, form) if estimate else ""

    plan = answer.plan
    return [
        (format_count(plan.global_batch), ""),
        (f"{micro_batch_words(plan)} x {plan.accumulation}", ""),
        (str(plan.zero_stage), ""),
        (f"{answer.learning_rate:g}", ""),
        predicted(answer.step_time_s, format_seconds),
        predicted(answer.samples_per_s, format_count),
        predicted(answer.time_to_target_s, format_seconds),
        predicted(answer.peak_memory_bytes, format_bytes),
        *([(cost_words(answer.cost_to_target), "")] if priced else []),
        (answer.bound_by, ""),
    ]


def _findings(config: BatchConfig, records: Sequence[Record]) -> Lines:
    """List what the fits say as (name, value, 90% interval, method)."""
    found = config.findings
    per_thousand = None if found.seconds_per_example is None else 1000 * found.seconds_per_example
    trials = any(isinstance(r, ConvergenceRecord) and r.kind == "convergence" for r in records)
    noise = any(isinstance(r, NoiseRecord) for r in records)

    def fitted(name: str, estimate: Estimate | None, unit: str, measured: bool) -> tuple[str, ...]:
        if estimate is None:
            return name, NOT_IDENTIFIABLE if measured else NOT_MEASURED, "", ""
        value = f"{format_count(estimate.value)}{unit}"
        return name, value, interval(estimate, format_count), _method(estimate)

    def seconds(name: str, value: float | None) -> tuple[str, ...]:
        if value is None:
            return name, NOT_MEASURED, "", ""
        return name, format_seconds(value) if value else "too little to tell", "", "step-time fit"

    return [
        ("training examples", format_count(found.train_examples), "", "counted"),
        ("parameters", format_count(found.parameters), "", "counted"),
        fitted("gradient noise scale", found.noise_scale, " examples", noise),
        *(fitted(name, estimate, " examples", True) for name, estimate in noise_estimates(found)),
        fitted("critical batch", found.critical_batch, " examples", trials),
        fitted("learning rate exponent", found.learning_rate_exponent, "", trials),
        seconds("fixed time of one pass", found.step_overhead_s),
        seconds("time of 1,000 more examples", per_thousand),
    ]


def _methods(config: BatchConfig) -> Lines:
    """List how each 90% interval of the answer was computed."""
    answer = config.chosen
    estimates = {
        "step time": answer.step_time_s,
        "samples/s": answer.samples_per_s,
        "examples to target": answer.examples_to_target,
        "steps to target": answer.steps_to_target,
        "time to target": answer.time_to_target_s,
        "relative time": answer.relative_time,
        "peak memory": answer.peak_memory_bytes,
    }
    return [(name, _method(estimate)) for name, estimate in estimates.items() if estimate is not None]


def _method(estimate: Estimate) -> str:
    return f"{estimate.method} ({counted(estimate.samples, 'sample')})"


def _ratio(ratio: float | None) -> str:
    return NOT_MEASURED if ratio is None else f"{format_count(ratio)} x"


def taken_words(records: Sequence[Record]) -> str:
    """Say when the first and the last record were taken."""
    times = sorted(record.taken_at for record in records)
    ends = dict.fromkeys(f"{time:%Y-%m-%d %H:%M}" for time in (*times[:1], *times[-1:]))
    return f"{' to '.join(ends)} UTC" if ends else ""


def environments(records: Iterable[Record]) -> Lines:
    """List the distinct machines and versions as (device, machine, versions, records)."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        own = record.environment
        versions = ", ".join(f"{name} {version}" for name, version in own.versions.items())
        seen[own.device, f"{own.machine}, {counted(own.cpu_count, 'CPU')}", versions] += 1
    return [(*place, format_count(number)) for place, number in seen.items()]
