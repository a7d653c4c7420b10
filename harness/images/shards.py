"""Tar shards: where each image lies in its file, found once; read without extracting."""

import functools
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.files import is_hidden, path_below, reason, regular_file, shown, stamp
from harness.rgb import SUFFIXES

MOST = 100  # bytes of a class number


@dataclass(frozen=True)
class Shard:
    """The images of a tar file. labels: the class number by member; places: offset and size."""

    path: Path
    labels: Mapping[str, int]
    places: Mapping[str, tuple[int, int]]
    left_out: Mapping[str, int]

    def encoded(self, member: str) -> bytes:
        """The bytes of an image.

        Raises:
            HarnessError: it is not there, or the file ends within it.
        """
        if member not in self.places:
            raise HarnessError(f"{self.path} has no member {member!r}.")
        start, size = self.places[member]
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                found = file.read(size)
        except OSError as error:
            raise HarnessError(f"{self.path} cannot be read: {reason(error)}.") from error
        if len(found) < size:
            raise HarnessError(f"{self.path} ends within {shown(member)}.")
        return found


def index(path: Path, dataset: str) -> Shard:
    """What a shard holds, looked at again when it has changed.

    Raises:
        HarnessError: it is damaged or a sample lacks its image or class, with the member's name.
    """
    return _index(path, dataset, stamp(path))


@functools.lru_cache(maxsize=10_000)
def _index(path: Path, dataset: str, mark: str) -> Shard:
    last = "its first member"
    images: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}
    classes: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    size = regular_size(path, dataset)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                last = shown(member.name)
                if not member.isreg() or is_hidden(member.name.rpartition("/")[2]):
                    continue
                path_below(member.name, f"{dataset}: {path.name}")
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")  # as webdataset splits names
                key, kind = f"{folder}/{stem}", f".{suffix.lower()}"
                if member.offset_data + member.size > size:
                    raise HarnessError(f"{dataset}: {path} ends within {last}.")
                if kind == ".cls":
                    if key in classes:
                        raise HarnessError(f"{dataset}: {path} has two classes for {last}.")
                    classes[key] = _number(tar, member, path, dataset)
                elif kind in SUFFIXES:
                    if key in images:
                        raise HarnessError(f"{dataset}: {path} has two images for {last}.")
                    images[key] = member.name
                    places[member.name] = (member.offset_data, member.size)
                else:
                    left_out[kind if suffix else "without suffix"] += 1
            end = tar.offset
        _check_end(path, dataset, end, last)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise HarnessError(
            f"{dataset}: {path} is damaged after {last}: {shown(reason(error))}. A shard is an "
            "uncompressed tar file."
        ) from error
    lonely = sorted(images.keys() ^ classes.keys())
    if lonely:
        what = "no class (.cls)" if lonely[0] in images else "no image that can be read"
        raise HarnessError(
            f"{dataset}: {path} has {what} for the sample {shown(lonely[0].strip('/'))!r}."
        )
    labels = {member: classes[key] for key, member in images.items()}
    return Shard(path, labels, places, dict(left_out))


def _check_end(path: Path, dataset: str, end: int, last: str) -> None:
    """tarfile takes a damaged header, and a file that was cut, for the end of the archive."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE or any(rest):
            raise HarnessError(
                f"{dataset}: {path} is damaged after {last}: what follows is neither a member nor "
                "the end of a tar file."
            )
        while rest := file.read(2**20):
            if rest.strip(b"\0"):
                raise HarnessError(f"{dataset}: {path} goes on after its end, behind {last}.")


def regular_size(path: Path, dataset: str) -> int:
    """The size of a regular file.

    Raises:
        HarnessError: it is none.
    """
    try:
        return regular_file(path).stat().st_size
    except OSError as error:
        raise HarnessError(f"{dataset}: {path} cannot be read: {reason(error)}.") from error


def _number(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, dataset: str) -> int:
    file = tar.extractfile(member)
    text = file.read(MOST) if file else b""
    if not text.strip().isdigit():
        raise HarnessError(
            f"{dataset}: {path}: {shown(member.name)} holds no class number but {text[:20]!r}."
        )
    return int(text)
