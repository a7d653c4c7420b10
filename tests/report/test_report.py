"""The report: what it says, that it shows texts as texts, and how large it becomes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.leaderboards.leaderboard import Leaderboard
from harness.records.record import Record
from harness.records.store import Store
from harness.report import charts, content, datasets, geometry, page, provenance
from tests.records import worlds

HOSTILE = "<script>alert(1)</script>"
QUOTED = "\"' onload=alert(1) x='"
METHODS = {"coop": 0.5, "lora": 0.8, "lora-wide": 0.79, "zero_shot": 0.4}


class Page(HTMLParser):
    """The elements of a page, their attributes, and all that is text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def world(folder: Path, accuracies=METHODS, **asked):
    asked = {"images": 40, "losses": (2.0, 1.0, 0.5), **asked}
    worlds.write(folder, accuracies, **asked)
    return Store(folder).records()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def found(records):
    return content.report(records)


@pytest.fixture(scope="module")
def chapter(found):
    return found["chapters"][0]


def test_the_scores_are_those_of_the_leaderboard(records, chapter):
    frame = Leaderboard(records).frame()
    average = frame[frame["dataset"] == "average"]
    assert chapter["labels"] == list(average["label"])
    assert [cell["value"] for cell in chapter["scores"]["average"]] == list(average["hm"])


def test_the_intervals_are_those_of_the_table(records, chapter):
    board = Leaderboard(records)
    (certain,) = board.certainties(board.frame()).values()
    cell = chapter["scores"]["toy_b"][chapter["labels"].index("lora")]
    expected = certain.interval("lora", "toy_b")
    assert (cell["low"], cell["high"]) == (expected.low, expected.high)


def test_a_pair_is_marked_where_it_is_told_apart(chapter):
    pairs = chapter["pairs"]
    best, worst = pairs["labels"].index("lora"), pairs["labels"].index("zero_shot")
    alike = pairs["labels"].index("lora-wide")
    marks = pairs["marks"]
    assert (marks[best][worst], marks[worst][best], marks[best][alike]) == (1, -1, 0)
    assert pairs["told"] == sum(mark == 1 for row in marks for mark in row)


def test_the_heat_map_is_relative_to_zero_shot(chapter):
    rows = {row["label"]: row["cells"] for row in chapter["heat"]["rows"]}
    assert [cell["level"] for cell in rows["zero_shot"]] == [0, 0]
    assert all(cell["level"] == 4 for cell in rows["lora"])


def test_the_heat_map_has_no_colour_where_zero_shot_was_not_run(records):
    kept = [r for r in records if (r.run["method"], r.run["dataset"]) != ("zero_shot", "toy_b")]
    heat = content.report(kept)["chapters"][0]["heat"]
    levels = {row["label"]: [cell["level"] for cell in row["cells"]] for row in heat["rows"]}
    assert heat["reference"] == "zero-shot"
    assert levels["lora"] == [4, None]


def test_mistakes_are_of_the_best_method_of_the_dataset_even_if_no_row_is_complete(records):
    kept = [r for r in records if (r.run["seed"], r.run["dataset"]) != (2, "toy_b")]
    kept += [replace(r, status="failed", scores={}) for r in records if r not in kept]
    first, second = content.report(kept)["chapters"][0]["sections"]
    assert (first["label"], second["label"]) == ("lora", "lora")


def test_a_variant_is_of_the_family_of_its_method():
    labels = ["lora-wide", "lora", "tip_adapter_f", "tip_adapter", "adapter", "dra[rank=8]"]
    assert list(charts.families(labels).values()) == [
        "lora", "lora", "tip_adapter", "tip_adapter", "adapter", "dra",
    ]  # fmt: skip


def test_losses_are_means_over_seeds_and_datasets(tmp_path):
    world(tmp_path, {"coop": 0.5}, seeds=(1,), losses=(2.0, 1.0, 0.5))
    every = world(tmp_path, {"coop": 0.5}, seeds=(2,), losses=(4.0, 1.0, 0.3))
    losses = content.report(every)["chapters"][0]["losses"]
    ticks = {mark["text"]: mark["at"] for mark in losses["y"]}
    heights = [float(point.partition(",")[2]) for point in losses["lines"][0]["points"].split()]
    three = ticks["2"] + 2 * (ticks["3"] - ticks["2"]) / 2  # the mean of 2 and 4
    assert heights[0] == pytest.approx(three, abs=0.2)
    assert heights[1] == pytest.approx(ticks["1"], abs=0.2)


