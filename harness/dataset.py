"""Datasets: images, labels, class names, a template and splits; few-shot and base/new selection.

A dataset file subclasses `Dataset` and only reads. What CoOp and Dassl do with the lists, the same
for every dataset, is here.
"""

import hashlib
import itertools
import json
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from harness.code import code_hash
from harness.decoding import open_rgb
from harness.errors import HarnessError
from harness.files import is_hidden, path_below, read_text, stamp

PARTS = ("train", "val", "test")
THREADS = 8
SLOW = 5e-5  # seconds a file


class Item(NamedTuple):
    """One image: its path below the dataset's image folder, its label (from 0), its class name;
    and what it shares with others that are not independent of it, if the list says so."""

    path: str
    label: int
    name: str
    group: str = ""


Lists = Mapping[str, Sequence[Item]]  # by part


@dataclass(frozen=True)
class Classes:
    """What a method may know of the classes that it is fitted on or evaluated on.

    `names` are in label order; `template` is the dataset's own zero-shot prompt, or several, one a
    line, whose features are averaged; `own`: whether it is of a dataset that is given by its path
    or name (`folder:`), so that no paper says what a method asks there. `ids` are what knows a
    class in other datasets, too (WordNet's), where there is such a thing; `descriptions` the texts
    of `--class-texts`, if there are any.
    """

    dataset: str
    names: tuple[str, ...]
    template: str
    ids: tuple[str, ...] = field(default=(), repr=False)
    descriptions: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    own: bool = field(default=False, repr=False)

    def described(self) -> list[list[str]]:
        """The user's texts of each class: C lists, which may differ in length.

        Raises:
            HarnessError: none were given.
        """
        if len(self.descriptions) != len(self.names):
            raise HarnessError(
                f"there are no texts of the classes of {self.dataset}: give a file of them with "
                "--class-texts."
            )
        return [list(texts) for texts in self.descriptions]

    def texts(self, *templates: str) -> list[list[str]]:
        """`templates` filled in for each class: C lists of T texts; '_' reads as a space."""
        spoken = [name.replace("_", " ") for name in self.names]
        lines = [line for template in templates for line in template.split("\n")]
        return [[template.replace("{}", name) for template in lines] for name in spoken]

    def numbers(self, others: "Classes") -> list[int] | None:
        """The labels that other classes have here, by id where both have ids and else by name;
        None if one is not here, or here twice."""
        by_id = bool(self.ids and others.ids)
        here, there = (self.ids, others.ids) if by_id else (self.names, others.names)
        if there == here:
            return list(range(len(here)))
        labels = {each: label for label, each in enumerate(here)}
        twice = {each for each, count in Counter(here).items() if count > 1}
        if not set(there) <= labels.keys() - twice:
            return None
        return [labels[each] for each in there]


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
    def read(self, root: Path | None) -> Lists:
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
        code = code_hash(type(self), Dataset, "harness.tasks.datasets")
        return hashlib.sha256(f"{self!r} {code}".encode()).hexdigest()[:16]

    def stamp(self, item: Item, root: Path | None) -> str:
        """What changes when an image's file does, for the cache on this machine alone; nothing if
        the image is not in a file of its own."""
        return ""

    def file(self, item: Item, root: Path | None) -> Path | None:
        """The file that holds this image alone; None if there is none."""
        return None

    def unit(self, item: Item) -> str:
        """The smallest thing that is drawn independently of others, which intervals count instead
        of images: the drawing of several views, the video of several frames; else the image."""
        return item.group or item.path

    def ids(self, root: Path | None) -> tuple[str, ...]:
        """The classes' ids in label order, for `Classes`; nothing if they have none."""
        return ()

    def left_out(self, root: Path | None) -> dict[str, int]:
        """How many files lie among the images and are not read, by suffix."""
        return {}


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
        return read_text(self.path(root, name), self.name)

    def subfolders(self, root: Path | None, below: str) -> list[str]:
        """Names of the folders in a folder, sorted, without hidden ones.

        Raises:
            HarnessError: there is no such folder.
        """
        return self._entries(root, below, folders=True)

    def files(self, root: Path | None, below: str) -> list[str]:
        """Names of the files in a folder, sorted, without hidden ones.

        Raises:
            HarnessError: there is no such folder.
        """
        return self._entries(root, below, folders=False)

    def file(self, item: Item, root: Path | None) -> Path:
        """Where an item's image lies."""
        return self.path(root, self.images, path_below(item.path, self.name))

    def open(self, item: Item, root: Path | None) -> Image.Image:
        return open_rgb(self.file(item, root), self.name)

    def stamp(self, item: Item, root: Path | None) -> str:
        return stamp(self.file(item, root))

    def content(self, root: Path | None) -> str:
        """Also of the sizes of all image files: reading the bytes of a published dataset would take
        longer than a run."""
        return self.content_of(self.read(root), root)

    def content_of(self, lists: Lists, root: Path | None) -> str:
        """The same, of lists that have been read already: there may be a million files."""
        digest, separator = hashlib.sha256(), ""
        for path, size in sizes(f"{self.path(root, self.images)}{os.sep}", sorted_paths(lists)):
            digest.update(f"{separator}{path}\t{size}".encode(errors="surrogatepass"))
            separator = "\n"
        return super().content(root) + digest.hexdigest()[:16]

    def _entries(self, root: Path | None, below: str, folders: bool) -> list[str]:
        path = self.path(root, below)
        try:
            with os.scandir(path) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if not is_hidden(entry.name) and entry.is_dir() == folders
                )
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
            rows = {
                part: [(path, label, name) for path, label, name in lists[part]] for part in PARTS
            }
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise HarnessError(
                f"{self.path(root, self.split)} is not one of CoOp's split files: {error!r}."
            ) from error
        read = {part: [self._item(part, *row) for row in each] for part, each in rows.items()}
        check_classes(self.name, read, complete=True)
        return read

    def _item(self, part: str, path: Any, label: Any, name: Any) -> Item:
        if type(label) is not int or not isinstance(path, str) or not isinstance(name, str):
            raise HarnessError(
                f"{self.name}: in {part} of {self.split}, the class {name!r} has the label "
                f"{label!r} for {path!r}. A label is a whole number from 0; path and class are "
                "text."
            )
        return Item(path_below(path, self.name), label, name)


