"""Records are written whole or not at all, read without executing anything, claimed once."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.errors import HarnessError
from harness.records.labels import method_label
from harness.records.store import Record, Store, atomically
from tests.conftest import ROOT
from tests.records import worlds


def record(key: str = "k1", **run) -> Record:
    identity = {
        "method": "dra",
        "overrides": {},
        "task": "base2new",
        "dataset": "toy",
        "backbone": "emoji-mini",
        "shots": 16,
        "seed": 1,
        "settings": {},
        "fingerprints": {"weights": "w"},
        **run,
    }
    scores = {"base": {"accuracy": 0.5, "correct": 1, "total": 2}}
    return Record(key=key, status="done", run=identity, scores=scores)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs").open()


def test_a_record_comes_back_as_it_was_written(store):
    written = record()
    path = store.write(written, {"base.class": torch.tensor([0, 1], dtype=torch.int32)})
    assert store.records() == [written]
    assert store.done() == {"k1": written}
    assert path.name == "dra-16shots-seed1-k1.json"
    assert (path.parent / "dra-16shots-seed1-k1.predictions.safetensors").is_file()


def test_nothing_is_left_when_writing_fails(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(HarnessError, match="No space left"):
        store.write(record(), {})
    assert [p for p in store.folder.rglob("*") if p.is_file()] == []


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    """A real one: the kernel refuses to let files grow past a few bytes."""
    code = """
import resource, signal, sys, torch
from tests.records.test_store import record
from harness.errors import HarnessError
from harness.records.store import Store
store = Store(__import__("pathlib").Path(sys.argv[1]) / "runs").open()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    store.write(record(), {"base.class": torch.zeros(1000)})
except HarnessError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cannot be written" in done.stdout
    assert [p for p in (tmp_path / "runs").rglob("*") if p.is_file()] == []


def test_a_failure_does_not_replace_a_finished_record(store):
    store.write(record(), {})
    store.write(Record(key="k1", status="failed", run=record().run, error="boom"), {})
    assert store.done() == {"k1": record()}


def test_what_another_process_wrote_meanwhile_is_not_run_again_whatever_the_clock_says(store):
    run, failed = record().run, Record(key="k1", status="failed", run=record().run, error="boom")
    path = store.write(failed, {})
    os.utime(path, (2**32, 2**32))  # written in the future
    before = store.version(run, "k1")
    assert store.ended(run, "k1", None, force=True) == failed
    assert store.ended(run, "k1", before, force=False) is None
    store.write(record(), {})
    assert store.ended(run, "k1", before, force=True) == record()
    now = store.version(run, "k1")
    assert store.ended(run, "k1", now, force=False) == record()
    assert store.ended(run, "k1", now, force=True) is None


def test_a_failed_run_is_a_record_but_not_done(store):
    failed = Record(key="k2", status="failed", run=record().run, error="Traceback ...")
    store.write(failed, {})
    assert store.records() == [failed]
    assert store.done() == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99}', "\x80\x04."])
def test_a_file_that_is_no_record_is_named_in_a_warning(store, content):
    store.write(record(), {})
    (store.folder / "stray.json").write_text(content)
    with pytest.warns(UserWarning, match=r"stray\.json"):
        assert len(store.records()) == 1


def test_names_from_data_cannot_leave_the_folder(store):
    path = store.write(record(dataset="../../etc", method="a/b", task=".."), {})
    assert path.resolve().is_relative_to(store.folder.resolve())


def test_not_a_number_is_not_written(store):
    bad = Record(key="k", status="done", run=record().run, cost={"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        store.write(bad, {})
    assert store.records() == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(HarnessError, match="--results"):
        Store(tmp_path / "runs").open()


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(HarnessError, match="--results"):
        Store(tmp_path / "runs").open()
    with pytest.raises(HarnessError, match="no readable"):
        Store(tmp_path / "runs").records()


def _hold(folder, started, end):
    with Store(folder).claim("k1") as mine:
        started.put(mine)
        end.wait(20)


def test_a_run_is_claimed_by_one_process_and_freed_when_it_dies(store):
    context = multiprocessing.get_context("spawn")
    started, end = context.Queue(), context.Event()
    other = context.Process(target=_hold, args=(store.folder, started, end))
    other.start()
    assert started.get(timeout=60)
    with store.claim("k1") as mine:
        assert not mine
    with store.claim("k2") as mine:
        assert mine
    other.kill()
    other.join()
    with store.claim("k1") as mine:
        assert mine


def test_a_label_shows_what_the_user_changed():
    assert method_label(record().run) == "dra"
    changed = record(overrides={"ratios": [1.0, 0.5], "noise": "none"}).run
    assert method_label(changed) == "dra[ratios=[1.0,0.5],noise=none]"


def test_a_record_is_plain_json(store):
    path = store.write(record(), {})
    loaded = json.loads(path.read_text())
    assert loaded["scores"]["base"] == {"accuracy": 0.5, "correct": 1, "total": 2}


def test_a_records_command_says_nothing_of_where_the_machine_keeps_it():
    from harness.runs.provenance import _command

    given = ["run", "--cache-dir", "/my/cache", "--methods", "a,b", "--cache-dir=/my/cache"]
    given += ["--results", "/my/results", "--results=/my/results"]
    assert _command(given) == "python -m harness run --methods a,b"


def test_a_disk_without_locks_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("harness.records.store.FileLock.acquire", refuse)
    with (
        pytest.raises(HarnessError, match=r"cannot be locked \(No locks available\)"),
        Store(tmp_path).open().claim("fit"),
    ):
        pass


def test_a_dataset_with_a_long_name_has_a_folder_that_a_disk_takes(tmp_path):
    store = Store(tmp_path)
    run = {"task": "few_shot", "dataset": "鳥" * 100, "method": "lora", "shots": 1, "seed": 1}
    path = store.path(run, "0123456789abcdef")
    assert len(path.parent.name.encode()) <= 200
    assert path.name == "lora-1shots-seed1-0123456789abcdef.json"
    assert not path.exists()


def test_records_behind_a_link_are_found_and_a_ring_of_links_ends(tmp_path):
    away, results = tmp_path / "away", tmp_path / "results"
    worlds.write(away, {"dra": 0.5}, seeds=(1,))
    results.mkdir()
    (results / "base2new").symlink_to(away / "base2new")
    (away / "base2new" / "back").symlink_to(results)
    assert len(list(Store(results).records())) == 2  # of two datasets


def test_what_is_written_has_the_mode_that_the_user_wants(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.records.store.MODE", 0o600)
    atomically(tmp_path / "a", lambda path: path.write_text("x"))
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(Path, "chmod", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no")))
    atomically(tmp_path / "b", lambda path: path.write_text("x"))
    assert (tmp_path / "b").read_text() == "x"
