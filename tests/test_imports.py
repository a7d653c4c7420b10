"""Who may import whom, read from the sources; and the linter and the type checker are content."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

# a module may import those of the floors below, and of its own wing
ORDER = [
    {"errors", "garbage", "randomness", "measure"},
    {"code"},
    {"files", "rgb"},
    {"decoding"},
    {"registry", "task", "dataset"},
    {"splits", "class_texts"},
    {"towers", "records"},
    {"certainty"},
    {"leaderboards"},
    {"literature"},
    {"report"},
    {"method", "config", "images"},
    {"fitting", "methods", "tasks"},
    {"runs"},
    {"deploy", "bench"},
    {"harness"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
TORCHLESS = tuple(
    f"harness.{name}" for name in ("records", "certainty", "leaderboards", "literature", "report")
)
ONLY = {
    "gin": ("harness.config",),
    "open_clip": ("harness.towers",),
    "timm": ("harness.towers",),
    "pandas": TORCHLESS,
    "jinja2": ("harness.report",),
    "markupsafe": ("harness.report",),
    "tabulate": (*TORCHLESS, "harness.cli"),
    "scipy": ("harness.certainty", "harness.bench"),
    "ray": ("harness.runs.executors.ray",),
    "onnx": ("harness.deploy",),
    "onnxruntime": ("harness.deploy",),
    "datasets": ("harness.images.arrow", "harness.images.table"),
    "pyarrow": ("harness.images.arrow", "harness.images.table"),
}
SCRIPTS = "harness.backbones"  # how the embedded backbone was made; no part of a run


def module_of(path: Path) -> str:
    """The name under which a source file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "harness" else ("harness", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_of(path): path
    for folder in ("harness", "methods", "tasks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
MODULES = [name for name in SOURCES if not name.startswith(SCRIPTS)]


def wing(module: str) -> str:
    """`records` of harness.records.store; `harness` of the package itself."""
    return [*module.split("."), "harness"][1] if "." in module else "harness"


def imported(module: str, lazily: bool = True) -> set[str]:
    """Dotted names of every module that a file imports, those of type checkers left out."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    left_out = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree) if lazily else tree.body:
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else node.module for name in names}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_house(module):
    mine = wing(module)
    for name in imported(module):
        top = name.partition(".")[0]
        assert top not in ("methods", "tasks"), f"{module} imports {name} as a package of its own"
        if top == "harness" and wing(name) != mine:
            if name == "harness" and mine != "harness":
                continue  # the package itself: its version and where it lies
            assert LEVEL[wing(name)] < LEVEL[mine], f"{module} imports {name}"
        if top in ONLY:
            assert module.startswith(ONLY[top]), f"{module} imports {name}"


def test_a_wheel_installs_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name if SOURCES[name].name == "__init__.py" else name.rpartition(".")[0]
                for name in SOURCES}  # fmt: skip
    assert packages - {""} <= {*settings["tool"]["setuptools"]["packages"]}


def test_no_module_imports_itself_through_others():
    graph = {m: {n for n in imported(m, lazily=False) if n in SOURCES} - {m} for m in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises on a cycle


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("harness.methods.")])
def test_a_method_file_imports_the_method_interface_and_torch(module):
    for name in imported(module):
        top = name.partition(".")[0]
        if top == "harness":
            assert name.startswith(("harness.method", "harness.methods."))
        else:
            assert top in ("torch", "sklearn") or top in sys.stdlib_module_names


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("harness.tasks.")])
def test_a_task_or_dataset_file_imports_its_interface(module):
    of_images = {f"harness.images.{name}" for name in ("own", "contained", "arrow", "shards")}
    allowed = {
        "harness.task",
        "harness.dataset",
        "harness.tasks.datasets.folder",
        "PIL",
        "torchvision.datasets",
    }
    tool = module.endswith(".emoji.build")  # draws the embedded sheets, once
    for name in imported(module):
        top = name.partition(".")[0]
        known = name in allowed | of_images or top in sys.stdlib_module_names
        assert known or name.startswith("harness.tasks.datasets.emoji") or tool, name


@pytest.mark.parametrize(
    ("code", "never"),
    [
        ("import harness", "torch pandas numpy open_clip gin jinja2"),
        ("import harness.leaderboards.leaderboard, harness.leaderboards.costs", "torch open_clip"),
        ("import harness.report.content, harness.report.page", "torch open_clip"),
        ("from harness.cli.arguments import parser; parser().format_help()", "torch pandas jinja2"),
        ("import harness; harness.leaderboard('results/reference').frame()", "torch open_clip"),
    ],
)
def test_what_does_not_compute_does_not_import_torch(code, never):
    check = f"{code}; import sys; print([m for m in {never.split()} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def as_one_package(tmp_path_factory) -> Path:
    """methods/ and tasks/ inside harness/, as a wheel has them: what the type checker reads."""
    home = tmp_path_factory.mktemp("package")
    (home / "harness").mkdir()
    for path in [*(ROOT / "harness").iterdir(), ROOT / "methods", ROOT / "tasks"]:
        (home / "harness" / path.name).symlink_to(path)
    return home


@pytest.mark.slow
def test_types_are_clean(as_one_package):
    command = ["mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", "/dev/null"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=as_one_package, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check", "."], ["format", "--check", "."]], ids=" ".join)
def test_style_is_clean(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
