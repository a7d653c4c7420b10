"""Whatever records are there, in whatever order: nothing raises, nothing incomplete is averaged."""

import csv
import dataclasses
import io
import json
import statistics

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.leaderboards import costs
from harness.leaderboards.leaderboard import Leaderboard, render
from harness.records.record import Record
from harness.records.store import CHANGE, Store, one_record_a_key, read_all
from harness.records.summary import summarise
from tests.leaderboards.test_leaderboard import grid, record, rows
from tests.records.test_record import committed


def written(store: Store, made: Record) -> Record:
    """A record whose scores have counts, written to a folder."""
    scores = {name: {"accuracy": round(100 * s["accuracy"]) / 100, "total": 100,
                     "correct": round(100 * s["accuracy"])}
              for name, s in made.scores.items()}  # fmt: skip
    made = dataclasses.replace(made, scores=scores)
    store.write(made, {})
    return made


def test_of_copies_of_a_record_one_counts(tmp_path):
    a, b = Store(tmp_path / "a").open(), Store(tmp_path / "b").open()
    made = [written(store, each) for store in (a, b) for each in grid()]
    (path,) = a.folder.rglob(f"*{made[0].key}.json")
    (path.parent / f"copy of {path.name}").write_text(path.read_text())
    assert len(a.records()) == len(read_all([a.folder, b.folder, tmp_path])) == 4
    assert rows(read_all([tmp_path, a.folder]))["dra", "average"]["runs"] == 4


def test_of_records_of_one_key_a_finished_one_counts_before_a_newer_failed_one():
    done = record(base=0.5, time="2026-01-01")
    failed = dataclasses.replace(done, status="failed", scores={}, provenance={"time": "2026-02"})
    newer = dataclasses.replace(done, provenance={"time": "2026-03-01"}, checks=["newer"])
    for records in ([done, failed, newer], [failed, newer, done], [newer, done, failed]):
        assert one_record_a_key(records) == [newer]
    assert one_record_a_key([failed, done]) == [done]


def shots(made: Record, number: int) -> Record:
    return dataclasses.replace(made, key=f"{made.key}-{number}", run={**made.run, "shots": number})


def test_a_task_whose_runs_all_failed_at_several_shots_is_shown():
    failed = [shots(record(seed=s, base=None), n) for s in (1, 2) for n in (1, 16)]
    text = render(failed)
    assert text.count("0/2 incomplete, 2 failed") == 2
    for form in ("csv", "latex", "html"):
        assert "dra" in render(failed, form)
    assert render([*failed, *(shots(each, 4) for each in grid())])


def test_an_old_failure_elsewhere_sets_no_denominator():
    elsewhere = record(dataset="toy_c", seed=7, base=None, time="2025-01-01")
    row = rows([*grid(), elsewhere])["dra", "average"]
    assert (row["runs"], row["expected"], row["failed"]) == (4, 4, 1)
    assert row["base"] == rows(grid())["dra", "average"]["base"]


def test_the_mean_of_hms_of_a_transfer_leaves_out_its_source():
    records = grid()
    for each in records:
        each.run["task_fields"] = {"source": "toy_a"}
    table = rows(records)
    assert table["dra", "average"]["mean_hm"] == table["dra", "toy_b"]["hm"]
    assert table["dra", "average"]["hm"] == table["dra", "toy_b"]["hm"]


def test_transfers_from_two_sources_are_two_tables():
    records = [*grid(), *grid(method="mma")]
    for each in records:
        each.run["task_fields"] = {"source": f"of_{each.run['method']}"}
    assert render(records).count("average of 2 datasets") == 2


def elsewhere(changes: dict[str, float], **more) -> Record:
    """A run that was also scored on other datasets."""
    made = record(**more)
    made.run["fingerprints"]["evaluated"] |= dict.fromkeys(changes, "o")
    made.run["task_fields"] = {"others": [*changes]}
    others = {n: {"accuracy": 0.5 + by, "zero_shot": 0.5} for n, by in changes.items()}
    return dataclasses.replace(made, scores={**made.scores, **others})


def test_the_change_elsewhere_is_over_the_datasets_that_all_rows_were_scored_on():
    few = elsewhere({"x": -0.1}, method="coop")
    more = elsewhere({"x": -0.1, "y": 0.4}, method="dra")
    found = rows([few, more])
    for method in ("coop", "dra"):
        assert found[method, "toy_a"][CHANGE] == pytest.approx(-0.1)
    assert rows([more])["dra", "toy_a"][CHANGE] == pytest.approx(0.15)
    none = rows([few, elsewhere({"y": 0.4}, method="dra")])
    assert CHANGE not in none["dra", "toy_a"].dropna()


