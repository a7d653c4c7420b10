"""Two methods compared, in numbers and in words; and what the leaderboard says of certainty."""

import json
import shutil

import pytest

from harness.certainty.comparison import compare, text
from harness.certainty.intervals import p_value
from harness.cli.commands import main
from harness.errors import HarnessError
from harness.leaderboards import leaderboard, metric_tables
from harness.leaderboards.leaderboard import Leaderboard
from harness.records.store import read_all
from tests.records.worlds import write

METHODS = {"zero_shot": 0.5, "coop": 0.505, "dra": 0.7}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    store = write(tmp_path_factory.mktemp("records"), METHODS)
    return read_all([store.folder])


def test_a_difference_that_is_real_is_said_with_its_bounds(records):
    (found,) = compare(records, "dra", "zero_shot")
    first, second = found.sentences()
    assert first.startswith("dra is better than zero_shot by ")
    assert "of HM of base and new; on other images and seeds of these datasets, by " in first
    assert second.startswith("Among all 3 pairs of the table this holds")
    low, high = found.at(2).low, found.at(2).high
    (turned,) = compare(records, "zero_shot", "dra")
    assert (turned.at(2).low, turned.at(2).high) == pytest.approx((-high, -low))
    assert turned.sentences()[0] == first


def test_a_comparison_says_which_of_the_two_takes_one_of_several_templates(tmp_path):
    write(tmp_path, {"zero_shot": 0.5})
    write(tmp_path, {"coop": 0.6, "dra": 0.7}, one_template={"toy_a": "a {}."})
    said = "coop does not average a dataset's several templates, and the other does."
    records = read_all([tmp_path])
    assert said in compare(records, "coop", "zero_shot")[0].sentences()
    assert said in compare(records, "zero_shot", "coop")[0].sentences()
    assert not any("templates" in each for each in compare(records, "coop", "dra")[0].sentences())


def test_not_told_apart_is_not_equal(records):
    (found,) = compare(records, "coop", "zero_shot")
    assert found.sentences()[0].startswith("They are not told apart: ")
    assert "That does not mean that they are equal." in found.sentences()


def test_images_units_seeds_levels_and_datasets_are_shown(records):
    shown = text(compare(records, "dra", "coop"))
    assert "2 datasets, 3 seeds, 800 images in 400 units." in shown
    assert "(1) other seeds, these images" in shown
    assert "(3) other datasets like these" in shown
    assert "| toy_b" in shown
    assert "Bayesian" in shown


def test_a_level_that_allows_less_and_is_wider_is_explained(tmp_path):
    records = read_all([write(tmp_path, METHODS, seeds=(1, 2)).folder])
    seen = set()
    for pair in (("dra", "coop"), ("dra", "zero_shot"), ("coop", "zero_shot")):
        (found,) = compare(records, *pair)
        seeds, images = (found.at(level).high - found.at(level).low for level in (1, 2))
        assert ("(1) is wider than (2) here" in text([found])) == (seeds > images)
        seen.add(seeds > images)
    assert seen == {True, False}


def test_what_only_one_of_them_has_is_left_out_and_said(records):
    fewer = [r for r in records if r.run["method"] != "dra" or r.run["seed"] != 3]
    (found,) = compare(fewer, "dra", "coop")
    assert found.sample.seeds == (1, 2)
    assert "2 runs are left out: both methods are compared on the same" in text([found])
    assert found.adjusted is None


def test_one_seed_says_nothing_of_seeds(tmp_path):
    store = write(tmp_path, METHODS, seeds=(1,))
    (found,) = compare(read_all([store.folder]), "dra", "coop")
    shown = text([found])
    assert "One seed says nothing of other seeds" in shown
    assert "(no interval: one seed)" in shown
    assert "other images and seeds" not in shown


def test_unknown_rows_and_rows_apart_are_refused(records, tmp_path):
    with pytest.raises(HarnessError, match=r"unknown method 'dar'. Did you mean 'dra'"):
        compare(records, "dar", "coop")
    other = write(tmp_path, {"lora": 0.5}, task="few_shot", evaluations=("test",))
    with pytest.raises(HarnessError, match="has records of both dra and lora"):
        compare([*records, *read_all([other.folder])], "dra", "lora")
    with pytest.raises(HarnessError, match="unknown task 'few'"):
        compare(records, "dra", "coop", task="few")
    with pytest.raises(HarnessError, match="'dra' twice"):
        compare(records, "dra", "dra")


