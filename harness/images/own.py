"""Your own images: lists checked, split if they are not, and read as a viewer shows them."""

import csv
import hashlib
import io
import os
import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from harness.code import code_hash
from harness.dataset import PARTS, Dataset, Item
from harness.decoding import open_rgb
from harness.errors import HarnessError
from harness.files import is_hidden, path_below, read_text, shown, stamp
from harness.images.contents import DIGESTS
from harness.images.parts import Listed, split
from harness.rgb import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class UserImages(Dataset):
    """Images in a folder of the user's, given as NAME:PATH.

    Class names come from the folder or the file; `class_names` renames them. Classes are in natural
    order (1, 2, 10), which decides their labels and the base half. Images are shown upright, on
    white where they are transparent.
    """

    path: str = field(default="", metadata={"source": "what follows the colon"})
    template: str = field(  # type: ignore[misc]
        default="a photo of a {}.", metadata={"source": "--template"}
    )
    class_names: str = field(default="", metadata={"source": "--class-names"})

    @property
    def home(self) -> Path:
        """The folder below which every image lies."""
        return Path(self.path)

    @abstractmethod
    def listed(self) -> dict[str, list[Listed]]:
        """Every image, by part; under "" what has no part."""

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        """Raises HarnessError for lists that cannot be used, with what is wrong."""
        listed = {part: _composed(each) for part, each in self.listed().items()}
        empty = [part for part, each in listed.items() if not each]
        if any(listed.values()) and empty:
            raise HarnessError(f"{self.path}: {empty[0]} has no images. Fill or remove it.")
        self._check_inside(image.path for each in listed.values() for image in each)
        spoken = self._spoken({image.name for each in listed.values() for image in each})
        if listed.get(""):
            listed = split(listed[""], self.path, self.contents)
        if not listed.get("test"):  # as of ImageNet: what is called val is what is scored
            listed = {**listed, "test": listed.get("val", []), "val": []}
        if not listed.get("train"):
            raise HarnessError(f"{self.path} has no train images: give some, or no split at all.")
        known = self.ordered({image.name for image in listed["train"]})
        for part in PARTS:
            unseen = sorted({image.name for image in listed.get(part, [])} - set(known))
            if unseen:
                raise HarnessError(
                    f"{self.path}: {part} has the class {unseen[0]!r}, and train has not."
                )
        unscored = self.ordered(set(known) - {image.name for image in listed["test"]})
        if unscored:
            raise HarnessError(f"{self.path}: the class {unscored[0]!r} has no test images.")
        labels = {name: label for label, name in enumerate(known)}
        return {
            part: [
                Item(path, labels[name], spoken[name], group)
                for path, name, group in sorted(
                    listed.get(part, []), key=lambda image: (labels[image.name], image.path)
                )
            ]
            for part in PARTS
        }

    def ordered(self, names: Iterable[str]) -> list[str]:
        """The classes in the order of their labels."""
        return sorted(names, key=natural)

    def contents(self, paths: Sequence[str]) -> list[bytes]:
        """A hash of the bytes of each image; nothing of one that cannot be read."""
        return DIGESTS.of([self.home / path for path in paths])

    def file(self, item: Item, root: Path | None) -> Path | None:
        return self.home / path_below(item.path, self.path)

    def open(self, item: Item, root: Path | None) -> Image.Image:
        return open_rgb(self.home / path_below(item.path, self.path), self.path, turn=True)

    def stamp(self, item: Item, root: Path | None) -> str:
        return stamp(self.home / item.path)

    def content(self, root: Path | None) -> str:
        """A hash of the names and bytes of all image files, wherever the folder is, and of the code
        that reads them."""
        return self.content_of({image.path for each in self.listed().values() for image in each})

    def content_of(self, paths: Iterable[str]) -> str:
        """The same of some of the images alone; no other file is opened."""
        paths = sorted(paths)
        code = code_hash(type(self), Dataset, "harness.tasks.datasets")
        digest = hashlib.sha256(code.encode())
        for path, content in zip(paths, self.contents(paths), strict=True):
            digest.update(f"{path}\t{content.hex()}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]

    def notes(self) -> list[str]:
        """Sentences on what a user would not expect of the lists."""
        found, lists = list[str](), self.read(None)
        test = self._by_content(lists["test"])
        trained = self._by_content([*lists["train"], *lists["val"]])
        both = [content for content in test if content in trained]
        if both:
            some = f"{test[both[0]][0]} = {trained[both[0]][0]}"
            found.append(
                f"the same, {shown(self.path)}: copies of {_images(len(both))} of test are in "
                f"train or val, such as {shown(some)}: what is scored was trained on."
            )
        named: dict[bytes, set[str]] = {}
        every = [item for part in PARTS for item in lists[part]]
        digests = self.contents([item.path for item in every])
        for item, content in zip(every, digests, strict=True):
            named.setdefault(content, set()).add(item.name)
        twice = [names for content, names in named.items() if content and len(names) > 1]
        if twice:
            found.append(
                f"two classes, {shown(self.path)}: copies of {_images(len(twice))} are in two "
                f"classes, such as {' and '.join(map(repr, sorted(twice[0])[:2]))}."
            )
        for where, there in (("test", test), ("train or val", trained)):
            again = [paths for paths in there.values() if len(paths) > 1]
            if again:
                found.append(
                    f"twice, {shown(self.path)}: {_images(len(again))} of {where} have copies "
                    f"there, such as {shown(' = '.join(again[0][:2]))}: each counts."
                )
        names = {item.name for item in lists["train"]}
        nothing = [name for name in names if name.lower() in ("nan", "none", "null", "n/a")]
        if all(name.isdecimal() for name in names):
            found.append(
                f"class names, {shown(self.path)}: they are numbers, which say nothing in a "
                "prompt. Give their names with --class-names."
            )
        elif nothing:
            found.append(
                f"class names, {shown(self.path)}: {nothing[0]!r} is a class; if it stands for a "
                "label that is missing, remove its images."
            )
        return found + self.nested(every)

    def nested(self, items: Sequence[Item]) -> list[str]:
        """Sentences on folders that may be the classes."""
        return []

    def _by_content(self, items: Sequence[Item]) -> dict[bytes, list[str]]:
        """Paths of the images by the hashes of their files, wherever links lead."""
        found: dict[bytes, list[str]] = {}
        digests = self.contents([item.path for item in items])
        for item, content in zip(items, digests, strict=True):
            if content:
                found.setdefault(content, []).append(item.path)
        return found

    def _check_inside(self, paths: Iterable[str]) -> None:
        inside = os.path.realpath(self.home)
        folders: dict[str, str] = {}  # few, and resolved once each
        for path in sorted(set(paths)):
            file = os.path.join(self.home, path_below(path, self.path))  # noqa: PTH118 - of many files
            folder, name = os.path.split(file)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            target = os.path.join(folders[folder], name)  # noqa: PTH118
            if os.path.islink(target):  # noqa: PTH114
                target = os.path.realpath(target)
            if os.path.commonpath([inside, target]) != inside:
                raise HarnessError(
                    f"{shown(file)} is a link that leaves {self.home}. Put the images into "
                    "the folder, or give the folder that holds them."
                )

    def _spoken(self, names: Iterable[str]) -> Mapping[str, str]:
        """What each class is called in a prompt; no two alike."""
        names = sorted(names)
        if not names:
            raise HarnessError(f"{self.path} lists no images.")
        renamed = {name: name for name in names} | self._renamed(names)
        blank = [name for name in names if not _plain(renamed[name])]
        if blank:
            raise HarnessError(
                f"{self.path}: the class {blank[0]!r} has no name that a prompt could hold. Give "
                "it one, in a --class-names file."
            )
        counts = Counter(_plain(renamed[name]) for name in names)
        same = [name for name in names if counts[_plain(renamed[name])] > 1]
        if same:
            alike = [name for name in same if _plain(renamed[name]) == _plain(renamed[same[0]])]
            raise HarnessError(
                f"{self.path}: the classes {', '.join(map(repr, alike))} would share the name "
                f"{renamed[alike[0]]!r}. Give each its own, in a --class-names file."
            )
        return renamed

    def _renamed(self, names: Sequence[str]) -> dict[str, str]:
        if not self.class_names:
            return {}
        given: dict[str, str] = {}
        for line, row in rows(Path(self.class_names), self.path):
            if len(row) != 2 or not all(row):
                raise HarnessError(
                    f"{self.class_names}, line {line}: 2 values are expected, separated by commas, "
                    f"not {','.join(row)!r}."
                )
            if composed(row[0]) in given:
                raise HarnessError(f"{self.class_names} renames {row[0]!r} twice. Keep one line.")
            given[composed(row[0])] = row[1]
        strange = sorted(set(given) - set(names))
        if strange:
            raise HarnessError(
                f"{self.class_names} renames {strange[0]!r}, which is no class of {self.path}."
            )
        return given


def _images(number: int) -> str:
    return f"{number} image{'s' * (number != 1)}"


def rows(path: Path, dataset: str) -> list[tuple[int, list[str]]]:
    """The rows of a csv file that have at least one value, each with the number of its line.

    Raises:
        HarnessError: it cannot be read.
    """
    reader = csv.reader(io.StringIO(read_text(path, dataset)))
    try:
        stripped = ([value.strip() for value in row] for row in reader)
        return [(reader.line_num, row) for row in stripped if any(row)]
    except csv.Error as error:
        raise HarnessError(f"{dataset} needs {shown(path)}: {error}.") from error


def files_below(folder: Path, home: Path) -> list[str]:
    """Paths below `home` of the files in a folder and its subfolders, sorted, but hidden ones."""
    found = []
    for here, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(
            name for name in subfolders if not is_hidden(name) and not _loops(Path(here, name))
        )
        place = Path(here).relative_to(home)
        found += [place.joinpath(name).as_posix() for name in sorted(files) if not is_hidden(name)]
    return found


def is_image(path: str) -> bool:
    """Whether a file's suffix is one of those that are read."""
    return Path(path).suffix.lower() in SUFFIXES


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts numbers by their size: 1, 2, 10."""
    parts = re.split(r"([0-9]+)", name)  # text, digits, text, ...
    digits = [part.lstrip("0") if place % 2 else part for place, part in enumerate(parts)]
    return [(len(each) if place % 2 else 0, each) for place, each in enumerate(digits)], name


def _loops(path: Path) -> bool:
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def composed(name: str) -> str:
    """A class name in one spelling of its letters: é is one, whatever the file system says."""
    return unicodedata.normalize("NFC", name)


def _composed(images: list[Listed]) -> list[Listed]:
    """The images with their class names composed; a million that are need no copy."""
    names = {name: composed(name) for name in {image.name for image in images}}
    if all(name == whole for name, whole in names.items()):
        return images
    return [image._replace(name=names[image.name]) for image in images]


def _plain(name: str) -> str:
    seen = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")  # zero width
    return " ".join(unicodedata.normalize("NFKC", seen).replace("_", " ").split()).casefold()