def test_long_losses_are_thinned(tmp_path):
    every = world(tmp_path, {"coop": 0.5}, losses=tuple(1 / (k + 1) for k in range(300)))
    (line,) = content.report(every)["chapters"][0]["losses"]["lines"]
    assert len(line["points"].split()) == charts.POINTS


def test_a_zero_stands_before_a_logarithmic_axis():
    axis = geometry.axis([0, 100, 100_000], 0, 1000, str, wide=True)
    places = [axis.place(value) for value in (0, 100, 1000, 100_000)]
    assert places == sorted(places)
    assert axis.marks[0]["text"] == "0"


def test_equal_cells_of_a_matrix_are_one_stroke():
    assert geometry.spans([[None, 1, 1], [-1, None, 1]], 1, 10) == "M10,5h20M20,15h10"


def test_two_names_that_are_shown_alike_have_places_of_their_own():
    names = [f"dra[ratios=(1.0, 0.5), a={k}, rank=8, scale=0.25]" for k in (1, 2)]
    assert len({geometry.short(name) for name in names}) == 1
    dots = geometry.scatter([(name, 100.0, 60.0 + k, True) for k, name in enumerate(names)],
                            str, 1)["dots"]  # fmt: skip
    assert dots[0]["base"] != dots[1]["base"]


def test_costs_that_were_not_measured_are_said_to_be(chapter):
    why = {chart["kind"]: chart.get("why") for chart in chapter["costs"]}
    assert why["params"] is None
    assert "--tasks efficiency" in why["fit"]


def measured(like: Record, step: float) -> Record:
    """An efficiency record of a method: 10 steps of so many seconds."""
    seconds = {"median": step, "least": step, "most": step}
    inference = dict.fromkeys(("data", "image", "head", "texts"), seconds)
    cost = {
        "trainable_parameters": 5, "prepare_seconds": 1.0, "cuda": False,
        "train": {"steps": 10, "bytes": 2**20, "data": seconds, "step": seconds},
        "inference": {**inference, "batch": 1, "text_per_image": False},
    }  # fmt: skip
    run = {**like.run, "measured_on": ["a processor", 1], "task_fields": {"like": "base2new"}}
    return replace(like, key=f"e{like.key}", run=run, cost=cost, scores={})


def test_measured_costs_are_drawn_where_they_are_there(records):
    of = {record.run["method"]: record for record in records if record.run["dataset"] == "toy_a"}
    costs = [measured(of["coop"], 0.1), measured(of["lora"], 0.2)]
    charts = content.report([*records, *costs])["chapters"][0]["costs"]
    fit = next(chart for chart in charts if chart["kind"] == "fit")
    assert [(dot["label"], dot["cost"], dot["best"]) for dot in fit["dots"]] == [
        ("lora", pytest.approx(5.0), True), ("coop", pytest.approx(3.0), True),
    ]  # fmt: skip
    assert fit["where"] == "a processor, 1 thread, toy_a"
    assert fit["missing"] == ["lora-wide", "zero_shot"]


def test_costs_of_two_devices_are_not_drawn_together(records):
    first = measured(records[0], 0.1)
    other = {**first.run, "measured_on": ["another", 1]}
    costs = [first, replace(first, key="e", run=other)]
    charts = content.report([*records, *costs])["chapters"][0]["costs"]
    assert charts[1]["why"].startswith("the measurements are of different kinds: ")


def test_a_table_of_several_shots_becomes_a_curve(tmp_path):
    for shots in (1, 4):
        records = world(tmp_path, {"coop": 0.5}, task="few_shot", evaluations=("accuracy",),
                        shots=shots)  # fmt: skip
    (curve,) = content.report(records)["curves"]
    assert curve["shots"] == [1, 4]
    assert len(curve["lines"][0]["points"].split()) == 2


