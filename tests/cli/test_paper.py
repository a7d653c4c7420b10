"""`paper` as a user meets it: what it lists, what it runs, what it draws, what it refuses."""

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from harness.cli import missing
from harness.cli.commands import main
from harness.records.store import Store
from tests.cli.test_commands import TOY

TOYS = ["--datasets", "toy", "--plugin", TOY, "--set", "engine.max_steps=1", "--jobs", "1"]
SVG = "{http://www.w3.org/2000/svg}"


def paper(*arguments):
    """Exit code, standard output and standard error."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(["paper", *map(str, arguments)])
    return code, out.getvalue(), error.getvalue()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The command of a figure, its folder, and what it printed when it made two runs."""
    folder = tmp_path_factory.mktemp("paper")
    command = ["dra", "figure3", *TOYS, "--seeds", "1", "--ranks", "2", "--blocks", "12",
               "--results", folder / "results", "--out", folder / "figures"]  # fmt: skip
    code, out, error = paper(*command)
    assert code == 0, error
    return command, folder, out


def test_papers_and_their_tables_are_listed():
    assert "comp-lora" in paper()[1]
    code, out, _ = paper("dra")
    assert code == 0
    assert all(name in out for name in ("table1", "table6", "figure3", "figure4"))
    assert "No table of this paper is known" in paper("comp-lora")[1]
    assert set(json.loads(paper("--json")[1])) == {"dra", "comp-lora"}


def test_a_dry_run_prints_the_plan_of_the_table_and_writes_nothing(tmp_path):
    code, out, _ = paper("dra", "table4", *TOYS, "--dry-run", "--results", tmp_path / "r")
    assert code == 0
    assert "to run: 21 of 21" in out  # seven rows, the paper's three seeds
    assert not list(tmp_path.iterdir())


def test_each_part_of_a_table_reads_the_settings_of_its_own_task(tmp_path):
    given = ["--set", "efficiency.images=10", "--results", tmp_path, "--dry-run"]
    code, out, error = paper("dra", "table6", *TOYS, *given)
    assert code == 0, error
    assert "to run: 5 of 5" in out  # costs, of one seed
    assert "to run: 15 of 15" in out


def test_without_datasets_a_transfer_is_between_embedded_ones_on_any_backbone(
    tmp_path, monkeypatch
):
    from harness.cli.verbs import run

    asked = []
    monkeypatch.setattr(run, "carried_out", lambda each: asked.append(each))
    paper("dra", "table2", "--backbone", "ViT-B-16-quickgelu:openai")
    paper("dra", "table2", "--backbone", "ViT-B-16-quickgelu:openai", "--data-root", tmp_path)
    assert asked[0].datasets is None
    assert asked[0].settings == ["cross_dataset.source=emoji"]
    assert asked[1].datasets.split(",")[0] == "imagenet"
    assert asked[1].settings == []


def test_a_sweep_has_a_table_and_a_picture_with_each_value(sweep):
    _, folder, out = sweep
    assert "| 2 " in out
    assert "| 12 " in out
    assert "engine.max_steps=1" in out  # said to be no setting of the paper's
    root = ElementTree.parse(folder / "figures" / "dra-figure3.svg").getroot()
    assert {"2", "12", "Base", "New", "HM"} <= {each.text for each in root.iter(f"{SVG}text")}


def test_what_a_part_sweeps_is_set_in_the_other_part_alone(tmp_path):
    given = ["--set", "dra.rank=8", "--set", "dra.first_block=5", "--dry-run"]
    code, out, error = paper("dra", "figure3", *TOYS, *given, "--results", tmp_path)
    assert code == 0, error
    for row in ("dra[rank=64,first_block=5]", "dra[rank=8,first_block=11]"):
        assert row in out


def test_raw_numbers_are_json_and_those_of_the_records(sweep):
    command, folder, _ = sweep
    code, out, error = paper(*command, "--json")
    assert code == 0
    assert "Everything is done already" in error
    tables = json.loads(out)["tables"]
    found = [cell["value"] for table in tables for cell in table["rows"][0]["cells"]
             if cell["evaluation"] == "base"]  # fmt: skip
    records = {
        (r.run["hyperparameters"]["rank"] == 2): r for r in Store(folder / "results").records()
    }
    assert found == [records[each].scores["base"]["accuracy"] for each in (True, False)]


