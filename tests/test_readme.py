"""The README's examples run, and its tables are those of the committed records."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

import harness
from harness.cli.arguments import parser
from harness.cli.commands import main
from harness.leaderboards.leaderboard import Leaderboard, render
from harness.records import predictions
from harness.records.store import Store, read_all
from tests.cli.test_commands import QUICK, TOY
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md",
                                  "results/README.md", "harness/fitting/README.md")]  # fmt: skip


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


def test_the_dataset_of_the_readme_runs_from_outside_the_repository(tmp_path, capsys):
    plugin = example("birds.py", tmp_path)
    for number, species in enumerate(("barn owl", "kingfisher", "magpie")):
        for split in ("train", "val", "test"):
            folder = tmp_path / "birds" / split / species
            folder.mkdir(parents=True)
            for grey in (10, 20):
                Image.new("RGB", (48, 48), (80 * number, grey, 90)).save(folder / f"{grey}.png")
    arguments = ["--plugin", plugin, "--data-root", str(tmp_path), "--datasets", "birds"]
    arguments += ["--methods", "zero_shot", "--tasks", "few_shot", "--shots", "2"]
    assert main(["run", *arguments, "--results", str(tmp_path / "r")]) == 0
    printed = capsys.readouterr().out
    assert "few_shot, emoji-mini, 2 shots" in printed


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    quick = {"datasets": "toy", "plugins": [TOY], "shots": 4, "settings": {"engine.max_steps": 1}}

    def run(tmp_path=tmp_path, run=harness.run, **asked):
        return run(**{**asked, **quick, "results": tmp_path / "r"})

    monkeypatch.setattr(harness, "run", run)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("cat.jpg")
    made = runpy.run_path(example("use.py", tmp_path))
    assert set(made["table"]["label"]) == {"zero_shot", "adapter"}
    assert "| adapter" in str(made["results"].leaderboard())
    assert made["logits"].shape == (1, len(made["model"].class_names))


def test_every_command_of_the_readme_is_one_that_the_program_takes():
    commands = [shlex.split(c.replace("\\\n", " ")) for c in re.findall(
        r"python -m harness ((?:\\\n|[^`\n])+)", README)]  # fmt: skip
    assert len(commands) > 8
    for words in commands:
        parser().parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / path).exists(), path
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-")
                for h in re.findall(r"^#+ (.+)$", text, re.M)}  # fmt: skip
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_committed_tables_are_those_of_the_committed_records():
    results = ROOT / "results"
    text = render(Store(results / "reference").records(), by_dataset=True)
    assert (results / "leaderboard.md").read_text(encoding="utf-8") == f"{text}\n"
    joined = read_all([results / "reference", results / "second-wave"])
    text = render(joined, task="base2new")
    assert (results / "second-wave.md").read_text(encoding="utf-8") == f"{text}\n"
    heads = "emoji_animals,emoji_food,emoji_objects"
    text = Leaderboard(joined, task="few_shot", datasets=heads).text()
    assert (results / "second-wave-few-shot.md").read_text(encoding="utf-8") == f"{text}\n"
    text = render(read_all([results / "reference", results / "efficiency"]), task="base2new",
                  pareto="fit")  # fmt: skip
    assert (results / "pareto.md").read_text(encoding="utf-8") == f"{text}\n"


def test_the_table_of_the_readme_is_part_of_the_first_table_of_the_leaderboard():
    leaderboard = (ROOT / "results" / "leaderboard.md").read_text(encoding="utf-8")
    whole = leaderboard.split("\n\n")[1].splitlines()
    (block,) = re.findall("<!-- results -->\n(.*?)\n<!-- /results -->", README, re.S)
    rows = block.splitlines()
    assert rows[:2] == whole[:2]
    assert 2 < len(rows) <= 12
    assert rows == [row for row in whole if row in rows]  # each of them, in the same order


def test_every_reference_record_has_its_predictions_and_they_give_its_scores():
    results = ROOT / "results" / "reference"
    store = Store(results)
    assert store.done()
    for record in store.done().values():
        if record.status == "not applicable":
            continue
        for name in record.scores:
            predictions.read(record, name)  # raises if they give another count