def test_a_curve_does_not_join_averages_of_other_datasets_or_seeds(tmp_path):
    world(tmp_path, {"dra": 0.9}, datasets=("toy_a",), shots=1)
    records = world(tmp_path, {"dra": 0.5}, shots=4)
    (curve,) = content.report(records)["curves"]
    assert "not of the same datasets or seeds: 1 shot: 1 dataset" in curve["why"]


def test_a_run_that_failed_is_listed_and_its_row_has_no_average(records):
    broken = replace(records[0], status="failed", scores={}, error="Traceback\nValueError: no")
    found = content.report([broken, *records[1:]])
    label = broken.run["method"]
    ((_, why),) = found["trouble"]["failed"]["lines"]
    (chapter,) = found["chapters"]
    place = chapter["labels"].index(label)
    assert why == "ValueError: no"
    assert chapter["scores"]["average"][place]["value"] is None
    assert chapter["rows"][place]["state"] == ["incomplete, 5 of 6", "1 failed"]


def test_images_that_cannot_be_read_are_listed_once_a_list(records):
    skipped = {"train": ["a/1.png"], "new": ["b/2.png", "<b>.png"]}
    bad = [replace(r, run={**r.run, "skipped": skipped}) for r in records]
    lines = content.report(bad)["trouble"]["skipped"]["lines"]
    lists = {(r.run["dataset"], r.run["seed"]) for r in records}
    assert len(lines) == 2 * len(lists)
    assert (f"{records[0].run['dataset']}, seed {records[0].run['seed']}, new", 2,
            "b/2.png, <b>.png") in lines  # fmt: skip
    shown = page.page(content.report(bad))
    assert "&lt;b&gt;.png" in shown
    assert "<b>.png" not in shown


def test_a_long_text_is_cut(records):
    broken = replace(records[0], status="failed", scores={}, error="x" * 100_000)
    ((_, why),) = content.report([broken, *records[1:]])["trouble"]["failed"]["lines"]
    assert why == "x" * provenance.LONGEST + "…"


def test_where_there_are_no_predictions_each_section_says_why(records):
    (chapter,) = content.report([replace(r, file=None) for r in records])["chapters"]
    reasons = {chapter["places"]["why"], chapter["pairs"]["why"]}
    reasons |= {section["why"] for section in chapter["sections"]}
    assert reasons == {"the record was read from no file"}


def test_of_one_seed_the_page_says_what_is_not_known(tmp_path):
    text = page.page(content.report(world(tmp_path, seeds=(1,), losses=())))
    assert "One seed says nothing of how much seeds differ." in text
    assert "No losses: no run of this table kept the losses of two epochs or more." in text
    assert "No curve: no task was run with several numbers of shots." in text


def test_records_without_accuracies_make_no_report():
    with pytest.raises(HarnessError, match="nothing to report"):
        content.report([])


def test_the_worst_classes_come_first(chapter):
    (section, _) = chapter["sections"]
    accuracies = [each["accuracy"] for each in section["worst"]]
    assert section["label"] == "lora"
    assert accuracies == sorted(accuracies)


