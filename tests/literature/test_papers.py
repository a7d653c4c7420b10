"""A paper's tables: our numbers are the summary's, printed ones stand only where they belong."""

import dataclasses
import itertools

import pytest

from harness import config
from harness.errors import HarnessError
from harness.literature import paper_tables, paper_text, papers
from harness.literature.paper_tables import Column, filled
from harness.literature.papers import COMP_LORA, DRA, PAPERS, number, scaled
from harness.records.store import Record, digest
from harness.records.summary import summarise

HEADER = "method,paper,table,task,backbone,shots,dataset,evaluation,value,source_url,note\n"
EXHIBITS = [(paper, each) for paper in PAPERS.values() for each in paper.exhibits]


def printed(*rows):
    """Lines of a file of published numbers: (table, method, dataset, evaluation, value, note)."""
    lines = [f'{m},P,{t},T,B,16,{d},{e},{v},U,"{note}"' for t, m, d, e, v, note in rows]
    return HEADER + "\n".join(lines)


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """numbers(rows): what the paper is said to print."""
    monkeypatch.setattr(papers, "folder", lambda: tmp_path)

    def write(*rows):
        (tmp_path / "dra.csv").write_text(printed(*rows), encoding="utf-8")

    return write


def record(task, method, dataset, seed, scores, **more):
    run = {
        "method": method, "overrides": {}, "given": more.get("given", []), "task": task,
        "task_fields": more.get("fields", {}), "dataset": dataset, "shots": more.get("shots", 16),
        "backbone": more.get("backbone", "ViT-B-16-quickgelu:openai"), "seed": seed, "code": "c",
        "settings": {}, "fingerprints": {"weights": "w", "evaluated": dict.fromkeys(scores, "i")},
        "hyperparameters": more.get("hyperparameters", {}),
    }  # fmt: skip
    return Record(
        key=digest(run), status="done", run=run, cost=more.get("cost", {}),
        scores={name: {"accuracy": value} for name, value in scores.items()},
    )  # fmt: skip


def value_of(*key):
    """An accuracy of its own for every run."""
    return int(digest(key)[:6], 16) / 16**6


def base2new(part, datasets, seeds=(1, 2), **more):
    return [
        record("base2new", line.method, d, s, {n: value_of(line.method, d, s, n)
                                               for n in ("base", "new")}, **more)
        for line, d, s in itertools.product(part.lines, datasets, seeds)
    ]  # fmt: skip


def table(name, records, paper=DRA):
    """The first table of an exhibit, of one part's records."""
    exhibit = paper.exhibit(name)
    return filled(paper, exhibit, [(exhibit.parts[0], records)])[0]


def cells(made, method):
    return next(each for line, each in made.rows if line.method == method)


@pytest.mark.parametrize(("paper", "exhibit"), EXHIBITS, ids=lambda each: each.name)
def test_everything_that_an_exhibit_runs_is_registered(paper, exhibit, plugins):
    for part in exhibit.parts:
        plugins.find("tasks", part.task)
        plugins.find("datasets", ",".join(part.datasets) or "emoji_food")
        for plugin in plugins.find("methods", part.methods):
            for each in config.read_sweeps(part.sweeps):
                for binding in each:
                    config.typed(plugin.cls, plugin.name, binding)


@pytest.mark.parametrize(("paper", "exhibit"), EXHIBITS, ids=lambda each: each.name)
def test_a_sweep_is_read_as_the_values_of_its_rows(paper, exhibit):
    for part in exhibit.parts:
        read = [binding.value for each in config.read_sweeps(part.sweeps) for binding in each]
        assert read == [line.value for line in part.lines if part.sweep]


def test_unknown_names_are_refused_with_what_there_is():
    with pytest.raises(HarnessError, match="Did you mean 'table1'"):
        DRA.exhibit("tabel1")
    with pytest.raises(HarnessError, match="Did you mean 'dra'"):
        papers.named("drra")
    assert papers.named("comp_lora") is COMP_LORA


def test_printed_numbers_are_read_exactly():
    assert number("83.06") == 0.8306
    assert scaled("0.717", 6) == 717000
    assert number("") is None


