"""The README's examples run, and its tables are those of the committed records."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from harness.cli.commands import main
from harness.records.leaderboard import render
from harness.records.store import Store
from tests.cli.test_commands import QUICK

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def example(name: str, folder: Path) -> str:
    """Writes the README's block that starts with `# name` into `folder`; returns the file."""
    (block,) = re.findall(rf"```python\n(# {name}\n.*?)```", README, re.S)
    path = folder / name
    path.write_text(block, encoding="utf-8")
    return str(path)


def test_the_method_of_the_readme_runs_from_outside_the_repository(tmp_path, capsys):
    plugin = example("shift.py", tmp_path)
    arguments = ["--plugin", plugin, "--methods", "shift,zero_shot", "--tasks", "base2new"]
    results = ["--results", str(tmp_path / "r")]
    assert main(["run", *arguments, *results, *QUICK]) == 0
    assert re.search(r"\| shift +\| +128 \|", capsys.readouterr().out)


def test_the_task_of_the_readme_runs_from_outside_the_repository(tmp_path, capsys):
    plugin = example("memorise.py", tmp_path)
    arguments = ["--plugin", plugin, "--methods", "adapter", "--tasks", "memorise"]
    results = ["--results", str(tmp_path / "r")]
    assert main(["run", *arguments, *results, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "HM" not in printed


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_of_the_readme_lead_somewhere(path):
    assert (Path(__file__).parent.parent / path).exists()


def test_committed_tables_are_those_of_the_committed_records():
    results = Path(__file__).parent.parent / "results"
    text = render(Store(results / "reference").records(), by_dataset=True)
    assert (results / "leaderboard.md").read_text(encoding="utf-8") == f"{text}\n"
    for block in text.split("\n\n")[:2]:
        assert block in README
    both = [r for name in ("reference", "efficiency") for r in Store(results / name).records()]
    text = render(both, task="base2new", pareto="fit")
    assert (results / "pareto.md").read_text(encoding="utf-8") == f"{text}\n"


def test_every_reference_record_has_its_predictions_and_they_give_its_scores():
    results = Path(__file__).parent.parent / "results" / "reference"
    store = Store(results)
    assert store.done()
    for record in store.done().values():
        if record.status == "not applicable":
            continue
        side = load_file(store.path(record.run, record.key, ".predictions.safetensors"))
        for name, score in record.scores.items():
            correct = (side[f"{name}.predictions"] == side[f"{name}.labels"]).sum()
            assert int(correct) == score["correct"]
