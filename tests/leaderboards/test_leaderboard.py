"""Aggregation: both harmonic means, sample deviations, what is missing is shown as missing."""

import csv
import dataclasses
import io
import itertools
import json
import statistics
import subprocess
import sys

import pytest

from harness.errors import HarnessError
from harness.leaderboards.leaderboard import Leaderboard, render
from harness.records import apart
from harness.records.entry import entry, harmonic_mean
from harness.records.store import Record, digest, read_all
from harness.records.summary import summarise
from tests.records import worlds


def record(method="dra", dataset="toy_a", seed=1, base=0.8, new=0.6, time="2026-01-01", **more):
    identity = {
        "method": method,
        "overrides": more.pop("overrides", {}),
        "task": "base2new",
        "dataset": dataset,
        "backbone": "emoji-mini",
        "shots": 16,
        "seed": seed,
        "settings": {},
        "fingerprints": {
            "weights": more.pop("weights", "w"),
            "evaluated": {"base": more.pop("images", "i")},
        },
        "code": more.pop("code", "c"),
        "hyperparameters": more.pop("hyperparameters", {"rank": 32}),
    }
    scores = {} if base is None else {"base": {"accuracy": base}, "new": {"accuracy": new}}
    return Record(
        key=digest([identity, time]),
        status="failed" if base is None else "done",
        run=identity,
        scores=scores,
        provenance={"time": time},
        cost={"trainable_parameters": 10},
        **more,
    )


def rows(records):
    table = summarise(records)
    return {(row["label"], row["dataset"]): row for _, row in table.iterrows()}


def grid(**more):
    """Two datasets, two seeds, four different accuracies."""
    values = {
        ("toy_a", 1): (0.9, 0.5),
        ("toy_a", 2): (0.8, 0.7),
        ("toy_b", 1): (0.6, 0.8),
        ("toy_b", 2): (0.5, 0.6),
    }
    return [record(dataset=d, seed=s, base=b, new=n, **more) for (d, s), (b, n) in values.items()]


def test_a_method_that_cannot_serve_the_task_is_shown_as_not_applicable():
    refused = [
        dataclasses.replace(each, status="not applicable", scores={}, error="why")
        for each in grid(method="tip_adapter")
    ]
    table = rows([*grid(), *refused])
    assert not table["tip_adapter", "average"]["applicable"]
    assert table["dra", "average"]["hm"] == rows(grid())["dra", "average"]["hm"]
    line = next(line for line in render([*grid(), *refused]).splitlines() if "tip_adapter" in line)
    assert "not applicable" in line
    assert "incomplete" not in line


def test_each_task_has_only_its_own_columns():
    other = grid(method="tip_adapter")
    for each in other:
        each.run["task"] = "few_shot"
        each.scores["test"] = each.scores.pop("base")
        del each.scores["new"]
    tables = render([*grid(), *other]).split("few_shot, emoji-mini")
    assert "| test |" not in " ".join(tables[0].split())
    assert "HM" not in tables[1]
    assert "base" not in tables[1]


def test_marks_are_those_of_the_datasets_own_runs():
    records = grid()
    wrong = dataclasses.replace(records[0], checks=["the loss rose"])
    table = rows([wrong, *records[1:]])
    assert table["dra", "average"]["checks"] == table["dra", "toy_a"]["checks"] == 1
    assert table["dra", "toy_b"]["checks"] == 0


def test_harmonic_mean_of_published_averages():
    assert 100 * harmonic_mean(0.6934, 0.7422) == pytest.approx(71.70, abs=0.005)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_both_conventions_of_the_average_row():
    row = rows(grid())["dra", "average"]
    base, new = (0.85 + 0.55) / 2, (0.6 + 0.7) / 2
    assert row["base"] == pytest.approx(base)
    assert row["new"] == pytest.approx(new)
    assert row["hm"] == pytest.approx(harmonic_mean(base, new))
    per_dataset = [harmonic_mean(0.85, 0.6), harmonic_mean(0.55, 0.7)]
    assert row["mean_hm"] == pytest.approx(statistics.mean(per_dataset))
    assert row["hm"] != pytest.approx(row["mean_hm"], abs=1e-3)


def test_deviations_are_sample_deviations_over_seeds_with_n():
    table = rows(grid())
    assert table["dra", "toy_a"]["base_std"] == pytest.approx(statistics.stdev([0.9, 0.8]))
    averages = [(0.9 + 0.6) / 2, (0.8 + 0.5) / 2]
    assert table["dra", "average"]["base_std"] == pytest.approx(statistics.stdev(averages))
    assert table["dra", "average"]["n"] == 2


def test_one_seed_has_no_deviation():
    assert "±" not in render([record()]).split("\n\n", 1)[1]


@pytest.mark.parametrize("missing", range(4))
def test_an_incomplete_cell_is_not_averaged(missing):
    records = grid() + [r for i, r in enumerate(grid(method="mma")) if i != missing]
    table = rows(records)
    average = table["mma", "average"]
    assert average[["base", "new", "hm"]].isna().all()
    assert (average["runs"], average["expected"]) == (3, 4)
    assert table["dra", "average"]["runs"] == 4
    text = render(records)
    assert "3/4 incomplete" in text
    assert "nan" not in text


