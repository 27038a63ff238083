"""What the documents say is what the code does."""

import re
import runpy
import shlex
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli as ray_command

from scaler.cli import main
from scaler.decide.config import Answer, BatchConfig, Findings
from scaler.workload import load_workload

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NOT_OURS = {"cd", "git", "kubectl", "sbatch"}
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


# In pages as `$ command`, in the comments of YAML files and scripts as `#   command`.
COMMANDED = [*PAGES, *(ROOT / "launch").glob("*.*"), *(ROOT / "cluster").glob("*.yaml")]
COMMANDS = {
    command
    for page in COMMANDED
    for command in re.findall(
        r"^(?:\$|#  ) ([a-z]\S* .+?)(?: +#.*)?$", page.read_text(encoding="utf-8"), re.M
    )
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_pages_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part in command.split(" && "):
        program, *words = shlex.split(part)
        if program == "scaler":
            _parse_scaler(words, monkeypatch)
        elif program == "python":
            _parse_tune(words)
        elif program == "ray":
            _parse_ray(words)
        elif program == "make":
            assert all(re.search(rf"^{target}:", MAKEFILE, re.M) for target in words)
        else:
            assert program in NOT_OURS, f"nothing here checks what {program} is given"
            ours = [word for word in words if word.startswith(("launch/", "cluster/"))]
            assert all((ROOT / word).is_file() for word in ours)


def _parse_scaler(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    fits = ("fit_step_time", "fit_steps", "fit_learning_rate")
    for name in ("tune", "submit", "plan", "recommend", "explain", "regimes", "report", "export", *fits):
        monkeypatch.setattr(f"scaler.commands.{name}", lambda options: called.append(str(options)))
    assert main(words) == 0 and called


def _parse_tune(words: list[str]) -> None:
    script, *options = words
    assert script == "launch/tune.py"
    found = runpy.run_path(str(ROOT / script))["arguments"]().parse_args(options)
    assert (ROOT / found.launch).is_file()


def _parse_ray(words: list[str]) -> None:
    command: click.Command = ray_command
    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    options = command.make_context(command.name, words).params
    if command.name == "submit":
        assert (ROOT / options["working_dir"] / "launch").is_dir()
        assert options["entrypoint"][0] == "python"
        _parse_tune(list(options["entrypoint"][1:]))
    assert (ROOT / options.get("cluster_config_file", "README.md")).is_file()


@pytest.mark.parametrize("model", [BatchConfig, Answer, Findings])
def test_the_batch_config_page_names_every_key(model: type) -> None:
    page = (ROOT / "docs" / "batch-config.md").read_text(encoding="utf-8")
    assert [name for name in model.model_fields if name != "plan" and f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
