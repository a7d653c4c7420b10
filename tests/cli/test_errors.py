"""`errors`: the run that is meant is found, or it is said what there is; texts do no harm."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from harness.cli.commands import main
from harness.records import predictions
from harness.records.store import PREDICTIONS, Store
from tests.leaderboards.test_leaderboard import record
from tests.leaderboards.test_metrics import keep


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """Sentences are wrapped at the same places on every terminal."""
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two methods on two datasets."""
    store = Store(tmp_path).open()
    for method in ("dra", "coop"):
        for dataset in ("toy_a", "toy_b"):
            keep(store, 1, dataset, method, split=True)
    predictions._split.cache_clear()
    return tmp_path


@pytest.fixture
def errors(folder, capsys):
    """errors("dra", "--seed", "1"): the exit code, the output and the messages."""

    def call(*arguments: str):
        code = main(["errors", *arguments, "--results", str(folder)])
        return code, *capsys.readouterr()

    return call


def of(folder: Path, method: str, dataset: str):
    (found,) = [each for each in Store(folder).records()
                if (each.run["method"], each.run["dataset"]) == (method, dataset)]  # fmt: skip
    return found


def test_a_run_is_found_by_method_and_options_by_key_and_by_file(errors, folder):
    one = of(folder, "dra", "toy_b")
    code, shown, _ = errors("dra", "--dataset", "toy_b")
    assert code == 0
    assert "base2new toy_b, 16 shots, seed 1" in shown
    for name in (one.key, one.key[:9], str(one.file)):
        assert errors(name) == (0, shown, "")


def test_a_method_without_settings_is_meant_before_one_with_settings(errors, folder):
    for rank in (4, 8):
        made = record("lora", "toy_a", rank, base=None, overrides={"rank": rank})
        Store(folder).write(replace(made, error=f"rank {rank}"), {})
    assert "2 runs are meant by lora:" in errors("lora")[2]
    assert "rank 8." in errors("lora[rank=8]")[1]
    Store(folder).write(replace(record("lora", "toy_a", base=None), error="no settings"), {})
    assert "no settings." in errors("lora")[1]


def test_a_file_is_found_from_its_own_folder(errors, folder, monkeypatch):
    one = of(folder, "dra", "toy_b")
    monkeypatch.chdir(one.file.parent)
    assert "Most confident mistakes" in errors(one.file.name)[1]


def test_every_evaluation_is_shown_or_one(errors, folder):
    shown = errors("dra", "--dataset", "toy_b")[1]
    score = of(folder, "dra", "toy_b").scores
    for name in ("base", "new"):
        assert f"{name}: {score[name]['correct']} of 40 images right" in shown
    shown = errors("dra", "--dataset", "toy_b", "--evaluation", "new")[1]
    assert "base:" not in shown
    assert "40 units (each image is one)" in shown


def test_the_most_confident_mistake_comes_first_with_its_path(errors, folder):
    found = predictions.read(of(folder, "dra", "toy_b"), "base")
    wrong = found.labels != found.classes
    first = max(found.probabilities[wrong, 0])
    shown = errors("dra", "--dataset", "toy_b", "--evaluation", "base", "--images", "1")[1]
    line = shown.strip().splitlines()[-1].split()
    place = int(line[-1].removesuffix(".png"))
    assert line[0] == f"{100 * float(first):.2f}"
    assert line[1:3] == [f"c{found.labels[place]}", f"c{found.classes[place]}"]


def test_several_runs_are_listed_with_their_keys_and_how_to_choose(errors, folder):
    code, shown, message = errors("dra")
    assert (code, shown) == (2, "")
    for dataset in ("toy_a", "toy_b"):
        assert of(folder, "dra", dataset).key in message
    assert "coop" not in message
    assert "Choose one with --dataset or its key." in message
    assert "4 runs are meant" in errors()[2]


