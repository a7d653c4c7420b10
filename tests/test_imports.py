"""Who may import whom, read from the sources; and the linter and the type checker are content."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    {"errors", "randomness", "measure", "tables"},
    {"registry", "results"},
    {"costs"},
    {"arguments", "leaderboard", "config", "dataset", "task", "cache"},
    {"data", "clip", "own", "library"},
    {"backbone"},
    {"method"},
    {"graft"},
    {"texts"},
    {"inputs"},
    {"trainer", "evaluate"},
    {"memory"},
    {"plan"},
    {"efficiency", "bench", "outline"},
    {"engine"},
    {"runner"},
    {"cli"},
    {"naive"},
]
ONLY = {
    "gin": {"config"},
    "open_clip": {"clip", "backbone"},
    "pandas": {"results", "leaderboard", "tables"},
}


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


HARNESS = sorted(p for p in (ROOT / "harness").glob("*.py") if not p.stem.startswith("__"))
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


@pytest.mark.parametrize("path", HARNESS, ids=lambda p: p.stem)
def test_imports_point_one_way(path):
    mine = LEVEL[path.stem]
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "harness" and rest.partition(".")[0] in LEVEL:
            assert LEVEL[rest.partition(".")[0]] < mine, f"{path.stem} imports {name}"
        assert top not in ("methods", "tasks"), "plugins are reached through the registry"
        if top in ONLY:
            assert path.stem in ONLY[top], f"{path.stem} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_a_method_file_imports_the_method_interface_and_torch(path):
    for name in imported(path):
        top = name.partition(".")[0]
        if top == "harness":
            assert name.startswith("harness.method")
        else:
            assert top in ("torch", "sklearn", "methods") or top in sys.stdlib_module_names


def test_a_dataset_file_imports_the_dataset_interface():
    for name in imported(ROOT / "tasks" / "datasets" / "emoji" / "__init__.py"):
        top = name.partition(".")[0]
        assert name.startswith(("harness.dataset", "tasks.datasets.emoji", "PIL")) or (
            top in sys.stdlib_module_names
        )


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*.py")), ids=lambda p: p.stem)
def test_a_task_file_imports_the_task_interface(path):
    for name in imported(path):
        assert name.startswith("harness.task") or name.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy", "--cache-dir", "/dev/null"],
    ],
    ids=lambda c: " ".join(c[:2]),
)
def test_style_and_types_are_clean(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