def test_without_predictions_it_says_why(records):
    gone = [type(r)(**{**vars(r), "file": None}) for r in records]
    (found,) = compare(gone, "dra", "coop")
    assert found.sentences()[0].startswith("Nothing can be said: ")
    assert "was read from no file" in text([found])


def test_json_has_raw_numbers(records, capsys):
    assert main(["compare", "dra", "coop", "--json", "--results", str(records[0].folder)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    (same,) = compare(records, "dra", "coop")
    assert found["levels"]["2"]["value"] == same.at(2).value
    assert found["by_dataset"]["toy_a"]["p"] == same.sample.of_dataset("toy_a").difference(0, 1).p


def test_the_leaderboard_shows_intervals_places_and_who_is_told_apart(records):
    shown = Leaderboard(records).text()
    assert "95%: interval for other images and seeds, these datasets (800 images in 400" in shown
    assert "The best, dra, is told apart from all others." in shown
    assert "2 of 3 pairs are told apart" in shown
    line = next(line for line in shown.splitlines() if line.startswith("| coop"))
    assert line.split("|")[-2].strip() == "2-3"
    assert "±" not in shown
    assert "±" in Leaderboard(records, every_column=True).text()


def test_against_compares_all_with_one(records):
    shown = Leaderboard(records, against="zero_shot").text()
    assert "1 of 2 are told apart from zero_shot" in shown
    line = next(line for line in shown.splitlines() if line.startswith("| dra"))
    assert "(+" in line
    with pytest.raises(HarnessError, match=r"unknown row 'zeroshot'. Did you mean 'zero_shot'"):
        Leaderboard(records, against="zeroshot").text()


def test_latex_is_bold_where_the_best_is_not_told_apart_and_has_no_bookkeeping(tmp_path):
    store = write(tmp_path, {"zero_shot": 0.5, "dra": 0.69, "mma": 0.695})
    shown = Leaderboard(read_all([store.folder])).text("latex")
    bold = [line.partition("&")[0].strip() for line in shown.splitlines() if "textbf" in line]
    assert {*bold} == {"dra", "mma"}
    assert "params" not in shown
    assert "booktabs" in shown


def test_csv_and_json_of_the_leaderboard_hold_the_intervals(records):
    csv = Leaderboard(records).text("csv").splitlines()
    assert {"low", "high", "place_first", "place_last"} <= {*csv[0].split(",")}
    (table,) = json.loads(Leaderboard(records).text("json"))
    assert table["certainty"]["units"] == 400
    assert len(table["certainty"]["pairs"]) == 3
    (row,) = [r for r in table["rows"] if r["label"] == "dra" and r["dataset"] == "average"]
    assert row["low"] < row["hm"] < row["high"]


def test_without_predictions_the_leaderboard_says_why_there_is_no_interval(records, tmp_path):
    store = write(tmp_path, {"dra": 0.7, "coop": 0.6})
    for path in tmp_path.rglob("*.predictions.safetensors"):
        if path.name.startswith("dra"):
            path.unlink()
    shown = Leaderboard(read_all([store.folder])).text()
    assert "No interval: dra: the predictions were not kept." in shown
    for path in tmp_path.rglob("*.predictions.safetensors"):
        path.unlink()
    shown = Leaderboard(read_all([store.folder])).text()
    assert "the predictions were not kept" in shown
    assert "±" in shown


def test_seeds_on_other_images_have_no_interval(tmp_path):
    validation = {"settings": {"split": "val"}}
    write(tmp_path, METHODS, seeds=(1, 2), **validation)
    store = write(tmp_path, METHODS, seeds=(3,), images=100, **validation)
    shown = Leaderboard(read_all([store.folder])).text()
    assert "No intervals: seeds were scored on different images." in shown


def test_a_damaged_file_takes_only_its_row(tmp_path):
    store = write(tmp_path, METHODS)
    next(tmp_path.rglob("coop*.predictions.safetensors")).write_bytes(b"x")
    shown = Leaderboard(read_all([store.folder])).text()
    assert "No interval: coop: the predictions in" in shown
    assert "1 of 1 pairs of the 2 rows with an interval are told apart" in shown


def test_runs_that_neither_of_them_has_are_not_said_to_be_left_out(tmp_path):
    write(tmp_path, {"dra": 0.6, "coop": 0.5})
    write(tmp_path, {"lora": 0.6}, datasets=("toy_c",))
    (found,) = compare(read_all([tmp_path]), "dra", "coop")
    assert found.left_out == 0
    assert "left out" not in text([found])


def test_two_tables_of_other_settings_have_other_titles(tmp_path):
    for steps in (None, 2):
        write(tmp_path, {"dra": 0.6, "coop": 0.5}, settings={"max_steps": steps})
    shown = text(compare(read_all([tmp_path]), "dra", "coop"))
    assert "emoji-mini, 16 shots, at most 2 steps.\n" in shown
    assert "emoji-mini, 16 shots.\n" in shown


def test_what_was_scored_on_validation_images_is_not_called_a_test(tmp_path):
    write(tmp_path, {"dra": 0.6, "coop": 0.5}, settings={"split": "val"})
    records = read_all([tmp_path])
    said = "16 shots, scored on validation images"
    assert said in text(compare(records, "dra", "coop"))
    assert said in leaderboard.render(records)
    assert said in metric_tables.text(Leaderboard(records), ["ece"], "markdown")


def test_methods_with_the_same_score_are_not_said_to_be_ahead(tmp_path):
    write(tmp_path, {"dra": 1.2, "coop": 1.3})
    shown = text(compare(read_all([tmp_path]), "dra", "coop"))
    assert "they have the same HM of base and new" in shown
    assert "In practice they are the same" not in shown


def test_units_that_one_folder_does_not_know_yet_count_for_all(tmp_path):
    """A csv got a group column after the runs of the first folder."""
    write(tmp_path / "old", {"coop": 0.5})
    for path in (tmp_path / "old" / "splits").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"units": None}))
    write(tmp_path / "new", {"dra": 0.6})
    folders = [tmp_path / "old", tmp_path / "new"]
    for order in (folders, folders[::-1]):
        (found,) = compare(read_all(order), "coop", "dra")
        assert (found.sample.images, found.sample.units) == (800, 400)


