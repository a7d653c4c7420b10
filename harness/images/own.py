"""Your own images: lists checked, split if they are not, and read as a viewer shows them."""

import csv
import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split

from harness.dataset import Dataset, Item, below, open_rgb, stamp
from harness.errors import HarnessError

PARTS = ("train", "val", "test")
SHARES = {"val": 0.2, "test": 0.3}  # as CoOp splits the datasets that come without a split
IMAGES = frozenset(extension for extension, _ in Image.registered_extensions().items())


@dataclass(frozen=True, kw_only=True)
class UserImages(Dataset):
    """Images in a folder of the user's, given as NAME:PATH.

    Class names come from the folder or the file; `class_names` renames them.
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
    def listed(self) -> dict[str, list[tuple[str, str]]]:
        """(path below `home`, class) of every image, by part; under "" what has no part."""

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        """Raises HarnessError for lists that cannot be used, with what is wrong."""
        listed = self.listed()
        self._check_inside({path for each in listed.values() for path, _ in each})
        spoken = self._spoken({name for each in listed.values() for _, name in each})
        if listed.get(""):
            listed = self._split(listed[""])
        if not listed.get("test"):  # as of ImageNet: what is called val is what is scored
            listed = {**listed, "test": listed.get("val", []), "val": []}
        known = sorted({name for _, name in listed["train"]} or {n for _, n in listed["test"]})
        for part in PARTS:
            unseen = sorted({name for _, name in listed.get(part, [])} - set(known))
            if unseen:
                raise HarnessError(f"{self.path}: {part} has the class {unseen[0]!r}, train not.")
        unscored = sorted(set(known) - {name for _, name in listed["test"]})
        if unscored:
            raise HarnessError(f"{self.path}: the class {unscored[0]!r} has no test images.")
        labels = {name: label for label, name in enumerate(known)}
        return {
            part: [
                Item(path, labels[name], spoken[name])
                for path, name in sorted(listed.get(part, []), key=lambda p: (labels[p[1]], p[0]))
            ]
            for part in PARTS
        }

    def open(self, item: Item, root: Path | None) -> Image.Image:
        return open_rgb(self.home / below(item.path, self.path), self.path, upright)

    def stamp(self, item: Item, root: Path | None) -> str:
        return stamp(self.home / item.path)

    def content(self, root: Path | None) -> str:
        """A hash of the names and sizes of all image files, wherever the folder is."""
        digest = hashlib.sha256()
        for path in sorted({path for each in self.listed().values() for path, _ in each}):
            file = self.home / path
            digest.update(f"{path}\t{file.stat().st_size if file.exists() else None}\n".encode())
        return digest.hexdigest()[:16]

    def _check_inside(self, paths: Iterable[str]) -> None:
        inside = self.home.resolve()
        for path in sorted(paths):
            file = self.home / below(path, self.path)
            if not file.resolve().is_relative_to(inside):
                raise HarnessError(
                    f"{file} is a link that leaves {self.home}. Put the images into "
                    "the folder, or give the folder that holds them."
                )

    def _spoken(self, names: Iterable[str]) -> Mapping[str, str]:
        """What each class is called in a prompt; no two alike."""
        names = sorted(names)
        if not names:
            raise HarnessError(f"{self.path} lists no images.")
        renamed = {name: name for name in names} | self._renamed(names)
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
        given = dict(rows(Path(self.class_names), self.path, 2))
        strange = sorted(set(given) - set(names))
        if strange:
            raise HarnessError(
                f"{self.class_names} renames {strange[0]!r}, which is no class of {self.path}."
            )
        return given

    def _split(self, items: Sequence[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
        """Train, val and test, 5 : 2 : 3 of each class, the same every time."""
        parts: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}
        by_class: dict[str, list[tuple[str, str]]] = {}
        for item in sorted(items):
            by_class.setdefault(item[1], []).append(item)
        for name, rest in by_class.items():
            if len(rest) < 3:
                raise HarnessError(
                    f"{self.path}: the class {name!r} has {len(rest)} images, too few to split "
                    "into train, val and test. Add images, or give the split yourself."
                )
            sizes = {part: max(1, round(share * len(rest))) for part, share in SHARES.items()}
            for part, size in sizes.items():
                rest, taken = train_test_split(rest, test_size=size, random_state=0)
                parts[part] += taken
            parts["train"] += rest
        return parts


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; 16-bit grey scaled to 8 bits instead of clipped."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value / 257).convert("L")
    return image


def rows(path: Path, dataset: str, columns: int) -> list[list[str]]:
    """The rows of a csv file that have at least one value, each with at least `columns` values.

    Raises:
        HarnessError: it cannot be read, or a row is shorter, with its line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = []
            reader = csv.reader(file)
            for row in reader:
                values = [value.strip() for value in row]
                if any(values) and (len(values) < columns or not all(values[:columns])):
                    raise HarnessError(
                        f"{path}, line {reader.line_num}: {columns} values are expected, separated "
                        f"by commas, not {','.join(row)!r}."
                    )
                found += [values] if any(values) else []
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise HarnessError(f"{dataset} needs {path}: {reason}.") from error


def images_below(folder: Path, home: Path) -> list[str]:
    """Paths below `home` of the image files in a folder and its subfolders, sorted."""
    found = []
    for here, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(
            name for name in subfolders
            if not name.startswith(".") and not _loops(Path(here, name))
        )  # fmt: skip
        found += [
            Path(here, name).relative_to(home).as_posix()
            for name in sorted(files)
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGES
        ]
    return found


def _loops(path: Path) -> bool:
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