def test_a_failed_run_is_missing_and_never_zero():
    records = [*grid(), *grid(method="mma")[:3], record("mma", "toy_b", 2, base=None)]
    average = rows(records)["mma", "average"]
    assert (average["runs"], average["failed"]) == (3, 1)
    assert "3/4 incomplete, 1 failed" in render(records)


def test_a_method_with_only_failures_is_listed():
    text = render([*grid(), record("mma", "toy_a", 1, base=None)])
    assert "mma" in text


def test_the_order_of_records_does_not_matter():
    expected = rows(grid())["dra", "average"]
    for records in itertools.permutations(grid()):
        found = rows(records)["dra", "average"]
        for name in ("base", "new", "hm", "mean_hm", "base_std", "runs"):
            assert found[name] == expected[name], name


def test_of_records_of_the_same_cell_the_newest_counts():
    older, newer = record(base=0.1, time="2026-01-01"), record(base=0.7, time="2026-02-01")
    for records in ([older, newer], [newer, older]):
        assert rows(records)["dra", "toy_a"]["base"] == 0.7


@pytest.mark.parametrize("changed", [{"code": "d"}, {"hyperparameters": {"rank": 8}}])
def test_seeds_of_other_code_or_hyperparameters_are_never_averaged_with_newer_ones(changed):
    newer = record(seed=1, base=0.1, time="2026-02-01", **changed)
    table = rows([*grid(), newer])
    average = table["dra", "average"]
    assert average[["base", "hm"]].isna().all()
    assert average["stale"] > 0
    assert "stale" in render([*grid(), newer])


def test_records_of_other_images_of_a_dataset_are_left_out():
    newer = [record("mma", seed=s, time="2026-02-01", images="other") for s in (1, 2)]
    older = [record(seed=s) for s in (1, 2)]
    table = rows([*older, *newer])
    assert table["mma", "toy_a"]["runs"] == 2
    assert table["dra", "toy_a"]["runs"] == 0
    assert table["dra", "toy_a"]["stale"] == 2
    text = render([*older, *newer])
    assert (
        " ".join(text.split()).count(
            "the lists of images or the templates differ, and are not averaged"
        )
        == 1
    )
    assert "toy_a, all seeds" in text
    assert "left out: dra on" in " ".join(text.split())


def test_a_seed_on_other_test_images_is_not_averaged_with_the_rest():
    records = [record(seed=1), record(seed=2, images="other", time="2026-02-01")]
    assert rows(records)["dra", "toy_a"]["runs"] == 1
    assert rows(records)["dra", "toy_a"]["stale"] == 1
    for each in records:
        each.run["settings"]["split"] = "val"  # validation images are drawn for each seed
    assert rows(records)["dra", "toy_a"]["runs"] == 2


def test_a_newer_failure_is_not_hidden_by_an_older_success():
    failed = record(seed=1, base=None, time="2026-02-01")
    average = rows([record(seed=1), record(seed=2), failed])["dra", "average"]
    assert (average["runs"], average["failed"]) == (1, 1)


def test_two_versions_of_the_weights_are_two_tables_that_say_so():
    text = render([record(), record(weights="v")])
    assert "weights w" in text
    assert "weights v" in text


def test_columns_stay_when_no_row_is_complete():
    text = render([record(seed=1), record("mma", seed=2)])
    assert "| base |" in text.replace("   ", " ").replace("  ", " ")
    assert "–" in text


def test_each_dataset_has_a_table_of_its_own_on_request():
    text = render(grid(), by_dataset=True)
    assert "16 shots, toy_a" in text
    assert "85.00 ± 7.07" in text


def test_changed_settings_are_a_row_of_their_own():
    records = [*grid(), *grid(overrides={"rank": 8})]
    assert {"dra", "dra[rank=8]"} == {label for label, _ in rows(records)}


def test_runs_that_look_wrong_are_marked():
    assert "(1†)" in render([record(checks=["the loss rose"])])


def test_csv_holds_raw_fractions():
    table = list(csv.DictReader(io.StringIO(render(grid(), "csv"))))
    average = next(row for row in table if row["dataset"] == "average")
    assert float(average["base"]) == pytest.approx(0.7)
    assert float(average["n"]) == 2


def test_latex_is_a_booktabs_table():
    text = render(grid(), "latex")
    assert "\\toprule" in text
    assert text.startswith("%")


def test_markdown_escapes_what_would_break_the_table():
    assert "a\\|b" in render([record(overrides={"context": "a|b"})])


def test_percent_has_two_decimals_and_tables_fit_a_terminal():
    text = render(grid())
    assert "70.00 ± 7.07" in text
    assert max(map(len, text.splitlines())) <= 100


def test_no_records_say_how_to_start():
    with pytest.raises(HarnessError, match="harness run"):
        render([])
    with pytest.raises(HarnessError, match="few_shot"):
        render(grid(), task="few_shot")


