"""Hashes of files' bytes are remembered as long as the files are the same ones."""

import hashlib
import os

import pytest

from harness.files import stamp
from harness.images import contents
from harness.images.cache import Disk
from harness.images.contents import Digests


@pytest.fixture
def read(monkeypatch):
    """A list that grows by one with every file that is read."""
    names, usual = [], contents._digest

    def counted(path):
        names.append(path.name)
        return usual(path)

    monkeypatch.setattr(contents, "_digest", counted)
    return names


def files(folder, count=5):
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 9)
    return paths


def test_the_hashes_are_those_of_the_bytes_and_nothing_where_none_can_be_read(tmp_path):
    paths = files(tmp_path, 3)
    os.mkfifo(tmp_path / "pipe")
    expected = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    several = [*paths, tmp_path / "gone", tmp_path / "pipe", tmp_path]
    assert Digests().of(several) == [*expected, b"", b"", b""]


def test_a_file_is_read_once_by_a_process_and_once_by_all_that_share_a_cache(tmp_path, read):
    paths, digests = files(tmp_path), Digests()
    digests.disk = Disk(tmp_path / "cache", 2**30)
    first = digests.of(paths)
    assert digests.of(paths) == first
    other = Digests()
    other.disk = Disk(tmp_path / "cache", 2**30)
    assert other.of(paths) == first
    assert sorted(read) == [path.name for path in paths]


@pytest.mark.parametrize("how", ["in place", "another file", "swapped"])
def test_a_file_of_the_same_size_and_age_is_read_again(how, tmp_path):
    paths, digests = files(tmp_path), Digests()
    before, stamps, age = digests.of(paths), [stamp(path) for path in paths], paths[0].stat()
    if how == "in place":
        paths[0].write_bytes(b"x" * 9)
    elif how == "another file":
        (tmp_path / "new").write_bytes(b"x" * 9)
        (tmp_path / "new").replace(paths[0])
    else:
        paths[0].rename(tmp_path / "new")
        paths[1].rename(paths[0])
        (tmp_path / "new").rename(paths[1])
    for path in paths[:2]:
        os.utime(path, ns=(age.st_atime_ns, age.st_mtime_ns))
    after = digests.of(paths)
    assert after[0] != before[0]
    assert after[2:] == before[2:]
    assert after == [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    assert stamp(paths[0]) != stamps[0]
