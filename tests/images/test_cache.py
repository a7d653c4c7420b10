"""The disk cache: entries that are damaged, old, too many or shared, and results without it."""

import multiprocessing
import os
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.cli.commands import main
from harness.images.cache import Cache, Disk
from tests.conftest import TOY

KEY = ("weights", 1)


def numbers(count=100, value=1.0):
    return {"x": torch.full((count,), value)}


def never():
    raise AssertionError("it should have been there")


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path / "cache", 2**20)


def other(disk):
    """The cache as another process sees it."""
    return Disk(disk.folder, disk.limit)


def test_an_entry_is_computed_once_for_all_processes(disk):
    first = disk.get("kind", KEY, numbers)
    again = other(disk).get("kind", KEY, never)
    assert first["x"].equal(again["x"])
    assert disk.kinds() == {"kind": (1, disk.path("kind", KEY).stat().st_size)}
    assert not list(disk.folder.rglob("*.tmp"))


def test_another_key_or_kind_is_another_entry(disk):
    disk.get("kind", KEY, numbers)
    assert disk.get("kind", ("weights", 2), lambda: numbers(value=2.0))["x"][0] == 2
    assert disk.get("sort", KEY, lambda: numbers(value=3.0))["x"][0] == 3


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def emptied(path):
    path.write_bytes(b"")


def unsigned(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize("damage", [flipped, cut, emptied, unsigned])
def test_a_damaged_entry_is_computed_again(damage, disk):
    disk.get("kind", KEY, numbers)
    damage(disk.path("kind", KEY))
    assert other(disk).get("kind", KEY, lambda: numbers(value=2.0))["x"][0] == 2
    assert other(disk).get("kind", KEY, never)["x"][0] == 2


def test_the_least_recently_used_entries_go_first(tmp_path):
    disk = Disk(tmp_path, 100_000)
    for number in range(4):  # of 20 kB each: a fifth would be more than the limit
        disk.get("kind", (number,), lambda: numbers(5000))
        os.utime(disk.path("kind", (number,)), (time.time() - 100 + number,) * 2)
    disk.get("kind", (0,), never)
    disk.get("kind", (4,), lambda: numbers(5000))
    left = {number for number in range(5) if disk.path("kind", (number,)).exists()}
    assert left == {0, 2, 3, 4}
    assert sum(size for _, size in disk.kinds().values()) <= 100_000


def test_an_entry_of_more_than_a_quarter_of_the_limit_is_not_kept(tmp_path):
    disk = Disk(tmp_path, 4000)
    assert disk.get("kind", KEY, lambda: numbers(1000))["x"].shape == (1000,)
    assert disk.kinds() == {}


@pytest.mark.parametrize("place", ["mkdir", "write"])
def test_a_full_disk_is_one_warning_and_no_cache(place, disk, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    target = "pathlib.Path.mkdir" if place == "mkdir" else "harness.images.cache.atomically"
    monkeypatch.setattr(target, full)
    with pytest.warns(UserWarning, match=r"No space left on device\): going on without it"):
        assert disk.get("kind", KEY, numbers)["x"][0] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert disk.get("kind", (2,), numbers)["x"][0] == 1


def compute_slowly(folder, begun):
    def compute():
        begun.append(1)
        time.sleep(0.5)
        return numbers()

    Disk(folder, 2**20).get("kind", KEY, compute)


def test_two_processes_do_not_compute_the_same_entry(tmp_path):
    with multiprocessing.get_context("fork").Manager() as manager:
        begun = manager.list()
        fork = multiprocessing.get_context("fork")
        both = [fork.Process(target=compute_slowly, args=(tmp_path, begun)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert len(begun) == 1


def test_the_memory_cache_drops_the_least_recently_used():
    cache = Cache(budget=1000)
    for key in ("a", "b"):
        cache.get(key, lambda: torch.zeros(100))
    cache.get("a", never)
    cache.get("c", lambda: torch.zeros(100))
    assert list(cache.kept) == ["a", "c"]


def results(folder, *arguments):
    """Predictions and fitted weights of a method that reads everything that is cached."""
    chosen = ["--methods", "kgcoop,zero_shot", "--tasks", "base2new", "--datasets", "toy"]
    quick = [
        "--plugin",
        str(TOY),
        "--shots",
        "2",
        "--set",
        "engine.max_steps=3",
        "--results",
        str(folder),
    ]
    assert main(["run", *chosen, *quick, *arguments]) == 0
    return {path.name: load_file(path) for path in folder.rglob("*.safetensors")}


def test_predictions_and_weights_are_the_same_with_and_without(tmp_path, capsys):
    cache = ("--cache-dir", str(tmp_path / "cache"))
    without = results(tmp_path / "0", *cache, "--cache-limit", "0")
    assert not (tmp_path / "cache").exists()
    fresh = results(tmp_path / "1", *cache)
    capsys.readouterr()
    assert main(["data", "cache", *cache]) == 0
    shown = capsys.readouterr().out
    for kind in ("features", "texts"):
        assert kind in shown
    filled = results(tmp_path / "2", *cache)
    assert without.keys() == fresh.keys() == filled.keys()
    assert len(without) == 3
    for name, tensors in without.items():
        for part, tensor in tensors.items():
            assert tensor.equal(fresh[name][part])
            assert tensor.equal(filled[name][part])
    assert main(["data", "cache", "--clear", *cache]) == 0
    assert "deleted" in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_a_killed_process_left_half_written_is_cleared_after_a_day(disk):
    (disk.folder / "features").mkdir(parents=True)
    old, new = (disk.folder / "features" / f".{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    disk.clear(10**9)
    assert (old.exists(), new.exists()) == (False, True)