def test_units_that_are_added_while_a_program_runs_are_noticed(tmp_path):
    store = write(tmp_path, {"coop": 0.5, "dra": 0.6})
    for path in (tmp_path / "splits").iterdir():
        store.write_split(path.name.removesuffix(".split.json"),
                          json.loads(path.read_text()) | {"units": None})  # fmt: skip
    (found,) = compare(read_all([tmp_path]), "coop", "dra")
    assert found.sample.units == 800
    write(tmp_path, {"coop": 0.5, "dra": 0.6})
    (found,) = compare(read_all([tmp_path]), "coop", "dra")
    assert found.sample.units == 400


def test_a_table_without_the_row_that_all_are_compared_with_compares_each_with_each(tmp_path):
    write(tmp_path, METHODS)
    write(tmp_path, {"coop": 0.5, "zero_shot": 0.6}, task="few_shot", evaluations=("accuracy",))
    shown = Leaderboard(read_all([tmp_path]), against="dra").text()
    assert "2 of 2 are told apart from dra" in shown
    assert "1 of 1 pairs are told apart" in shown


def test_a_row_that_is_filtered_out_cannot_be_compared_with_and_the_remedy_is_said(records):
    with pytest.raises(HarnessError, match=r"unknown row 'dra'.*Name it in --methods, too"):
        Leaderboard(records, methods="coop,zero_shot", against="dra").text()


def test_latex_says_nothing_of_a_column_that_it_leaves_out(records):
    assert "place" not in Leaderboard(records).text("latex")


def test_the_source_of_a_transfer_task_is_not_shown_with_the_images_of_its_targets(tmp_path):
    write(tmp_path, METHODS, task="cross_dataset", evaluations=("accuracy",),
          datasets=("source", "toy_a", "toy_b"), task_fields={"source": "source"})  # fmt: skip
    shown = Leaderboard(read_all([tmp_path]), by_dataset=True).text()
    of_source = shown.partition("16 shots, source.")[2].partition("16 shots, toy_a.")[0]
    assert "No intervals: source is not part of the average." in of_source
    assert "95%" not in of_source


