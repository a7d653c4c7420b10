"""The index of records and the kept cells change nothing but time; they notice every change."""

import dataclasses
import json
import os
import sqlite3

import pytest

from harness.certainty import kept
from harness.files import stamp
from harness.leaderboards.leaderboard import Leaderboard
from harness.records import index, store
from harness.records.store import read_all
from tests.records.worlds import write

METHODS = {"zero_shot": 0.5, "coop": 0.505, "dra": 0.7}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LEAST", 1)
    monkeypatch.setattr(kept, "LEAST", 1)
    for where in ("kept", "statistics"):
        monkeypatch.setattr(f"harness.certainty.{where}.DRAWS", 200)
    return write(tmp_path / "runs", METHODS).folder


@pytest.fixture
def parsed(monkeypatch):
    """The files that were parsed."""
    found = []
    usual = store.Store.read

    def read(path):
        found.append(path.name)
        return usual(path)

    monkeypatch.setattr(store.Store, "read", staticmethod(read))
    return found


def same(first, second):
    assert [dataclasses.asdict(each) for each in first] == [
        dataclasses.asdict(each) for each in second
    ]


def test_a_second_time_nothing_is_parsed_and_everything_is_the_same(folder, parsed):
    first = read_all([folder])
    assert len(parsed) == len(first) == 18
    parsed.clear()
    same(first, read_all([folder]))
    assert parsed == []


def test_a_record_that_was_changed_added_or_deleted_is_noticed(folder, parsed):
    first = read_all([folder])
    parsed.clear()
    changed, gone = first[0].file, first[1].file
    content = json.loads(changed.read_text())
    mark = changed.stat()
    content["scores"]["base"] |= {"accuracy": 0.25, "correct": 50}
    changed.write_text(json.dumps(content))
    os.utime(changed, ns=(mark.st_atime_ns, mark.st_mtime_ns))
    gone.unlink()
    (folder / "base2new" / "toy_a" / "broken.json").write_text("{")
    with pytest.warns(UserWarning, match="broken.json is not a readable record"):
        again = read_all([folder])
    assert sorted(parsed) == sorted([changed.name, "broken.json"])
    assert len(again) == 17
    scores = {record.file: record.scores["base"]["accuracy"] for record in again}
    assert scores[changed] == 0.25


@pytest.mark.parametrize("damage", [b"", b"no database", "'{\"run\": 1}'", "null",
                                    "replace(content, '0.5', '0.6')"])  # fmt: skip
def test_a_damaged_index_is_made_again(folder, damage, parsed):
    first = read_all([folder])
    (path,) = (folder.parent / "cache" / "records").glob("*.sqlite")
    if isinstance(damage, str):
        with sqlite3.connect(path) as database:
            database.execute(f"update records set content = {damage}")
        database.close()
    else:
        path.write_bytes(damage)
    same(first, read_all([folder]))
    parsed.clear()
    same(first, read_all([folder]))
    assert parsed == []


def test_the_index_of_a_folder_that_cannot_be_kept_is_no_error(folder, monkeypatch):
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(folder.parent / "file"))
    assert len(read_all([folder])) == 18


def test_cells_are_kept_and_noticed_when_predictions_change(folder, monkeypatch):
    first = Leaderboard(read_all([folder])).text()
    with monkeypatch.context() as patch:
        patch.setattr("harness.certainty.samples._hits", None)
        assert Leaderboard(read_all([folder])).text() == first
    next(folder.rglob("dra*.predictions.safetensors")).write_bytes(b"x")
    assert "No interval: dra: the predictions in" in Leaderboard(read_all([folder])).text()


def test_kept_cells_are_not_those_of_a_record_that_has_another_key(folder):
    Leaderboard(read_all([folder])).text()
    path = next(folder.rglob("dra*seed1*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "0123456789abcdef"}))
    said = Leaderboard(read_all([folder])).text()
    assert "are those of another run" in " ".join(said.split())


def test_what_is_kept_of_another_cell_or_record_is_not_taken(folder, parsed):
    first = Leaderboard(read_all([folder])).text()
    for path, table, name in ((kept._path(), "cells", "key"),
                              (index.Index(folder).path, "records", "path")):  # fmt: skip
        with sqlite3.connect(path) as database:
            rows = database.execute(f"select {name}, content from {table}").fetchall()
            turned = zip(rows, rows[1:] + rows[:1], strict=True)
            moved = [(content, mine) for (mine, _), (_, content) in turned]
            database.executemany(f"update {table} set content = ? where {name} = ?", moved)
        database.close()
    parsed.clear()
    assert Leaderboard(read_all([folder])).text() == first
    assert len(parsed) == 18


def test_draws_of_another_numpy_are_made_again(folder, monkeypatch):
    key = kept._key("draws")
    monkeypatch.setattr("numpy.__version__", "9.9")
    assert kept._key("draws") != key


def test_draws_are_kept_with_their_cells(folder, monkeypatch):
    first = Leaderboard(read_all([folder])).text()
    monkeypatch.setattr("harness.certainty.statistics.Sample.draw", None)
    assert Leaderboard(read_all([folder])).text() == first


@pytest.mark.parametrize("damage", ["x'00'", "'text'", "null", "substr(content, 1, 60) || x'01'"])
def test_damaged_cells_and_draws_are_computed_again(damage, folder):
    first = Leaderboard(read_all([folder])).text()
    with sqlite3.connect(kept._path()) as database:
        database.execute(f"update cells set content = {damage}")
    database.close()
    assert Leaderboard(read_all([folder])).text() == first


def test_old_cells_make_room(folder, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 5000)
    Leaderboard(read_all([folder])).text()
    with sqlite3.connect(kept._path()) as database:
        (count,) = database.execute("select count(*) from cells").fetchone()
    database.close()
    assert count < 4


def test_two_processes_that_learn_at_once_do_not_mix_their_records(folder):
    read_all([folder])
    with index.Index(folder) as first, index.Index(folder) as second:
        for mine, method, rank in ((first, "lora", 1), (second, "tcp", 2)):
            write(folder, {method: 0.6}, hyperparameters={"rank": rank})
            for path in store.Store(folder).files():
                if mine.record(path) is None and path.name.startswith(method):
                    mine.learn(path, stamp(path), store._light(store.Store.read(path)))
            mine.seen |= {index._name(path) for path in store.Store(folder).files()}
    ranks = {r.run["method"]: r.run["hyperparameters"]["rank"] for r in read_all([folder])}
    assert ranks == {"lora": 1, "tcp": 2, "zero_shot": 8, "coop": 8, "dra": 8}


def test_a_folder_whose_name_is_not_utf_8_is_read_and_kept(folder, parsed):
    try:
        (folder / "base2new" / "toy_a").rename(os.fsdecode(os.fsencode(folder) + b"/\xff"))
    except OSError:
        pytest.skip("this file system has no such names")
    first = read_all([folder])
    parsed.clear()
    same(first, read_all([folder]))
    assert parsed == []
