"""Imports flow one way: each layer imports only itself and the layers above it, and nothing in a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "scaler"

# Top to bottom, as docs/architecture.md draws them.
LAYERS = [
    {"units", "errors", "schema", "stats"},
    {"batch", "cluster", "workload", "workloads"},
    {"records", "runs", "storage", "uploads"},
    {"counted_memory", "emulation", "device"},
    {"runtime"},
    {"engine"},
    {"trace"},
    {"plan"},
    {"probe"},
    {"fit"},
    {"decide"},
    {"export"},
    {"report"},
    {"launch"},
    {"answers"},
    {"measure"},
    {"noise_scale", "applied"},
    {"callbacks"},
    {"pipeline"},
    {"submit"},
    {"commands"},
    {"cli"},
    {"__main__", "job"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = ["records", "runs", "fit", "decide", "export", "report", "launch", "answers"]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("scaler", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Every import of the package in a file, those inside functions too; type-checking ones aside."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & known


MODULES = modules()
GRAPH = {name: imports(path, set(MODULES)) - {"scaler"} for name, path in MODULES.items() if name != "scaler"}


def layer(name: str) -> str:
    return name.split(".")[1]


def test_every_module_has_a_layer() -> None:
    assert {layer(name) for name in GRAPH} == set(LEVEL)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_go_up_only(name: str) -> None:
    below = [other for other in GRAPH[name] if LEVEL[layer(other)] > LEVEL[layer(name)]]
    assert not below, f"{name} imports {below}, which lie below it"


def test_no_import_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in GRAPH[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_what_follows_the_records_needs_neither_torch_nor_ray() -> None:
    names = [name for name in GRAPH if layer(name) in WITHOUT_TORCH]
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\n"
    code += "print([n for n in ('torch', 'ray') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    long = {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 500}
    assert not long
