"""What a wheel installs, and where it runs, with the packages of the running interpreter."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT

pytestmark = pytest.mark.wheel

STRANGE = "raise SystemExit('a file of the working directory was imported')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(ROOT)]
    with FileLock(tmp_path_factory.getbasetemp().parent / "wheel.lock"):  # of the tests' processes
        subprocess.run(command, check=True, cwd=out)
        shutil.rmtree(ROOT / "build", ignore_errors=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a fresh environment with the wheel, and a plugin in both forms."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    site = Path(done.stdout.strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    plugin = tmp_path_factory.mktemp("plugin")
    (plugin / "pyproject.toml").write_text(
        '[project]\nname = "two-methods"\nversion = "1.0"\n\n'
        '[project.entry-points."harness.methods"]\n'
        'whole_module = "two_methods.one"\none_class = "two_methods.two:Second"\n\n'
        '[tool.setuptools]\npackages = ["two_methods"]\n'
    )
    (plugin / "two_methods").mkdir()
    (plugin / "two_methods" / "__init__.py").write_text("")
    for file, name in (("one", "First"), ("two", "Second")):
        (plugin / "two_methods" / f"{file}.py").write_text(
            "from dataclasses import dataclass\nfrom harness.method import Method\n\n\n"
            f"@dataclass(frozen=True, kw_only=True)\nclass {name}(Method):\n"
            '    """Nothing is learned.\n\n    Source: here.\n    Differs: nothing known."""\n'
        )
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*pip, str(wheel), str(plugin)], check=True, cwd=home, env=clean())
    return home / "bin"


def clean() -> dict[str, str]:
    """The environment without what leads Python elsewhere."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def ran(folder: Path, *command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=clean(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_holds_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"harness", f"vlm_peft_harness-{importlib.metadata.version('vlm-peft-harness')}"
                    ".dist-info"}  # fmt: skip
    assert {"harness/methods/dra.py", "harness/tasks/datasets/emoji/classes.json",
            "harness/tasks/datasets/torchvision/sets.json",
            "harness/towers/hf_configs/roberta-base/config.json",
            "harness/published/dra.csv"} <= set(names)  # fmt: skip
    report = {f"harness/report/page.{end}" for end in ("html.jinja", "css", "js")}
    assert report <= set(names)


def test_it_runs_from_an_empty_folder(environment, tmp_path):
    few = ["--methods", "zero_shot", "--tasks", "base2new", "--datasets", "emoji_food"]
    printed = ran(tmp_path, environment / "harness", "run", *few, "--jobs", "1")
    assert "| zero_shot" in printed
    assert (tmp_path / "results" / "runs").is_dir()


@pytest.mark.parametrize("program", [["harness"], ["python", "-m", "harness"]], ids=" ".join)
def test_files_of_the_working_directory_are_no_modules(environment, tmp_path, program):
    for folder in ("tasks", "methods"):
        (tmp_path / folder / "datasets").mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text(STRANGE)
        (tmp_path / folder / "strange.py").write_text(STRANGE)
    for name in ("tasks.py", "json.py", "torch.py"):
        (tmp_path / name).write_text(STRANGE)
    command = [environment / program[0], *program[1:]]
    few = ["--methods", "dra", "--tasks", "base2new", "--datasets", "emoji_food"]
    printed = ran(tmp_path, *command, "run", *few, "--dry-run")
    assert "dra" in printed


def test_another_checkout_runs_its_own_code_as_a_module(environment, tmp_path):
    for folder in ("harness", "methods", "tasks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    as_module = ran(tmp_path, environment / "python", "-m", "harness", "show", "dra")
    assert f"defined in {tmp_path / 'methods' / 'dra.py'}" in as_module
    as_program = ran(tmp_path, environment / "harness", "show", "dra")
    assert str(environment.parent) in as_program.rpartition("defined in ")[2]


def test_the_published_numbers_are_found_in_a_wheel(environment, tmp_path):
    assert "82.20*" in ran(tmp_path, environment / "harness", "published", "show", "mma",
                           "--datasets", "ucf101")  # fmt: skip


def test_plugins_of_both_forms_are_listed(environment, tmp_path):
    printed = ran(tmp_path, environment / "harness", "list", "methods")
    assert "whole_module" in printed
    assert "one_class" in printed


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_the_sources_compile_on_other_pythons_at_hand(version, tmp_path):
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    python = str(found[-1]) if found else shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    code = (
        "import ast, pathlib, sys, warnings; warnings.simplefilter('error')\n"
        f"for folder in ('harness', 'methods', 'tasks'):\n"
        f"    for path in (pathlib.Path({str(ROOT)!r}) / folder).rglob('*.py'):\n"
        "        compile(path.read_text(encoding='utf-8'), str(path), 'exec')\n"
    )
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)
