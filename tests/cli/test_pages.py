"""`list` and `show` say the same whether they import or remember, and notice what changes."""

import json
import subprocess
import sys

import pytest

from harness.cli import pages
from harness.cli.commands import main
from tests.conftest import ROOT, TOY


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pages"


def test_what_is_remembered_is_what_was_imported(cache):
    first = pages.pages([])
    (kept,) = cache.iterdir()
    assert [pages.Page(**each) for each in json.loads(kept.read_text())] == pages.pages([])
    assert [(p.kind, p.name, p.doc) for p in first] == [
        (p.kind, p.name, p.doc) for p in pages.pages([])
    ]


def test_what_is_damaged_or_of_other_files_is_made_again(cache, monkeypatch):
    pages.pages([])
    (kept,) = cache.iterdir()
    whole = kept.read_text()
    for text in ("", "[1]", '[{"kind": 1}]'):
        kept.write_text(text)
        assert any(page.name == "dra" for page in pages.pages([]))
        assert kept.read_text() == whole
    monkeypatch.setattr(pages, "_key", lambda: "other")
    pages.pages([])
    assert [each.name for each in cache.iterdir()] == ["other.json"]


def test_plugins_are_imported_and_not_remembered(cache, capsys):
    assert main(["list", "datasets", "--plugin", str(TOY)]) == 0
    assert "toy" in capsys.readouterr().out
    assert not cache.exists()
    assert main(["list", "datasets"]) == 0
    assert "toy " not in capsys.readouterr().out


def test_a_second_call_imports_no_torch(cache):
    pages.pages([])
    code = (
        "import sys; from harness.cli.commands import main; main(['show', 'dra']); "
        "main(['list', 'methods']); "
        "print([name for name in ('torch', 'open_clip', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "important tokens" in done.stdout


def test_a_plan_imports_nothing_that_only_some_fits_need(cache):
    code = (
        "import sys; from harness import registry; from harness.runs import plan; "
        "from harness.cli import plan_text; registry.load(); "
        "heavy = ('sklearn', 'scipy', 'pandas', 'transformers', 'ray'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