def test_at_most_sixty_pictures_are_shown(tmp_path):
    names = tuple(f"toy_{k}" for k in range(20))
    records = world(tmp_path, {"coop": 0.3}, datasets=names, seeds=(1,))
    asked = list[tuple[str, str]]()
    found = content.report(records, lambda *image: asked.append(image) or "data:image/webp;base64,")
    assert found["pictures"] == len(asked) == datasets.MOST_PICTURES


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page of records whose every text is markup."""
    folder = tmp_path_factory.mktemp("hostile")
    records = world(folder, {HOSTILE: 0.5, QUOTED: 0.6}, datasets=(HOSTILE,), task=HOSTILE,
                    backbone=HOSTILE, evaluations=(HOSTILE,))  # fmt: skip
    for path in (folder / "splits").iterdir():
        split = json.loads(path.read_text())
        split["names"] = [f"{HOSTILE}{k}" for k in range(len(split["names"]))]
        split["paths"] = [f"{HOSTILE}{k}" for k in range(len(split["paths"]))]
        path.write_text(json.dumps(split))
    about = {"command": HOSTILE, "commit": HOSTILE, "device": QUOTED, "versions": {HOSTILE: "1"}}
    records = [replace(r, checks=[HOSTILE], provenance={**r.provenance, **about}) for r in records]
    broken = replace(records[0], key="k", status="failed", error=HOSTILE,
                     run={**records[0].run, "seed": 9})  # fmt: skip
    return page.page(content.report([*records, broken]))


def test_texts_from_records_never_become_elements(hostile):
    shown = Page(hostile)
    scripts = [attributes for tag, attributes in shown.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not [name for _, attributes in shown.elements for name in attributes if name[:2] == "on"]
    assert HOSTILE in shown.texts
    assert f"{HOSTILE}1" in shown.texts


def test_data_for_the_script_cannot_end_it(hostile):
    text = re.search(r'id="data">(.*?)</script>', hostile)[1]
    assert not {"<", ">", "&"} & {*text}
    assert json.loads(text)[0]["labels"] == [QUOTED, HOSTILE]


def test_characters_that_turn_or_hide_text_are_shown_as_escapes(tmp_path):
    text = page.page(content.report(world(tmp_path, {"co\u202eop\x1b[31m": 0.5}, seeds=(1,))))
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert r"co\u202eop\x1b[31m" in Page(text).texts


def test_nothing_is_fetched(hostile):
    addresses = [value for _, attributes in Page(hostile).elements
                 for name, value in attributes.items() if name in ("src", "href")]  # fmt: skip
    assert all(value.startswith(("#", "data:image/webp;base64,")) for value in addresses)
    assert "default-src 'none'" in hostile


def test_every_link_leads_to_a_section(found):
    shown = Page(page.page(found))
    ids = {attributes.get("id") for _, attributes in shown.elements}
    links = {attributes["href"][1:] for tag, attributes in shown.elements if tag == "a"}
    assert links <= ids


def test_the_same_records_in_another_order_make_the_same_page(records, found):
    assert page.page(content.report(records[::-1])) == page.page(found)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Records of five methods on eight datasets."""
    accuracies = {f"method_{k}": 0.3 + 0.1 * k for k in range(5)}
    names = tuple(f"dataset_{k}" for k in range(8))
    losses = tuple(1 / (k + 1) for k in range(50))
    return world(tmp_path_factory.mktemp("kinds"), accuracies, datasets=names, seeds=(1,),
                 losses=losses, images=16)  # fmt: skip


@pytest.mark.parametrize(("methods", "most"), [(30, 300_000), (80, 1_000_000)])
def test_the_page_stays_small(kinds, methods, most):
    records = [
        replace(r, key=f"{r.key}{copy}", run={**r.run, "method": f"{r.run['method']}_{copy}"})
        for r in kinds
        for copy in range(methods // 5)
    ]
    picture = f"data:image/webp;base64,{'A' * 2000}"
    found = content.report(records, lambda dataset, path: picture)
    assert len(found["chapters"][0]["labels"]) == methods
    assert len(page.page(found).encode()) < most


def test_each_method_that_comes_with_the_harness_has_its_card_on_the_page(found):
    assert [name for name, _ in found["methods"]] == ["coop", "lora", "zero_shot"]
    text = " ".join(Page(page.page(found)).texts)
    assert "compared with the authors' code at version 0.1.0" in text
    assert "184,320 numbers on ViT-B/16" in text


def test_a_title_says_what_limits_the_fits_and_that_it_is_no_test(tmp_path):
    found = world(tmp_path, settings={"max_steps": 300, "split": "val"})
    (chapter,) = content.report(found)["chapters"]
    assert chapter["title"].endswith("scored on validation images, at most 300 steps")


def test_a_row_that_lacks_runs_is_not_the_best_of_a_dataset(records):
    fewer = [r for r in records if r.run["seed"] == 1 or r.run["method"] != "lora"]
    sections = content.report(fewer)["chapters"][0]["sections"]
    assert {each["label"] for each in sections} == {"lora-wide"}


def test_rows_of_several_engines_are_said(records):
    some = [replace(r, run={**r.run, "engine": 2}) if r.run["method"] == "lora" else r
            for r in records]  # fmt: skip
    (said,) = content.report(some)["trouble"]["not_alike"]["lines"]
    assert "rows differ in engine" in said
