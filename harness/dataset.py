"""Datasets: images, labels, class names, a template and splits; few-shot and base/new selection.

A dataset file subclasses `Dataset` and only reads. What CoOp and Dassl do with the lists, the same
for every dataset, is here.
"""

import hashlib
import inspect
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from harness.errors import HarnessError

Prepare = Callable[[Image.Image], Image.Image]


class Item(NamedTuple):
    """One image: its path below the dataset's image folder, its label (from 0), its class name."""

    path: str
    label: int
    name: str


@dataclass(frozen=True)
class Classes:
    """What a method may know of the classes that it is fitted on or evaluated on.

    `names` are in label order; `template` is the dataset's own zero-shot prompt.
    """

    dataset: str
    names: tuple[str, ...]
    template: str

    def texts(self, *templates: str) -> list[list[str]]:
        """`templates` filled in for each class: C lists of T texts; '_' reads as a space."""
        spoken = [name.replace("_", " ") for name in self.names]
        return [[template.replace("{}", name) for template in templates] for name in spoken]

    def numbers(self, others: "Classes") -> list[int] | None:
        """The labels that the names of other classes have here; None if one is not here, or
        here twice."""
        if others.names == self.names:
            return list(range(len(self.names)))
        labels = {name: label for label, name in enumerate(self.names)}
        twice = {name for name, count in Counter(self.names).items() if count > 1}
        if not set(others.names) <= labels.keys() - twice:
            return None
        return [labels[name] for name in others.names]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of a dataset whether or not it is on disk.

    images: how many by split. torchvision: the class there that downloads it, if one does; layout:
    where its files go (see `library.prepare`); images_folder: the last of them to arrive.
    """

    home: str
    licence: str
    size: str  # of the download, about
    classes: int
    images: Mapping[str, int]
    torchvision: str | None = None
    layout: Mapping[str, str] = field(default_factory=dict)
    images_folder: str = "images"


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """A classification dataset. Subclasses read; they never sample, transform or cache.

    A class docstring says what it is in its first line, and after `Source:` where it comes from.
    """

    name: ClassVar[str] = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    template: ClassVar[str] = "a photo of a {}."
    published: ClassVar[Published | None] = None

    @abstractmethod
    def read(self, root: Path | None) -> dict[str, list[Item]]:
        """The full lists under `train`, `val` and `test`, in the order that sampling starts from.

        Args:
            root: the folder that holds every dataset (--data-root), or None if none was given.

        Raises:
            HarnessError: the data is missing, with where it was expected.
        """

    @abstractmethod
    def open(self, item: Item, root: Path | None) -> Image.Image:
        """The decoded RGB image."""

    def content(self, root: Path | None) -> str:
        """A hash of what decides the pixels beside the lists: here the fields and the code.

        A dataset whose image files may change under the same names adds to it.
        """
        code = Path(inspect.getfile(type(self))).read_bytes()
        return hashlib.sha256(repr(self).encode() + code).hexdigest()[:16]

    def stamp(self, item: Item, root: Path | None) -> str:
        """What changes when an image's file does, for the cache on this machine alone."""
        return ""


class FileDataset(Dataset):
    """A dataset in a folder below --data-root, in CoOp's layout.

    folder: its name there; images: where in it the paths of the items start.
    """

    folder: ClassVar[str]
    images: ClassVar[str] = ""

    def path(self, root: Path | None, *parts: str) -> Path:
        """A path in the dataset's folder.

        Raises:
            HarnessError: no root was given, it is no folder, or the dataset is not below it.
        """
        if root is None or not root.is_dir():
            given = f"{root} is not a folder" if root else "no --data-root was given"
            raise HarnessError(
                f"{self.name} is read from disk, but {given}. Give --data-root FOLDER (or set "
                f"$DATA): the folder that holds {self.folder}/."
            )
        if not (root / self.folder).is_dir():
            raise HarnessError(f"{self.name} is expected in {root / self.folder}: no such folder.")
        return root.joinpath(self.folder, *parts)

    def lines(self, root: Path | None, name: str) -> list[str]:
        """The lines of a text file, without empty ones.

        Raises:
            HarnessError: it cannot be read.
        """
        return [line.strip() for line in self.text(root, name).splitlines() if line.strip()]

    def text(self, root: Path | None, name: str) -> str:
        """The contents of a text file.

        Raises:
            HarnessError: it cannot be read.
        """
        path = self.path(root, name)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HarnessError(f"{self.name} needs {path}: {reason}.") from error

    def subfolders(self, root: Path | None, below: str) -> list[str]:
        """Names of the folders in a folder, sorted.

        Raises:
            HarnessError: there is no such folder.
        """
        return self._entries(root, below, folders=True)

    def files(self, root: Path | None, below: str) -> list[str]:
        """Names of the files in a folder, sorted.

        Raises:
            HarnessError: there is no such folder.
        """
        return self._entries(root, below, folders=False)

    def file(self, item: Item, root: Path | None) -> Path:
        """Where an item's image lies."""
        return self.path(root, self.images, below(item.path, self.name))

    def open(self, item: Item, root: Path | None) -> Image.Image:
        return open_rgb(self.file(item, root), self.name)

    def stamp(self, item: Item, root: Path | None) -> str:
        return stamp(self.file(item, root))

    def _entries(self, root: Path | None, below: str, folders: bool) -> list[str]:
        path = self.path(root, below)
        try:
            with os.scandir(path) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir() == folders)
        except OSError as error:
            raise HarnessError(f"{self.name} needs the folder {path}: {error.strerror}.") from error


class SplitFileDataset(FileDataset):
    """A dataset whose lists are in one of CoOp's split_zhou_*.json files, in the file's order.

    `split` is the file's name: {"train" | "val" | "test": [[path, label, class name], ...]}.
    """

    split: ClassVar[str]

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        text = self.text(root, self.split)
        try:
            lists = json.loads(text)
            return {
                part: [Item(below(path, self.name), int(label), str(name))
                       for path, label, name in lists[part]]
                for part in ("train", "val", "test")
            }  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise HarnessError(
                f"{self.path(root, self.split)} is not one of CoOp's split files: {error!r}."
            ) from error


def open_rgb(path: Path, dataset: str, prepare: Prepare = lambda image: image) -> Image.Image:
    """The image in a file, RGB, after `prepare`.

    Raises:
        HarnessError: it cannot be read as an image: missing, truncated, something else.
    """
    try:
        with Image.open(path) as image:
            return prepare(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HarnessError(
            f"{dataset}: {path} cannot be read as an image: {error}. `python -m harness data "
            "verify` finds every such file; --on-bad-image skip leaves them out."
        ) from error


def stamp(path: Path) -> str:
    """Size and time of a file, or nothing if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def below(path: str, dataset: str) -> str:
    """`path`, if it stays below the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or PurePosixPath(path).is_absolute() or "\\" in path:
        raise HarnessError(f"{dataset}: the path {path!r} leaves the dataset's folder.")
    return path
