"""Metrics beside top-1: each is as defined, and is averaged as the leaderboard's rows are."""

import csv
import io
import math
import statistics
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harness.cli.commands import main
from harness.errors import HarnessError
from harness.leaderboards import metrics
from harness.leaderboards.leaderboard import Leaderboard
from harness.leaderboards.metric_tables import lines, text
from harness.records import predictions
from harness.records.predictions import Predicted
from harness.records.store import PREDICTIONS, Store, read_all
from tests.leaderboards.test_leaderboard import record

NAMES = [*metrics.METRICS]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """Sentences are wrapped at the same places on every terminal."""
    monkeypatch.setenv("COLUMNS", "100")


def predicted(classes: int, number: int = 300, seed: int = 0) -> Predicted:
    """What random logits say of random labels, as it is kept."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(number, classes)) * 3
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    best = np.argsort(-likely, axis=1, kind="stable")[:, :5].astype(np.int32)
    labels = draw.integers(0, classes, number)
    probabilities = np.take_along_axis(likely, best, 1).astype(np.float16)
    true = np.log(likely[np.arange(number), labels]).astype(np.float32)
    return Predicted(best[:, 0], labels, best, probabilities, true, None)


def slowly_ece(confidences, right) -> float:
    """The sum of the definition, bin by bin, in exact fractions."""
    total = Fraction(0)
    for k in range(15):
        inside = [i for i, c in enumerate(confidences)
                  if Fraction(k, 15) < Fraction(float(c)) <= Fraction(k + 1, 15)]  # fmt: skip
        if inside:
            accuracy = Fraction(sum(bool(right[i]) for i in inside), len(inside))
            confidence = sum(Fraction(float(confidences[i])) for i in inside) / len(inside)
            total += Fraction(len(inside), len(confidences)) * abs(accuracy - confidence)
    return float(total)


@pytest.mark.parametrize("classes", [2, 5, 10, 100])
def test_ece_is_its_definition(classes):
    found = predicted(classes)
    expected = slowly_ece(found.probabilities[:, 0], found.classes == found.labels)
    assert metrics.ece(found) == pytest.approx(expected, abs=1e-12)


def test_a_confidence_at_the_edge_of_a_bin_is_in_the_lower_one():
    edges = np.array([1.0, *np.arange(1, 16) / 15], np.float16)
    around = [np.nextafter(edges, np.float16(0)), edges, np.nextafter(edges, np.float16(2))]
    confidences = np.minimum(np.concatenate(around), np.float16(1))
    number = len(confidences)
    labels = np.arange(number) % 2
    classes = np.zeros(number, np.int32)
    found = Predicted(classes, labels, classes[:, None], confidences[:, None], None, None)
    expected = slowly_ece(confidences, classes == labels)
    assert metrics.ece(found) == pytest.approx(expected, abs=1e-12)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not():
    sure, zeros = np.ones((4, 1), np.float16), np.zeros(4, np.int64)
    right = Predicted(zeros, zeros, zeros[:, None], sure, None, None)
    assert metrics.ece(right) == 0
    assert metrics.ece(replace(right, labels=zeros + 1)) == 1
    assert metrics.ece(replace(right, labels=np.array([0, 0, 0, 1]))) == 0.25


def test_nll_is_the_mean_of_minus_the_log_of_the_true_classes_probability():
    found = replace(predicted(3), true=np.log(np.array([0.5, 0.25], np.float32)))
    assert metrics.nll(found) == pytest.approx((math.log(2) + math.log(4)) / 2, abs=1e-7)


def test_top5_asks_whether_the_true_class_is_among_the_five():
    best = np.array([[3, 1, 2, 0, 4], [3, 1, 2, 0, 4], [9, 1, 2, 0, 4]], np.int32)
    found = Predicted(best[:, 0], np.array([4, 5, 9]), best, None, None, None)
    assert metrics.top5(found) == pytest.approx(2 / 3)


def test_top5_of_five_classes_is_one():
    assert metrics.top5(predicted(5)) == 1
    assert metrics.top5(predicted(6)) < 1


def test_per_class_counts_classes_alike_and_leaves_out_those_without_images():
    labels = np.array([0] * 8 + [2] * 2)
    classes = np.array([0] * 8 + [1, 2])
    found = Predicted(classes, labels, None, None, None, None)
    assert metrics.per_class(found) == (1 + 0.5) / 2


def test_names_of_metrics_are_read_in_any_spelling():
    assert metrics.chosen("") == NAMES
    assert metrics.chosen("NLL, top-5,per_class") == ["top5", "per-class", "nll"]
    with pytest.raises(HarnessError, match=r"unknown metric 'brier'. Known: .*ece.*nll"):
        metrics.chosen("ece,brier")


def keep(
    store: Store,
    seed: int,
    dataset: str,
    method: str = "dra",
    classes: int = 8,
    split: bool = False,
) -> None:
    """A finished run with the predictions of random logits."""
    parts, scores = {}, {}
    for place, name in enumerate(("base", "new")):
        found = predicted(classes, 40, 100 * seed + 10 * place + len(dataset) + ord(dataset[-1]))
        parts |= {f"{name}.{part}": np.ascontiguousarray(getattr(found, field))
                  for part, field in (("class", "classes"), ("labels", "labels"), ("best", "best"),
                                      ("probabilities", "probabilities"),
                                      ("true", "true"))}  # fmt: skip
        correct = int((found.classes == found.labels).sum())
        scores[name] = {"accuracy": correct / 40, "correct": correct, "total": 40}
        if split:
            names = [f"c{i}" for i in range(classes)]
            store.write_split(f"{dataset}{name}", {
                "dataset": dataset, "template": "{}", "names": names, "units": None,
                "paths": [f"{i}.png" for i in range(40)], "labels": found.labels.tolist(),
            })  # fmt: skip
    made = record(method, dataset, seed)
    made.run["fingerprints"]["evaluated"] = {n: f"{dataset}{n}" for n in scores}
    path = store.write(replace(made, scores=scores), {})
    save_file(parts, path.with_suffix(PREDICTIONS))


@pytest.fixture
def store(tmp_path):
    """Two datasets, two seeds."""
    store = Store(tmp_path).open()
    for dataset in ("toy_a", "toy_b"):
        for seed in (1, 2):
            keep(store, seed, dataset)
    return store


def of(store: Store, **asked):
    found = lines(Leaderboard(read_all([store.folder]), **asked), NAMES)
    return {(line.label, line.dataset, line.evaluation): line for line in found}


@pytest.mark.parametrize("name", NAMES)
def test_an_average_is_over_datasets_and_then_over_seeds(store, name):
    value = {(each.run["dataset"], each.run["seed"], evaluation):
             metrics.METRICS[name].of(predictions.read(each, evaluation))
             for each in store.records() for evaluation in ("base", "new")}  # fmt: skip
    for evaluation in ("base", "new"):
        of_seeds = [statistics.mean(value[d, s, evaluation] for d in ("toy_a", "toy_b"))
                    for s in (1, 2)]  # fmt: skip
        line = of(store)["dra", "average", evaluation]
        assert line.values[name] == statistics.mean(of_seeds)
        assert line.deviations[name] == statistics.stdev(of_seeds)
        of_one = [value["toy_b", s, evaluation] for s in (1, 2)]
        assert of(store)["dra", "toy_b", evaluation].values[name] == statistics.mean(of_one)


def test_top1_is_that_of_the_leaderboard(store):
    average = Leaderboard(read_all([store.folder])).frame().iloc[0]
    for evaluation in ("base", "new"):
        line = of(store)["dra", "average", evaluation]
        assert line.values["top1"] == average[evaluation]
        assert line.deviations["top1"] == average[f"{evaluation}_std"]


def test_an_incomplete_row_has_no_value_and_says_what_is_missing(store):
    keep(store, 1, "toy_a", "coop")
    line = of(store)["coop", "average", "base"]
    assert {*line.values.values()} == {None}
    assert line.lacking == {"toy_a": [2], "toy_b": [1, 2]}
    shown = text(Leaderboard(read_all([store.folder])), NAMES, "markdown")
    assert "1/4 incomplete" in shown
    assert "coop: no finished run on toy_a, seed 2; toy_b, seeds 1, 2." in " ".join(shown.split())


def test_records_of_older_versions_have_what_they_tell_and_a_reason(store):
    for path in store.folder.rglob(f"*{PREDICTIONS}"):
        parts = load_file(path)
        old = {"base.predictions": parts["base.class"], "base.labels": parts["base.labels"]}
        old |= {"new.predictions": parts["new.class"], "new.labels": parts["new.labels"]}
        save_file({name: part.astype(np.int16) for name, part in old.items()}, path)
    line = of(store)["dra", "average", "base"]
    assert [name for name in NAMES if line.values[name] is None] == ["top5", "ece", "nll"]
    shown = text(Leaderboard(read_all([store.folder])), NAMES, "markdown")
    assert "–: no top-5, ECE, NLL of dra: older versions kept no probabilities." in shown


def test_one_run_without_predictions_leaves_its_row_without_a_value(store):
    next(store.folder.rglob(f"toy_b/*seed2*{PREDICTIONS}")).unlink()
    found = of(store)
    assert found["dra", "average", "new"].values["nll"] is None
    assert found["dra", "average", "new"].why["nll"] == "the predictions were not kept"
    assert found["dra", "toy_a", "new"].values["nll"] is not None


@pytest.mark.parametrize(
    ("part", "value"), [("probabilities", np.nan), ("probabilities", 1.5), ("true", np.inf),
                        ("true", 0.5), ("best", -1), ("class", -1), ("labels", -1)],
)  # fmt: skip
def test_numbers_that_are_no_classes_and_no_probabilities_are_not_measured(store, part, value):
    path = next(store.folder.rglob(f"toy_a/*seed1*{PREDICTIONS}"))
    parts = load_file(path)
    right = parts["base.class"] == parts["base.labels"]
    parts[f"base.{part}"][int(np.flatnonzero(~right)[0])] = value
    save_file(parts, path)
    found = of(store)
    assert found["dra", "average", "base"].values["nll"] is None
    assert "no classes or no probabilities" in found["dra", "average", "base"].why["nll"]
    assert found["dra", "average", "new"].values["nll"] is not None


def test_csv_has_raw_numbers_and_an_empty_cell_for_what_is_missing(store):
    keep(store, 1, "toy_a", "coop")
    shown = text(Leaderboard(read_all([store.folder])), ["nll"], "csv")
    rows = list(csv.DictReader(io.StringIO(shown)))
    value = of(store)["dra", "average", "base"].values["nll"]
    first = next(row for row in rows if (row["label"], row["dataset"]) == ("dra", "average"))
    assert float(first["nll"]) == value
    assert [r["nll"] for r in rows if (r["label"], r["dataset"]) == ("coop", "toy_b")] == ["", ""]


def test_a_dataset_of_few_classes_is_named_beside_top5(tmp_path):
    store = Store(tmp_path).open()
    for dataset, classes in (("toy_a", 5), ("toy_b", 6)):
        keep(store, 1, dataset, classes=classes, split=True)
    shown = text(Leaderboard(read_all([tmp_path])), ["top5"], "markdown")
    assert "says nothing: toy_a (base), toy_a (new)." in " ".join(shown.split())


def test_the_command_shows_the_metrics_that_were_asked_for(store, capsys):
    asked = ["leaderboard", "--results", str(store.folder), "--metrics"]
    assert main([*asked, "ece,nll", "--by-dataset"]) == 0
    shown = capsys.readouterr().out
    assert " ECE |" in shown
    assert "top-5" not in shown.lower()
    assert "base2new, emoji-mini, 16 shots, toy_b" in shown
    assert main([*asked, "brier"]) == 2
    assert main([*asked, "--format", "svg"]) == 2