def test_what_run_has_done_is_not_run_again(sweep, capsys):
    _, folder, _ = sweep
    same = ["run", "--methods", "dra", "--tasks", "base2new", "--set", "dra.rank=2", *TOYS]
    assert main([*same, "--results", str(folder / "results"), "--dry-run"]) == 0
    assert "to run: 0 of 1" in capsys.readouterr().out


@pytest.fixture(scope="module")
def record(sweep) -> Path:
    return next((sweep[1] / "results" / "base2new" / "toy").glob("*.json"))


def test_tokens_of_a_fit_are_drawn_as_svg_and_png_with_texts_escaped(record, tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    text = "a <b> & c"
    code, out, error = paper("dra", "figure4", "--fit", record, "--images", tmp_path / "red.png",
                             "--texts", text, "--out", tmp_path, "--json")  # fmt: skip
    assert code == 0, error
    made = json.loads(out)
    (image,), (words,) = made["images"], made["texts"]
    assert len(image["ranks"]) == len(image["importance"]) == len(image["expected"])
    assert words["words"][0] == "<start>"
    root = ElementTree.parse(tmp_path / "dra-figure4.svg").getroot()
    assert text in {each.text for each in root.iter(f"{SVG}text")}
    with Image.open(tmp_path / "dra-figure4.png") as picture:
        assert picture.width > 100


def test_without_images_and_texts_two_of_the_dataset_are_drawn(tmp_path, sweep):
    code, out, error = paper("dra", "figure4", *TOYS, "--set", "dra.rank=2", "--json",
                             "--results", sweep[1] / "results", "--out", tmp_path)  # fmt: skip
    assert code == 0, error
    made = json.loads(out)
    assert [each["name"] for each in made["images"]] == ["red", "green"]
    assert [each["name"] for each in made["texts"]] == ["a photo of a red.", "a photo of a green."]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dra", "table7"], "Did you mean"),
        (["drra"], "Did you mean 'dra'"),
        (["dra", "table1", "--ranks", "2"], "--ranks is read by figure3"),
        (["dra", "table5", "--set", "dra.ratios=(1.0,)"], "a row for each value of its own"),
        (["dra", "figure3", "--ranks", "two"], "1,2,3"),
        (["dra", "table4", "--set", "dra.nothing=1", *TOYS], "nothing"),
        (["dra", "figure4", "--images", "nowhere.png"], "cannot be read as an image"),
        (["dra", "figure4", "--fit", "nowhere.json", "--texts", "a"], "is no file"),
    ],
)
def test_a_bad_request_is_a_sentence_and_exit_code_2(arguments, says, tmp_path):
    code, _, error = paper(*arguments, "--results", tmp_path)
    assert code == 2
    assert says in error
    assert "Traceback" not in error


def test_deleted_weights_are_made_again(sweep, tmp_path):
    results = shutil.copytree(sweep[1] / "results", tmp_path / "results")
    command = ["dra", "figure4", *TOYS, "--set", "dra.rank=2", "--texts", "a", "--out", tmp_path,
               "--json", "--results", results]  # fmt: skip
    first = json.loads(paper(*command)[1])
    for path in (results / "fits").iterdir():
        path.unlink()
    code, out, error = paper(*command)
    assert code == 0, error
    assert json.loads(out) == first


def test_a_fit_without_anything_to_draw_is_refused(record):
    code, _, error = paper("dra", "figure4", "--fit", record)
    assert code == 2
    assert "--images or --texts" in error


def test_a_record_that_was_moved_has_no_weights_beside_it(record, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copy(record, tmp_path / "moved.json").parent)
    code, _, error = paper("dra", "figure4", "--fit", "moved.json", "--texts", "a")
    assert code == 2
    assert "are not there" in error


def test_where_data_and_plugins_are_is_read_from_a_command_of_a_paper_too(record):
    command = "python -m harness paper dra table4 --plugin x.py --data-root folder"
    made = missing._made_by(replace(Store.read(record), provenance={"command": command}))
    assert made.plugin == ["x.py"]
    assert made.data_root == Path("folder")
