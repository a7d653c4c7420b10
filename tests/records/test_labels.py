"""A row is what the user set, on every dataset and seed, and holds what the settings would give."""

import itertools

import pytest

from harness import registry
from harness.config import read_set, read_sweeps
from harness.records.labels import method_label, rows, setting_order
from harness.records.record import Record
from harness.records.summary import summarise
from harness.records.tables import WIDEST, plain_table
from harness.runs.plan import Request, plan

RECIPES = {"emoji_food": 50, "emoji_travel": 100, "emoji_animals": 20}
METHOD = f"""
from dataclasses import dataclass
from harness.method import Method, published

@dataclass(frozen=True, kw_only=True)
class Varied(Method):
    \"\"\"Nothing is inserted; the recipe differs from dataset to dataset.\"\"\"

    epochs: int | None = published(50, "here")
    rank: int = published(32, "here")

    @classmethod
    def recipe(cls, task, dataset, shots):
        return {{"epochs": {RECIPES!r}[dataset]}}
"""


@pytest.fixture(scope="module")
def varied(tmp_path_factory) -> registry.Registry:
    path = tmp_path_factory.mktemp("plugin") / "varied.py"
    path.write_text(METHOD)
    return registry.load([str(path)])


@pytest.fixture
def made(varied):
    """made(sets=[...], sweeps=[...], seeds=[...], datasets=[...]): records of such requests, with
    the epochs as their accuracy in thousandths."""

    def make(sets=(), sweeps=(), seeds=(1, 2), datasets=tuple(RECIPES), time="2026-01-01"):
        request = Request(
            methods="varied", tasks="few_shot", datasets=",".join(datasets), backbone="emoji-mini",
            shots=[1], seeds=seeds, bindings=[read_set(each) for each in sets],
            sweeps=read_sweeps(sweeps),
        )  # fmt: skip
        return [
            Record(
                key=run.key, status="done", run=run.identity, provenance={"time": time},
                scores={"test": {"accuracy": run.method.value.epochs / 1000}},
            )
            for run in plan(request, varied)
        ]  # fmt: skip

    return make


def averages(records):
    table = summarise(records)
    table = table[table["dataset"] == "average"].set_index("label")
    runs = zip(table["runs"], table["expected"], strict=True)
    scores = zip(table.index, table["test"], strict=True)
    return dict(zip(table.index, runs, strict=True)), dict(scores)


def test_a_sweep_over_datasets_of_other_recipes_is_a_complete_row_for_each_value(made):
    runs, scores = averages(made(sweeps=["varied.epochs=50,100"]))
    assert runs == {"varied[epochs=50]": (6, 6), "varied[epochs=100]": (6, 6)}
    assert scores == {"varied[epochs=50]": 0.05, "varied[epochs=100]": pytest.approx(0.1)}


def test_the_row_without_settings_holds_what_the_recipes_give_and_nothing_else(made):
    plain, swept = made(), made(sweeps=["varied.epochs=50,100"])
    for first, second in ((plain, swept), (swept, plain)):
        runs, scores = averages([*first, *second])
        assert set(runs.values()) == {(6, 6)}
        assert list(runs) == ["varied", "varied[epochs=50]", "varied[epochs=100]"]
        assert scores["varied"] == pytest.approx((0.05 + 0.1 + 0.02) / 3)
        assert scores["varied[epochs=50]"] == pytest.approx(0.05)


def test_datasets_that_were_swept_one_after_another_are_one_row(made):
    parts = [made(sets=["varied.epochs=50"], datasets=[name]) for name in RECIPES]
    runs, scores = averages(itertools.chain(*parts))
    assert runs == {"varied[epochs=50]": (6, 6)}
    assert scores == {"varied[epochs=50]": pytest.approx(0.05)}


def test_a_default_that_is_spelled_out_is_the_same_runs_and_the_same_row(made):
    spelled, plain = made(sets=["varied.rank=32"], seeds=[1]), made(seeds=[1, 2])
    assert {r.key for r in spelled} < {r.key for r in plain}
    assert method_label(spelled[0].run) == "varied[rank=32]"
    assert averages(spelled)[0] == {"varied[rank=32]": (3, 3)}
    assert averages([*spelled, *plain[1::2]])[0] == {"varied": (6, 6)}


def test_settings_in_another_order_are_one_row(made):
    one = made(sets=["varied.rank=8", "varied.epochs=7"], seeds=[1])
    two = made(sets=["varied.epochs=7", "varied.rank=8"], seeds=[2])
    assert list(averages([*one, *two])[0].values()) == [(6, 6)]


def test_rows_are_in_natural_order_of_the_values(made):
    records = made(sweeps=["varied.epochs=100,9,20"], seeds=[1], datasets=["emoji_food"])
    found = [settings["epochs"] for settings, _ in rows(records)]
    assert found == [9, 20, 100]
    shuffled = [{"x": "a10"}, {"x": 10}, {"x": "a9"}, {}, {"x": 2}, {"x": None}]
    assert [each.get("x", "") for each in sorted(shuffled, key=setting_order)] == [
        "", None, 2, 10, "a9", "a10",
    ]  # fmt: skip


def test_records_without_the_names_of_given_settings_show_those_that_differ(made):
    (record,) = made(sets=["varied.rank=8"], seeds=[1], datasets=["emoji_food"])
    del record.run["given"]
    assert method_label(record.run) == "varied[rank=8]"


def test_names_stay_whole_however_narrow_the_page_is():
    name = "ViT-B-32:" + "x" * 40
    shown = plain_table([{"backbone": name, "what": "many words " * 20, "source": "more " * 30}])
    assert name in shown
    assert max(map(len, shown.splitlines())) <= WIDEST
    wide = plain_table([{"backbone": 3 * name, "what": "many words " * 20}])
    assert max(map(len, wide.splitlines())) <= len(3 * name) + 2 + 12
    for row in ({"what": "many words " * 20}, {"what": "many words " * 20, "source": "more " * 30}):
        assert max(map(len, plain_table([row]).splitlines())) <= WIDEST