def check_classes(dataset: str, lists: Lists, complete: bool = False) -> None:
    """Raises HarnessError if parts give a label two names, or hold other classes: what is scored
    must be what was trained. With `complete` each part that has images holds every class."""
    first: dict[int, tuple[str, str]] = {}
    held: dict[str, dict[int, str]] = {}
    for part, items in lists.items():
        mine: dict[int, str] = {}
        for item in items:
            if mine.get(item.label) == item.name:
                continue
            name, where = first.setdefault(item.label, (item.name, part))
            if name != item.name:
                raise HarnessError(
                    f"{dataset}: label {item.label} is the class {name!r} in {where} and "
                    f"{item.name!r} in {part}. All parts must number the classes alike."
                )
            mine[item.label] = item.name
        if mine:
            held[part] = mine
    reference = "train" if "train" in held else "test"
    known = held.get(reference, {})
    for part, classes in held.items():
        strange = sorted(classes.keys() - known.keys())
        if strange:
            name = classes[strange[0]]
            raise HarnessError(
                f"{dataset}: {part} has the class {name!r}, and {reference} has not."
            )
        missing = sorted(known.keys() - classes.keys())
        if missing and complete:
            name = known[missing[0]]
            raise HarnessError(
                f"{dataset}: {reference} has the class {name!r}, and {part} has not."
            )


def sorted_paths(lists: Lists) -> Iterable[str]:
    """Each path once, sorted; of lists that are sorted as they are, no path is held in memory."""

    def every() -> Iterator[str]:
        return (item.path for items in lists.values() for item in items)

    in_order = all(one < other for one, other in itertools.pairwise(every()))
    return every() if in_order else sorted({*every()})


def sizes(start: str, paths: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Each path with its file's size, None where there is none. On a disk that answers slowly, such
    as another machine's, files are asked for in threads, which on a quick one wait for each other.
    """

    def measure(some: Sequence[str]) -> list[tuple[str, int | None]]:
        found: list[tuple[str, int | None]] = []
        for path in some:
            try:
                found.append((path, os.stat(start + path).st_size))  # noqa: PTH116 - twice as fast
            except (OSError, ValueError):
                found.append((path, None))
        return found

    remaining, slow = iter(paths), False
    while not slow and (some := list(itertools.islice(remaining, 1000))):
        begun = time.perf_counter()
        found = measure(some)
        slow = time.perf_counter() - begun > SLOW * len(some)
        yield from found
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(itertools.islice(remaining, 100_000)):
            groups = [some[first : first + 1000] for first in range(0, len(some), 1000)]
            yield from itertools.chain.from_iterable(pool.map(measure, groups))