def test_runs_that_only_their_time_tells_apart_are_listed_with_it(errors, folder):
    Store(folder).write(record("old", "toy_c", 1, None, time="2026-01-01T10:00"), {})
    Store(folder).write(record("old", "toy_c", 1, None, time="2026-01-02T11:30"), {})
    message = errors("old")[2]
    assert "2026-01-02 11:30" in message
    assert "Choose one with its key." in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zzz"], "unknown method or key 'zzz'. Known: coop, dra."),
        (["cop"], "Did you mean 'coop'?"),
        (["dra", "--dataset", "toy_c"], "no run of dra has dataset toy_c: there is toy_a, toy_b."),
        (["dra", "--seed", "7"], "no run of dra has seed 7: there is 1."),
        (["dra", "--dataset", "toy_a", "--evaluation", "old"], "Known: base, new."),
        (["nowhere.json"], "No such file"),
        (["dra", "--images", "-1"], "--images -1: give a number from 0."),
    ],
)
def test_what_is_not_there_is_said_with_what_there_is(errors, arguments, said):
    code, shown, message = errors(*arguments)
    assert (code, shown) == (2, "")
    assert said in message


def test_a_file_that_is_no_record_is_refused(errors, folder):
    for path in (folder / "splits" / "toy_abase.split.json", folder / "base2new"):
        code, _, message = errors(str(path))
        assert code == 2
        assert "is not a record that can be read" in message


def test_a_failed_run_is_a_sentence(errors, folder):
    Store(folder).write(replace(record("lora", base=None), error="Traceback\nE: too\x1b hot"), {})
    code, shown, _ = errors("lora")
    assert code == 0
    assert shown.endswith(r"failed, and so has no predictions: E: too\x1b hot." + "\n")
    given = json.loads(errors("lora", "--json")[1])
    assert (given["status"], given["evaluations"]) == ("failed", {})


def test_json_has_every_class_pair_and_mistake(errors, folder):
    one = of(folder, "coop", "toy_a")
    given = json.loads(errors(one.key, "--json", "--images", "1", "--classes", "1")[1])
    for name, score in one.scores.items():
        found = given["evaluations"][name]
        wrong = score["total"] - score["correct"]
        assert len(found["mistakes"]) == sum(pair["count"] for pair in found["pairs"]) == wrong
        assert sum(each["right"] for each in found["classes"]) == score["correct"]
        assert len(found["classes"]) == len(found["names"]) == 8
        assert found["missing"] == []


def test_csv_has_every_class(errors):
    shown = errors("coop", "--dataset", "toy_a", "--format", "csv", "--classes", "1")[1]
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert [row["evaluation"] for row in rows].count("new") == 8
    assert sum(int(row["images"]) for row in rows) == 80


def test_what_older_versions_kept_is_shown_and_what_is_missing_is_said(errors, folder):
    one = of(folder, "dra", "toy_a")
    parts = load_file(one.file.with_suffix(PREDICTIONS))
    old = {f"{name}.{to}": parts[f"{name}.{part}"].astype("int16") for name in one.scores
           for to, part in (("predictions", "class"), ("labels", "labels"))}  # fmt: skip
    save_file(old, one.file.with_suffix(PREDICTIONS))
    (folder / "splits" / "toy_abase.split.json").unlink()
    shown = errors(one.key)[1]
    base, _, new = shown.partition("\nnew: ")
    assert "no names of classes and images: the list of images was not kept" in base
    assert "class 3" in base
    assert "units not known" in base
    assert "c3" in new  # the list is there, from another run
    assert ".png" in new
    assert shown.count("no confidence: older versions kept no probabilities") == 2


def test_a_run_without_predictions_says_so_beside_its_count(errors, folder):
    one = of(folder, "dra", "toy_a")
    one.file.with_suffix(PREDICTIONS).unlink()
    code, shown, _ = errors(one.key)
    assert code == 0
    assert "is not known: the predictions were not kept." in " ".join(shown.split())
    assert f"base: {one.scores['base']['correct']} of 40" in shown
    given = json.loads(errors(one.key, "--json")[1])["evaluations"]["base"]
    assert given["missing"] == ["the predictions were not kept"]
    assert errors(one.key, "--format", "csv")[0] == 2


def test_names_and_paths_from_data_do_no_harm(errors, folder):
    for path in (folder / "splits").glob("toy_a*"):
        split = json.loads(path.read_text())
        split["names"] = [f"\x1b[31m|<script>\n{name}" for name in split["names"]]
        split["paths"] = [f"\x1b]0;\u202e{name}" for name in split["paths"]]
        path.write_text(json.dumps(split))
    one = of(folder, "dra", "toy_a")
    for arguments in ([], ["--json"], ["--format", "csv"]):
        shown = errors(one.key, *arguments)[1]
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "|<script>" in shown