def test_our_numbers_are_those_of_the_summary(numbers):
    numbers()
    records = base2new(DRA.exhibit("table1").parts[0], papers.ELEVEN)
    made = table("table1", records)
    frame = summarise(records)
    for line, each in made.rows:
        for column, cell in each.items():
            at = frame[(frame["label"] == line.method) & (frame["dataset"] == column.dataset)]
            assert cell.value == at[column.evaluation].iloc[0]
            assert cell.n == 2


def test_printed_numbers_stand_beside_the_paper_s_datasets(numbers):
    numbers((1, "mma", "average", "hm", "79.87", ""), (1, "mma", "dtd", "new", "65.63", ""))
    made = table("table1", base2new(DRA.exhibit("table1").parts[0], papers.ELEVEN))
    assert cells(made, "mma")[Column("average", "hm", "16")].printed == 0.7987
    assert cells(made, "mma")[Column("dtd", "new", "16")].printed == 0.6563
    assert cells(made, "dra")[Column("dtd", "new", "16")].printed is None
    assert "79.87" in paper_text.text(made)


def test_what_is_known_of_one_printed_number_is_said_and_what_describes_a_row_is_not(numbers):
    numbers((4, "dra-v", "average", "base", "83.24", "image branch"),
            (4, "dra-v", "average", "hm", "79.91", "image branch; of the two: 79.93"))  # fmt: skip
    text = paper_text.text(table("table4", base2new(DRA.exhibit("table4").parts[0], papers.ELEVEN)))
    assert "Printed for DRA-V, HM: of the two: 79.93." in text
    assert "image branch" not in text


def test_a_printed_average_is_left_out_beside_that_of_other_datasets(numbers):
    numbers((1, "mma", "average", "hm", "79.87", ""), (1, "mma", "dtd", "new", "65.63", ""))
    made = table("table1", base2new(DRA.exhibit("table1").parts[0], ["dtd", "eurosat"]))
    assert cells(made, "mma")[Column("average", "hm", "16")].printed is None
    assert cells(made, "mma")[Column("dtd", "new", "16")].printed == 0.6563
    assert "are left out" in paper_text.text(made)


def test_printed_numbers_are_left_out_beside_another_backbone(numbers):
    numbers((1, "mma", "dtd", "new", "65.63", ""))
    records = base2new(DRA.exhibit("table1").parts[0], papers.ELEVEN, backbone="ViT-L-14:openai")
    made = table("table1", records)
    assert cells(made, "mma")[Column("dtd", "new", "16")].printed is None
    assert "none can be" in paper_text.text(made)


def test_on_other_datasets_a_sentence_says_that_nothing_can_be_compared(numbers):
    numbers((4, "dra", "average", "hm", "80.32", ""))
    made = table("table4", base2new(DRA.exhibit("table4").parts[0], ["emoji_food"]))
    text = paper_text.text(made)
    assert "none can be" in text
    assert "80.32" not in text


@pytest.mark.parametrize(("source", "shown"), [("imagenet", 0.4594), ("caltech101", None)])
def test_a_printed_transfer_stands_beside_one_from_the_same_source(numbers, source, shown):
    numbers((2, "dra", "dtd", "accuracy", "45.94", ""))
    part = DRA.exhibit("table2").parts[0]
    records = [record("cross_dataset", line.method, d, 1, {"test": 0.5}, fields={"source": source})
               for line in part.lines for d in part.datasets]  # fmt: skip
    made = table("table2", records)
    assert cells(made, "dra")[Column("dtd", "test", "16")].printed == shown


def test_the_average_of_a_transfer_comes_last_and_leaves_the_source_out(numbers):
    numbers()
    part = DRA.exhibit("table3").parts[0]
    records = [
        record(part.task, line.method, d, 1, {"test": 0.9 if d == "imagenet" else 0.5},
               fields={"source": "imagenet"})
        for line in part.lines for d in part.datasets
    ]  # fmt: skip
    made = table("table3", records)
    assert [column.dataset for column in made.columns] == [*papers.DOMAINS, "average"]
    assert cells(made, "dra")[Column("average", "test", "16")].value == 0.5


