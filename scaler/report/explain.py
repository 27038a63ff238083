"""Why the answer is what it is: `scaler explain`."""

from typing import Any

from rich.console import Console, Group, RenderableType

from scaler.decide.config import BatchConfig
from scaler.report.choice_words import (
    CHANGE_HEADERS,
    CHANGE_TITLE,
    KEPT_HEADERS,
    KEPT_TITLE,
    PARETO_HEADERS,
    PARETO_TITLE,
    change_lines,
    choice_sentence,
    kept_lines,
    pareto_lines,
)
from scaler.report.terminal import heading, make_console, plain, table_of
from scaler.report.wording import SETTING, answer_rows, answer_sentence


def print_explanation(config: BatchConfig, console: Console | None = None) -> None:
    """Print each number with where it comes from and why, the runner-up, and what would change the answer."""
    (console or make_console()).print(_explained(config))


def explanation(config: BatchConfig) -> dict[str, Any]:
    """Give the same as plain data."""
    data = config.to_dict()
    chosen = config.chosen
    return {
        "workload": config.workload,
        "cluster": config.cluster.name,
        "plan": chosen.plan.model_dump(mode="json"),
        "bound_by": chosen.bound_by,
        "choice": data["choice"],
        "reasons": chosen.reasons,
        "sources": chosen.sources,
        "changes": data.get("changes", []),
        "pareto": data.get("pareto", []),
        "not_known": list(config.findings.notes),
    }


def _explained(config: BatchConfig) -> RenderableType:
    parts: list[RenderableType] = [
        plain(answer_sentence(config), "bold"),
        plain(f"\n{choice_sentence(config)}"),
        heading("Each number"),
    ]
    for row in answer_rows(config):
        spread = f" ({row.interval})" if row.interval not in ("", SETTING) else ""
        parts.append(plain(f"{row.name}: {row.value}{spread}", "bold"))
        parts += [plain(f"    why:  {row.reason}")] if row.reason else []
        parts += [plain(f"    from: {row.source}")] if row.source else []
    if config.changes:
        parts += [heading(CHANGE_TITLE), table_of(CHANGE_HEADERS, change_lines(config))]
    if len(config.pareto) > 1:
        parts += [heading(PARETO_TITLE), table_of(PARETO_HEADERS, pareto_lines(config))]
    if config.kept_batch:
        parts += [
            heading(KEPT_TITLE),
            table_of(KEPT_HEADERS, kept_lines(config)),
        ]
    if config.findings.notes:
        parts.append(heading("Not known"))
        parts += [plain(f"- {note}") for note in config.findings.notes]
    return Group(*parts)