def test_a_failed_run_does_not_say_which_test_images_count():
    late = record(method="mma", base=None, images="others", time="2027-01-01")
    assert rows([*grid(), late])["dra", "average"]["runs"] == 4


def test_rows_that_another_engine_made_are_named():
    records = [*grid(), *grid(method="mma")]
    assert "Not made alike" not in render(records)
    for each in records[4:]:
        each.run["engine"] = 2
    assert "rows differ in engine (1: dra; 2: mma)." in " ".join(render(records).split())


def test_memory_that_was_not_measured_is_not_nothing():
    of = costs.COSTS["memory"][1]
    assert of({"train": {"bytes": None}}) is None
    assert (of({}), of({"train": {"bytes": 5}})) == (0, 5)


def test_parameters_of_the_average_are_a_range():
    records = [dataclasses.replace(each, cost={"trainable_parameters": number})
               for each, number in zip(grid(), (1000, 1000, 3000, 3000), strict=True)]  # fmt: skip
    assert "1,000 to 3,000" in render(records)
    assert rows(records)["dra", "average"]["parameters"] == 2000
    assert rows(records)["dra", "toy_a"]["parameters"] == 1000


def test_an_incomplete_row_shows_what_is_finished_in_brackets():
    records = [*grid(), *grid(method="mma")[:3]]
    row = rows(records)["mma", "toy_b"]
    assert row["missing"] == [2]
    assert row["finished_base"] == 0.6
    assert pd.isna(row["base"])
    text = render(records, by_dataset=True)
    assert "(60.00)" in text
    assert "(68.57)" in text
    assert "--missing" in text


def test_a_run_that_lacks_a_score_leaves_the_cell_empty():
    records = grid()
    del records[0].scores["new"]
    table = rows(records)
    assert pd.isna(table["dra", "average"]["new"])
    assert pd.isna(table["dra", "average"]["hm"])
    assert table["dra", "average"]["base"] == pytest.approx(0.7)


def test_a_failed_run_has_no_scores_whatever_its_record_holds():
    failed = dataclasses.replace(grid()[0], status="failed")
    assert rows([failed, *grid()[1:]])["dra", "average"]["runs"] == 3


def test_csv_has_a_column_for_each_given_setting_and_no_average_of_one_dataset():
    plain = [record(seed=s) for s in (1, 2)]
    swept = [record(seed=s, overrides={"rank": r}, hyperparameters={"rank": r})
             for s in (1, 2) for r in (16, 8)]  # fmt: skip
    table = list(csv.DictReader(io.StringIO(render([*swept, *plain], "csv"))))
    assert [row["rank"] for row in table] == ["32", "8", "16"]
    assert {row["dataset"] for row in table} == {"toy_a"}


def test_csv_has_no_deviation_that_is_only_rounding():
    records = [record(seed=s, base=b, new=0.1 + 0.2) for s, b in ((1, 0.3), (2, 0.1 + 0.2))]
    (row,) = csv.DictReader(io.StringIO(render(records, "csv")))
    assert float(row["base_std"]) == float(row["new_std"]) == 0
    assert row["new"] == "0.3"


def test_csv_cells_from_data_are_no_formulas_and_numbers_stay_numbers():
    names = ["=1+1", "+x", "-x", "@x", " =x", "-3.2"]
    text = render([record(dataset=name) for name in names], "csv")
    cells = {row["dataset"] for row in csv.DictReader(io.StringIO(text))}
    assert cells == {"'=1+1", "'+x", "'-x", "'@x", "' =x", "-3.2", "average"}


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "html"])
def test_control_characters_of_data_are_shown_as_escapes(form):
    name = "a\x1b[31m\r\nb\u202ec\x9b\udc80\u2028"
    text = render([record(dataset=name), record(dataset="toy")], form, by_dataset=True)
    assert not {*"\x1b\r\u202e\x9b\udc80\u2028"} & {*text}
    assert "\\x1b" in text or "textbackslash" in text


def test_latex_shows_the_best_bold_and_an_incomplete_row_never():
    best = [record("mma", seed=s, base=0.9, new=0.5) for s in (1, 2)]
    half = [record("coop", seed=1, base=0.95, new=0.9)]
    text = render([*best, *half, *(record(seed=s) for s in (1, 2))], "latex")
    assert r"\textbf{90.00 ± 0.00}" in text
    assert r"\textbf{60.00 ± 0.00}" in text
    assert "(95.00)" in text


