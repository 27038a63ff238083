"""What the documents say is what the code does."""

import re
from pathlib import Path

import pytest

from scaler.cli import main
from scaler.decide.config import Answer, BatchConfig, Findings
from scaler.workload import load_workload

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [p for p in ROOT.rglob("*.md") if not {".venv", "build"} & set(p.relative_to(ROOT).parts)]


def test_the_readmes_workload_loads(tmp_path: Path) -> None:
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.S) if c.startswith("# train.py")]
    (tmp_path / "train.py").write_text(code, encoding="utf-8")
    workload = load_workload(f"{tmp_path / 'train.py'}:workload")
    net, batch = workload.model(), workload.train_data()[:64]
    assert workload.loss(net, batch).requires_grad
    assert len(workload.eval_data()) == 500


def test_the_readmes_import_works() -> None:
    (line,) = re.findall(r"^from scaler import BatchPlan.*$", README, re.M)
    exec(line, {})


COMMANDS = {
    command
    for page in PAGES
    for command in re.findall(r"^\$ scaler (.+?)(?:\s+#.*)?$", page.read_text(encoding="utf-8"), re.M)
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_pages_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    called: list[str] = []
    fits = ("fit_step_time", "fit_steps", "fit_learning_rate")
    for name in ("tune", "plan", "recommend", "explain", "regimes", "report", *fits):
        monkeypatch.setattr(f"scaler.commands.{name}", lambda options: called.append(str(options)))
    assert main(command.split()) == 0 and called


@pytest.mark.parametrize("model", [BatchConfig, Answer, Findings])
def test_the_batch_config_page_names_every_key(model: type) -> None:
    page = (ROOT / "docs" / "batch-config.md").read_text(encoding="utf-8")
    assert [name for name in model.model_fields if name != "plan" and f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