def test_it_never_imports_torch():
    code = (
        "import sys, harness.leaderboards.leaderboard; assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_table_is_sorted_by_what_stands_for_its_own_rows(tmp_path):
    accuracies = {"zero_shot": 0.5, "coop": 0.9, "dra": 0.3}
    worlds.write(tmp_path, accuracies)
    worlds.write(tmp_path, accuracies, task="few_shot", evaluations=("accuracy",))
    rows = Leaderboard(read_all([tmp_path])).frame()
    for task in ("base2new", "few_shot"):
        shown = rows[(rows["task"] == task) & (rows["dataset"] == "average")]["label"]
        assert [*shown] == ["coop", "zero_shot", "dra"]


def test_a_dataset_called_method_does_not_hide_the_methods(tmp_path):
    worlds.write(tmp_path, {"coop": 0.5, "dra": 0.6}, datasets=("my_method", "my_cats"))
    shown = Leaderboard(read_all([tmp_path])).text()
    assert shown.count("| dra ") == shown.count("| coop ") == 2


def test_shots_that_are_averaged_over_other_datasets_are_said(tmp_path):
    about = {"task": "few_shot", "evaluations": ("test",)}
    worlds.write(tmp_path, {"coop": 0.6, "dra": 0.7}, shots=1, **about)
    worlds.write(tmp_path, {"coop": 0.6, "dra": 0.7}, shots=16, **about)
    assert "Not of the same" not in Leaderboard(read_all([tmp_path])).text()
    worlds.write(tmp_path, {"coop": 0.6}, shots=4, seeds=(1,), datasets=("toy_a",), **about)
    shown = Leaderboard(read_all([tmp_path])).text()
    assert (
        "Not of the same datasets or seeds: 1 shot: 2 datasets, seeds 1, 2, 3; 4 shots: 1 dataset, "
        "seed 1; 16 shots: 2 datasets, seeds 1, 2, 3." in shown
    )


def not_applicable(each):
    return dataclasses.replace(each, status="not applicable", scores={}, error="why")


def test_a_dataset_that_a_method_cannot_serve_is_not_missing():
    served = [not_applicable(each) if each.run["dataset"] == "toy_b" else each
              for each in grid(method="tip_adapter")]  # fmt: skip
    text = render([*grid(), *served])
    assert "2/4 incomplete, not applicable on 1 dataset" in text
    assert "--missing" not in text
    assert not rows([*grid(), *served])["tip_adapter", "toy_b"]["applicable"]


def test_a_failed_run_is_not_what_is_shown_of_several_lists():
    done = record(images="old")
    failed = record(base=None, images="new", time="2026-02-01")
    (said,) = apart.differing(map(entry, [failed, done]))
    shown = apart.differing(map(entry, [done]))
    assert shown == []
    assert f"Shown is the newest, {entry(done).tested}" in said


def test_what_is_said_below_a_table_is_said_in_every_form():
    one, other = record(images="a"), record("mma", images="b", time="2026-02-01")
    board = Leaderboard([one, other])
    words = "Left out, base2new, toy_a"
    assert words in board.text()
    assert f"% {words}" in board.text("latex")
    assert f"<p>{words}" in board.text("html")
    (table,) = json.loads(board.text("json"))
    assert table["notes"][0].startswith(words)


def test_latex_says_which_rows_lack_runs_or_look_wrong():
    odd = [dataclasses.replace(each, checks=["odd"]) for each in grid(method="mma")[:1]]
    text = render([*grid(), *grid(method="mma")[1:], *odd, record("coop")], "latex")
    said = " ".join(text.replace("% ", "").split())
    assert "Runs: mma 4/4 (1†); coop 1/4 incomplete." in said


def test_places_of_one_dataset_are_in_its_csv(tmp_path):
    worlds.write(tmp_path, {"coop": 0.3, "dra": 0.9}, datasets=("toy_a",))
    shown = Leaderboard(read_all([tmp_path])).text("csv")
    found = {row["label"]: row["place_first"] for row in csv.DictReader(io.StringIO(shown))}
    assert found == {"dra": "1", "coop": "2"}


def test_shots_of_which_the_fewest_failed_are_still_compared(tmp_path):
    about = {"task": "few_shot", "evaluations": ("test",)}
    for shots in (4, 16):
        worlds.write(tmp_path, {"coop": 0.6}, shots=shots, **about)
    failed = [dataclasses.replace(each, status="failed", scores={}, key=f"{each.key}-1",
                                  run={**each.run, "shots": 1})
              for each in read_all([tmp_path]) if each.run["shots"] == 4]  # fmt: skip
    shown = Leaderboard([*read_all([tmp_path]), *failed]).text()
    assert "by shots, average of the datasets" in shown


def test_tables_by_shots_are_named_by_what_tells_them_apart(tmp_path):
    about = {"task": "few_shot", "evaluations": ("test",)}
    for shots in (4, 16):
        for scale in (0.1, 0.5):
            settings = {"crop_scale": [scale, 1.0]}
            worlds.write(tmp_path, {"coop": 0.6}, shots=shots, settings=settings, **about)
    shown = Leaderboard(read_all([tmp_path])).text()
    titles = [line for line in shown.splitlines() if "by shots" in line]
    assert len({*titles}) == 2