def test_filters_choose_records_and_name_what_is_there():
    records = [*grid(), *grid(method="mma"), *grid(overrides={"rank": 8})]
    text = Leaderboard(records, methods="dra*", datasets="toy_b").text()
    assert "mma" not in text
    assert "dra[rank=8]" in text
    assert "55.00" in text
    alone = Leaderboard(records, methods="dra[rank=8]").frame()
    assert set(alone["label"]) == {"dra[rank=8]"}
    with pytest.raises(HarnessError, match="Did you mean 'toy_a'"):
        Leaderboard(records, datasets="toya").text()


def test_rows_are_sorted_by_a_column_and_unknown_ones_are_named():
    low = [dataclasses.replace(each, cost={"trainable_parameters": 1})
           for each in grid(method="mma")]  # fmt: skip
    for each in low:
        each.scores["base"]["accuracy"] /= 2
    records = [*low, *grid()]
    for column, first in (("HM", "dra"), ("base", "dra"), ("params", "mma"), ("method", "dra")):
        table = Leaderboard(records, sort=column).text().split("\n\n")[1]
        assert table.splitlines()[2].startswith(f"| {first}"), column
    with pytest.raises(HarnessError, match="unknown column 'hmm'"):
        Leaderboard(records, sort="hmm").text()


def test_a_failed_measurement_is_shown_as_failed():
    done = Record(**committed("efficiency"))
    run = {**done.run, "method": "coop"}
    made = {**done.provenance, "time": "2027"}
    failed = Record(key="f", status="failed", run=run, error="boom", provenance=made)
    for records in ([done, failed], [failed]):
        for text in costs.tables(records, "markdown"):
            (line,) = [line for line in text.splitlines() if line.startswith("| coop")]
            assert "failed" in line
    assert "failed" in render([failed])


CELLS = st.tuples(
    st.sampled_from(["dra", "mma"]), st.sampled_from(["toy_a", "toy_b"]), st.integers(1, 2),
    st.sampled_from(["done", "failed", "not applicable"]), st.sampled_from(["c", "d"]),
    st.sampled_from([{}, {"rank": 8}, {"rank": 32}]), st.sampled_from(["i", "j"]),
    st.sampled_from(["2026-01-01", "2026-02-01"]), st.integers(0, 10), st.sampled_from([1, 16]),
)  # fmt: skip


def drawn(cell: tuple) -> Record:
    method, dataset, seed, status, code, given, images, time, tenths, number = cell
    made = record(
        method, dataset, seed, tenths / 10, 1 - tenths / 10, time, code=code, images=images,
        overrides={n: v for n, v in given.items() if v != 32}, hyperparameters={"rank": 32} | given,
    )  # fmt: skip
    made.run["given"] = list(given)
    scores = made.scores if status == "done" else {}
    return shots(dataclasses.replace(made, status=status, scores=scores), number)


@given(st.lists(CELLS, min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_records_in_any_order_give_the_same_tables_and_no_incomplete_average(cells, order):
    records = [drawn(cell) for cell in cells]
    shuffled = [*records, *order.choices(records, k=3)]
    order.shuffle(shuffled)

    def table(some):
        lines = summarise(some).to_dict("records")
        return sorted(json.dumps(row, sort_keys=True, default=str) for row in lines)

    assert table(records) == table(shuffled)
    finished = {(r.run["dataset"], r.run["seed"], r.run["shots"])
                for r in records if r.status == "done"}  # fmt: skip
    for row in summarise(records).to_dict("records"):
        scored = not pd.isna(row.get("base"))
        if scored:
            assert row["runs"] == row["expected"] > 0
            assert row["applicable"]
            there = {cell[:2] for cell in finished if str(cell[2]) == row["shots"]}
            seeds, datasets = {seed for _, seed in there}, {name for name, _ in there}
            assert row["n"] == len(seeds)
            assert row["expected"] == len(seeds) * (
                len(datasets) if row["dataset"] == "average" else 1
            )
    assert render(shuffled, order.choice(["markdown", "csv", "latex"]), by_dataset=True)


def test_deviations_are_those_of_the_seeds():
    table = rows(grid())
    assert table["dra", "toy_b"]["new_std"] == statistics.stdev([0.8, 0.6])