def test_what_is_the_same_on_two_datasets_says_nothing_of_a_third(tmp_path):
    write(tmp_path, {"dra": 1.2, "coop": 1.3})
    (found,) = compare(read_all([tmp_path]), "dra", "coop")
    assert found.at(3).low is None
    assert "(no interval: the same on every dataset)" in text([found])
    assert found.sample.all_pairs.needed > 0


def test_of_two_copies_of_a_folder_that_with_predictions_counts(tmp_path):
    write(tmp_path / "whole", METHODS)
    shutil.copytree(tmp_path / "whole", tmp_path / "light")
    for path in (tmp_path / "light").rglob("*.predictions.safetensors"):
        path.unlink()
    for order in (("whole", "light"), ("light", "whole")):
        (found,) = compare(read_all([tmp_path / name for name in order]), "dra", "coop")
        assert found.sample is not None


def test_methods_that_share_the_source_of_a_transfer_alone_are_not_compared(tmp_path):
    about = {"task": "cross_dataset", "evaluations": ("test",), "task_fields": {"source": "toy_a"}}
    write(tmp_path, {"dra": 0.6, "coop": 0.5}, datasets=("toy_a",), **about)
    write(tmp_path, {"lora": 0.6}, **about)
    (found,) = compare(read_all([tmp_path]), "dra", "coop")
    assert found.sentences() == [
        "Nothing can be said: they share toy_a alone, where they were fitted, and no other dataset."
    ]


def test_what_stands_without_an_interval_is_not_among_those_that_are_told_apart(tmp_path):
    store = write(tmp_path, {"dra": 0.9, "coop": 0.5, "mma": 0.5})
    for path in tmp_path.rglob("dra*.predictions.safetensors"):
        path.unlink()
    records = read_all([store.folder])
    assert "Not told apart from the best of the 2 rows with an interval" in " ".join(
        leaderboard.render(records).split()
    )
    latex = leaderboard.render(records, "latex")
    bold = [line.split("&")[0].strip() for line in latex.splitlines() if "textbf" in line]
    assert {*bold} == {"dra"}  # the best alone, in every table


def test_a_difference_of_rounding_alone_is_none(records):
    sample = compare(records, "dra", "coop")[0].sample
    values = sample.values.copy()
    values[1] = values[0] + 2e-16
    sample.__dict__["values"] = values  # as sums of fractions in another order give it
    for level in (1, 2):
        assert sample.difference(0, 1, level).value == 0
        assert sample.difference(0, 1, level).p == 1
    assert [*sample.all_pairs.differences] == [0]


def test_runs_that_are_stale_or_of_another_engine_are_said(tmp_path):
    write(tmp_path / "old", {"lora": 0.6}, engine=1)
    write(tmp_path / "new", {"lora": 0.7}, engine=2, hyperparameters={"rank": 4})
    write(tmp_path / "new", {"dra": 0.7}, engine=1)
    for path in (tmp_path / "new").rglob("lora*.json"):
        path.write_text(path.read_text().replace("2026-01-01", "2026-02-01"))
    (found,) = compare(read_all([tmp_path / "old", tmp_path / "new"]), "dra", "lora")
    said = " ".join(found.sentences())
    assert "6 runs are left out, because newer ones have other code" in said
    assert "rows differ in engine (1: dra; 2: lora)" in said


def test_bold_in_a_datasets_table_is_of_that_dataset(tmp_path):
    write(tmp_path, {"dra": 0.9, "coop": 0.4}, datasets=("toy_a",))
    write(tmp_path, {"dra": 0.5, "coop": 0.5}, datasets=("toy_b",))
    shown = Leaderboard(read_all([tmp_path]), by_dataset=True).text("latex")
    tables = shown.split(r"\begin{tabular}")
    average, _, first, second = tables[1:]
    assert "coop" in first
    for table, bold in ((average, 1), (first, 1), (second, 2)):
        lines = [each for each in table.splitlines() if each.strip().startswith(("dra", "coop"))]
        assert sum("textbf" in each.rsplit("&", 2)[1] for each in lines) == bold


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (0.0499, "0.0499"),
        (0.0546, "0.0546"),
        (0.056, "0.06"),
        (0.0123, "0.01"),
        (0.05004, "0.0500400"),
    ],
)
def test_p_near_005_shows_its_side(p, shown):
    assert p_value(p) == shown
