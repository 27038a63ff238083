"""Why the answer is what it is: `scaler explain`."""

from typing import Any

from rich.console import Console, Group, RenderableType

from scaler.decide.config import BatchConfig
from scaler.report.choice_words import choice_sentence, choice_tables
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
    for title, headers, lines in choice_tables(config):
        parts += [heading(title), table_of(headers, lines)]
    if config.findings.notes:
        parts.append(heading("Not known"))
        parts += [plain(f"- {note}") for note in config.findings.notes]
    return Group(*parts)