def test_rows_of_a_sweep_hold_the_runs_of_their_value(numbers):
    numbers((5, "dra", "average", "new", "77.25", "K=2 e=[1.0, 0.25]"),
            (5, "dra", "average", "new", "77.41", "K=2 e=[1.0, 0.5]"))  # fmt: skip
    part = DRA.exhibit("table5").parts[0]
    records = [
        record("base2new", "dra", d, 1, {"base": 0.5, "new": line.value[-1] / 2}, given=["ratios"],
               hyperparameters={"ratios": list(line.value)})
        for line in part.lines for d in papers.ELEVEN
    ]  # fmt: skip
    made = table("table5", records)
    for line, each in made.rows:
        assert each[Column("average", "new", "16")].value == pytest.approx(line.value[-1] / 2)
    found = [each[Column("average", "new", "16")].printed for _, each in made.rows]
    assert found == [0.7741, 0.7725, None, None, None, None, None]


def test_an_incomplete_row_shows_its_finished_runs_in_brackets(numbers):
    numbers()
    records = base2new(DRA.exhibit("table4").parts[0], ["toy"])
    failed = [dataclasses.replace(each, status="failed", scores={}, error="Error: why")
              if (each.run["method"], each.run["seed"]) == ("dra-t", 2) else each
              for each in records]  # fmt: skip
    text = paper_text.text(table("table4", failed))
    line = next(line for line in text.splitlines() if "DRA-T " in line)
    assert f"({100 * value_of('dra-t', 'toy', 1, 'base'):.2f})" in line
    assert "incomplete row" in text


def test_if_every_run_failed_the_table_has_dashes(numbers):
    numbers()
    failed = [dataclasses.replace(each, status="failed", scores={}, error="Error: why")
              for each in base2new(DRA.exhibit("table4").parts[0], ["toy"])]  # fmt: skip
    made = table("table4", failed)
    assert {cell.value for _, each in made.rows for cell in each.values()} == {None}
    assert "DRA-V" in paper_text.text(made)


def test_few_shot_accuracy_has_a_column_for_each_number_of_shots():
    part = COMP_LORA.exhibit("curve").parts[0]
    records = [record("few_shot", line.method, "toy", 1, {"test": shots / 100}, shots=shots)
               for line in part.lines for shots in (1, 16, 2)]  # fmt: skip
    text = paper_text.text(table("curve", records, COMP_LORA))
    header = [cell.strip() for cell in text.splitlines()[0].strip("|").split("|")]
    assert header == ["method", "1 shot", "2 shots", "16 shots"]
    assert "No table of this paper is known" in text


def timed(**parts):
    return {name: {"median": value} for name, value in parts.items()}


@pytest.mark.parametrize(("backbone", "shown"),
                         [("ViT-B-16-quickgelu:openai", 717000), ("emoji-mini", None)])  # fmt: skip
def test_costs_are_those_of_the_measurement_and_scores_those_of_the_runs(numbers, backbone, shown):
    numbers((6, "dra", "", "params_M", "0.717", ""))
    exhibit = DRA.exhibit("table6")
    cost = {
        "trainable_parameters": 700, "train": {"batch": 4, **timed(data=0.5, step=1.5)},
        "inference": {"batch": 8, "text_per_image": False,
                      **timed(data=1.0, image=2.0, head=1.0, texts=9.0)},
    }  # fmt: skip
    measured = [record("efficiency", line.method, "toy", 1, {}, cost=cost, backbone=backbone)
                for line in exhibit.parts[0].lines]  # fmt: skip
    scored = base2new(exhibit.parts[1], ["toy"], backbone=backbone, cost={"epochs": 5})
    (made,) = filled(DRA, exhibit, list(zip(exhibit.parts, [measured, scored], strict=True)))
    ours = cells(made, "dra")
    values = [ours[Column("", name)].value for name in paper_tables.POWERS]
    assert values == [700, 5, 4 / 2, 8 / 4]
    assert ours[Column("", "params_M")].printed == shown
    assert [column.evaluation for column in made.columns][-1] == "hm"


@pytest.mark.skipif(not (papers.folder() / "dra.csv").is_file(), reason="no published numbers")
@pytest.mark.parametrize("name", [f"table{n}" for n in range(1, 7)])
def test_every_printed_number_has_its_place_in_a_table(name):
    exhibit = DRA.exhibit(name)
    found = [row for line in exhibit.parts[-1].lines
             for row in paper_tables._printed_of(line, DRA.printed(exhibit)).values()]  # fmt: skip
    assert len(found) == len(DRA.printed(exhibit)) > 0
    assert {row["dataset"] for row in found} <= {*exhibit.parts[-1].datasets, "average", ""}
