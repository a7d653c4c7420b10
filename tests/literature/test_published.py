"""Published numbers stand beside ours only where task, backbone, shots and datasets agree."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.errors import HarnessError
from harness.leaderboards.leaderboard import Leaderboard
from harness.literature import compared, published
from harness.literature.beside import beside
from harness.records.entry import harmonic_mean
from harness.records.predictions import PREDICTIONS
from harness.records.record import Record
from harness.records.store import digest, read_all
from tests.records import worlds

OURS = "ViT-B-16-quickgelu:openai"
ELEVEN = sorted(published.AVERAGED["base2new"])
NOTES = {  # what the notes in the files say of the misfits that were known when they were made
    "hm": r"of the printed base and new: ([\d.]+)",
    "average": r"mean of the (?:11 printed|printed targets): ([\d.]+)",
}


def record(method="coop", dataset="dtd", right=(80, 60), folder=None, **more):
    """A run with `right` of 100 base and of 100 new images; its predictions in a folder."""
    run = {
        "method": method, "overrides": {}, "task": "base2new", "dataset": dataset,
        "backbone": OURS, "shots": 16, "seed": 1, "settings": {}, "hyperparameters": {},
        "fingerprints": {"weights": "w", "evaluated": {"base": "b", "new": "n"}}, "code": "c",
    } | more  # fmt: skip
    scores = {name: {"accuracy": correct / 100, "correct": correct, "total": 100}
              for name, correct in zip(("base", "new"), right, strict=True)}  # fmt: skip
    made = Record(key=digest(run), status="done", run=run, scores=scores,
                  provenance={"time": "2026-01-01"}, cost={})  # fmt: skip
    if folder is None:
        return made
    tensors = {}
    for name, correct in zip(("base", "new"), right, strict=True):
        tensors[f"{name}.labels"] = np.zeros(100, np.int16)
        tensors[f"{name}.predictions"] = (np.arange(100) >= correct).astype(np.int16)
    file = folder / f"{made.key}.json"
    save_file(tensors, str(file.with_suffix(PREDICTIONS)))
    return dataclasses.replace(made, file=file)


def lines(records, names="dra", **options):
    found = compared.compared(Leaderboard(records, **options), published.wanted(names))
    return [line for each in found for line in each.lines]


def misfit_names():
    return {
        (name, row.name, each.dataset, each.evaluation, each.printed.text, round(each.follows, 2))
        for name, source in published.sources().items()
        for each in source.checked.misfits
        for row in [each.row]
    }


@pytest.mark.parametrize(
    "misfit",
    [
        ("dra", "mma", "ucf101", "hm", "82.20", 83.01),
        ("dra", "mma", "average", "new", "76.80", 76.94),
        ("dra", "metaprompt", "oxford_flowers", "hm", "85.50", 84.50),
        ("dra", "metaprompt", "average", "base", "83.38", 83.64),
        ("dra", "dra-v", "average", "hm", "79.91", 79.93),
        ("dra", "lfa", "caltech101", "hm", "96.13", 96.12),
        ("promptkd", "promptkd", "stanford_cars", "hm", "83.13", 83.08),
        ("atprompt", "cocoop+atprompt", "average", "accuracy", "66.59", 66.12),
        ("argue", "lasp_v", "average", "base", "83.18", 83.10),
        ("readmes", "rpo", "average", "hm", "77.78", 77.94),
        ("apex", "maple", "average", "hm", "77.86", 78.16),
    ],
    ids=lambda misfit: " ".join(map(str, misfit)),
)
def test_a_known_misfit_is_found(misfit):
    assert misfit in misfit_names()


def test_every_misfit_that_a_note_states_is_found_with_the_same_value():
    stated, found = set(), set()
    for name, source in published.sources().items():
        for number in source.numbers:
            for pattern in NOTES.values():
                if match := re.search(pattern, number.note):
                    stated.add((name, number.line, match[1]))
        found |= {(name, m.printed.line, f"{m.follows:.2f}") for m in source.checked.misfits}
    assert stated <= found
    lfa = next(m.printed.line for m in published.sources()["dra"].checked.misfits
               if m.row.method == "lfa")  # fmt: skip
    assert found - stated == {("dra", lfa, "96.12")}  # by 0.012, less than the notes allow for


def test_all_files_are_read_whole():
    sources = published.sources()
    assert len(sources) == 13
    assert len(sources["dra"].numbers) == 559
    assert sum(len(source.numbers) for source in sources.values()) == 3291


def test_no_row_has_a_dataset_that_its_average_is_not_assumed_to_be_over():
    for source in published.sources().values():
        for row in source.rows:
            of_each = {name for name, _ in row.numbers} - {"average", "imagenet"}
            expected = published.AVERAGED.get(row.task, of_each)
            assert of_each <= expected


@pytest.mark.parametrize("names", ["dr", "dra,coop,nothing", "promptsrk"])
def test_an_unknown_name_is_refused(names):
    with pytest.raises(HarnessError, match="unknown source or method"):
        published.wanted(names)


def test_a_source_and_a_method_narrow_each_other():
    rows = published.wanted("dra,coop").rows
    assert {(source.name, row.method) for source, row in rows} == {("dra", "coop")}


def test_a_dataset_stands_beside_the_printed_one():
    (line,) = lines([record(dataset="ucf101")])
    assert line.whose == ["dra 1"]
    assert {name: number.text for name, number in line.printed.items()} == {
        "base": "84.69", "new": "56.05", "hm": "67.46",
    }  # fmt: skip
    assert line.ours["base"].value == 0.8
    assert line.ours["hm"].value == pytest.approx(harmonic_mean(0.8, 0.6))
    difference = line.raw()["numbers"]["hm"]["difference"]
    assert difference == pytest.approx(harmonic_mean(0.8, 0.6) - 0.6746)


def test_the_average_of_all_datasets_stands_beside_the_printed_average():
    line = lines([record(dataset=name) for name in ELEVEN])[0]
    assert [number.text for number in line.printed.values()] == ["82.69", "63.22", "71.66"]
    assert line.whose == ["dra 1", "dra 6"]


def test_the_average_of_some_datasets_stands_beside_the_printed_ones_averaged_over_these():
    (line,) = lines([record(dataset=name) for name in ("dtd", "ucf101")])
    printed = published.sources()["dra"].rows
    row = next(row for row in printed if row.method == "coop" and row.where[1] == "1")
    expected = [(row.numbers["dtd", e].value + row.numbers["ucf101", e].value) / 2
                for e in ("base", "new")]  # fmt: skip
    values = {name: number.value for name, number in line.printed.items()}
    assert values == pytest.approx(
        {"base": expected[0], "new": expected[1], "hm": harmonic_mean(*expected)}
    )
    assert line.whose == ["dra 1 (mean)"]


def test_where_a_source_lacks_a_dataset_each_of_the_others_is_compared():
    every = compared.compared(
        Leaderboard([record("dra", name) for name in ("dtd", "imagenet")]), published.wanted("dra")
    )
    assert [each.title.rpartition(", ")[2] for each in every] == ["imagenet"]


def test_a_method_that_nobody_prints_stands_beside_nothing():
    text = " ".join(beside(Leaderboard([record("adapter")])).split())
    assert "nothing to compare" in text
    assert "of adapter" in text


@pytest.mark.parametrize(
    "other",
    [
        {"backbone": "emoji-mini"},
        {"backbone": "ViT-B-16:laion400m_e31"},
        {"backbone": "ViT-B-16-quickgelu:random"},
        {"shots": 8},
        {"task": "few_shot"},
        {"settings": {"split": "val"}},
    ],
    ids=str,
)
def test_another_backbone_task_split_or_number_of_shots_stands_beside_nothing(other):
    records = [record(**other)]
    assert lines(records) == []
    text = " ".join(beside(Leaderboard(records), "dra").split())
    assert "nothing to compare" in text
    assert f"ViT-B/16 (--backbone {OURS}" in text
    assert "base2new (16 shots)" in text


def test_transductive_rows_stand_beside_nothing():
    rows = published.matching(published.wanted("promptkd").rows, "base2new", OURS, "16")
    assert {row.method for _, row in rows} == {"promptsrc"}


def test_rows_of_no_training_images_stand_beside_any_number_of_shots():
    rows = published.wanted("gda,zero_shot").rows
    assert published.matching(rows, "few_shot", "RN50-quickgelu:openai", "4")


def test_an_interval_holds_a_printed_number_or_does_not(tmp_path):
    near, far = (
        record(right=(80, 57), folder=tmp_path),
        record("mma", folder=tmp_path, right=(40, 40)),
    )
    of = {line.label: line for line in lines([near, far])}
    assert of["coop"].inside("base") is True  # printed 79.44, ours 80 of 100
    assert of["mma"].inside("base") is False
    assert of["mma"].inside("hm") is False


@pytest.mark.parametrize(
    ("seeds", "said"),
    [((1,), "other images; one seed says nothing of other seeds"), ((1, 2), "other images and")],
)
def test_what_our_intervals_are_for_is_said(tmp_path, seeds, said):
    worlds.write(tmp_path, {"coop": 0.6}, datasets=("dtd",), seeds=seeds,
                 backbone="ViT-B-16-quickgelu:openai")  # fmt: skip
    shown = " ".join(beside(Leaderboard(read_all([tmp_path])), "dra").split())
    assert f"Our intervals are for {said}" in shown


def test_there_is_no_interval_without_predictions():
    (line,) = lines([record()])
    assert line.inside("hm") is None
    assert "No intervals" in beside(Leaderboard([record()]), "dra")


def test_methods_that_were_not_measured_are_shown_if_asked_for():
    records = [record(dataset="ucf101")]
    assert {line.label for line in lines(records, "dra")} == {"coop"}
    every = lines(records, "dra,all")
    assert {"coop", "mma", "lfa"} <= {line.label for line in every}
    assert [line.label for line in lines(records, "dra,mma")] == ["mma"]
    assert "| mma" in beside(Leaderboard(records), "dra,all")


def test_a_misfit_is_marked_and_explained():
    text = beside(Leaderboard([record("mma", "ucf101")]), "dra")
    assert "82.20*" in text
    assert "mma, hm 82.20: 83.01 is the HM of base 86.23 and new 80.03" in text


def test_sources_that_print_the_same_share_a_line():
    (line, *others) = lines([record(dataset=name) for name in ELEVEN], "coop")
    assert len(line.whose) > 5
    values = [tuple(n.value for n in each.printed.values()) for each in (line, *others)]
    assert len(set(values)) == len(values)


def test_rows_of_other_settings_are_left_out_and_counted():
    records = [record("dra", name) for name in ELEVEN]
    assert not any("K=2" in where for line in lines(records) for where in line.whose)
    assert "other settings: 7 printed rows" in beside(Leaderboard(records), "dra")


def test_settings_that_shorten_our_fits_are_said():
    text = beside(Leaderboard([record(settings={"max_steps": 300})]), "dra")
    assert "max_steps=300" in text


def test_the_source_of_a_transfer_must_be_the_same():
    target = {"task": "cross_dataset", "dataset": "dtd"}
    for source, number in (("imagenet", 1), ("emoji", 0)):
        each = record(**target, task_fields={"source": source})
        made = dataclasses.replace(each, scores={"test": {"accuracy": 0.4}})
        assert len(lines([made])) == number


@pytest.mark.parametrize("form", ["csv", "latex"])
def test_other_formats_hold_the_same_numbers(form):
    text = beside(Leaderboard([record("mma", "ucf101")]), "dra", form)
    assert "82.20" in text
    assert "dra 1" in text


def test_what_is_transductive_has_no_shots_in_any_source():
    """So that it stands beside no run of the harness."""
    wrong = [
        (source.name, row.method)
        for source in published.sources().values()
        for row in source.rows
        for number in row.numbers.values()
        if ("transductive" in number.note or "promptkd" in row.method)
        and published._of(row, "shots")
    ]
    assert not wrong


def test_methods_that_are_here_have_their_name_here():
    """Printed under another one, nothing would be compared."""
    printed = {row.method for source in published.sources().values() for row in source.rows}
    others = {"coop+dept", "cocoop+dept", "coop+atprompt", "lp++", "argue-n", "2sfs"}
    assert not printed & others
    assert {"dept", "dept-cocoop", "atprompt", "lp_plus_plus", "two_stage"} <= printed
