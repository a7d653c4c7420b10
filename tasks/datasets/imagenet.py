"""ImageNet, and the test sets that are scored with what was learned on it."""

import bisect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

from harness.dataset import FileDataset, HarnessError, Item, Lists, Published

HENDRYCKS = "https://github.com/hendrycks/"
PUBLISHED = {
    "imagenet": Published(
        home="https://image-net.org/download", licence="research only", size="145 GB",
        classes=1000, images={"train": 1281167, "test": 50000},
    ),
    "imagenetv2": Published(
        home="https://github.com/modestyachts/ImageNetV2", licence="MIT", size="1.3 GB",
        classes=1000, images={"test": 10000},
    ),
    "imagenet-sketch": Published(
        home="https://github.com/HaohanWang/ImageNet-Sketch", licence="MIT", size="7 GB",
        classes=1000, images={"test": 50889},
    ),
    "imagenet-adversarial": Published(
        home=f"{HENDRYCKS}natural-adv-examples", licence="MIT", size="690 MB",
        classes=200, images={"test": 7500},
    ),
    "imagenet-rendition": Published(
        home=f"{HENDRYCKS}imagenet-r", licence="MIT", size="2.2 GB",
        classes=200, images={"test": 30000},
    ),
}  # fmt: skip


class ClassFolders(Sequence[Item]):
    """The images of folders that hold a class each. Items are made when they are asked for: the
    names of 1.28 million files take a fifth of the memory that their items would."""

    def __init__(self, folders: Iterable[tuple[str, int, str, Sequence[str]]]) -> None:
        """folders: of each its path, label, class name and files."""
        self.folders: list[tuple[str, int, str, str]] = []  # the files as one text
        self.ends: list[int] = []  # how many images there are up to the end of each folder
        for path, label, name, files in folders:
            self.folders.append((path, label, name, "/".join(files)))
            self.ends.append(len(self) + len(files))
        self._last: tuple[int, list[str]] = -1, []  # a folder's number and its files

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClassFolders):
            return NotImplemented
        return self.folders == other.folders

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __iter__(self) -> Iterator[Item]:
        for path, label, name, files in self.folders:
            for file in files.split("/") if files else ():
                yield Item(f"{path}/{file}", label, name)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = bisect.bisect_right(self.ends, place)
        path, label, name, files = self.folders[number]
        last = self._last
        if last[0] != number:
            last = self._last = number, files.split("/")
        return Item(f"{path}/{last[1][place - self.ends[number]]}", label, name)


@dataclass(frozen=True, kw_only=True)
class ImageNet(FileDataset):
    """1,000 kinds of objects; `imagenetv2`, `imagenet_sketch`, `_a` and `_r` are for test only.

    Train is read in the order of sorted folders and files, so that the few-shot lists are the same
    everywhere; CoOp's depend on the file system. The official validation set is the test set; the
    images that settings are chosen on are drawn from train, beyond the shots. ImageNet-A and
    ImageNet-R have 200 classes, scored among themselves.

    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge (2015), and Recht
        et al. (2019, V2), Wang et al. (2019, Sketch), Hendrycks et al. (2021, A and R);
        CoOp datasets/imagenet*.py, class names of classnames.txt.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenetv2": {
            "home": "imagenetv2",
            "test": "imagenetv2-matched-frequency-format-val",
            "numbered": True,
        },
        "imagenet_sketch": {"home": "imagenet-sketch", "test": "images"},
        "imagenet_a": {"home": "imagenet-adversarial", "test": "imagenet-a", "subset": True},
        "imagenet_r": {"home": "imagenet-rendition", "test": "imagenet-r", "subset": True},
    }

    home: str = "imagenet"
    test: str = "images/val"
    numbered: bool = False  # folders are label numbers, not WordNet ids
    subset: bool = False  # only the classes that have a folder

    @property
    def published(self) -> Published:  # type: ignore[override]
        return PUBLISHED[self.home]

    @property
    def folder(self) -> str:  # type: ignore[override]
        return self.home

    def read(self, root: Path | None) -> Lists:
        train = self.listed(root, "images/train") if self.test == "images/val" else []
        return {"train": train, "val": [], "test": self.listed(root, self.test)}

    def ids(self, root: Path | None) -> tuple[str, ...]:
        """WordNet's."""
        return tuple(wnid for _, wnid, _ in self.classes(root, self.test))

    def listed(self, root: Path | None, below: str) -> Sequence[Item]:
        """The images of the class folders below a folder, in sorted order."""
        return ClassFolders(
            (f"{below}/{folder}", label, name, self.files(root, f"{below}/{folder}"))
            for label, (folder, _, name) in enumerate(self.classes(root, below))
        )

    def classes(self, root: Path | None, below: str) -> list[tuple[str, str, str]]:
        """Folder, WordNet id and name of each class, in label order.

        Raises:
            HarnessError: classnames.txt and the class folders are not those of the same classes.
        """
        names = self.names(root)
        folders = {str(i) if self.numbered else wnid: wnid for i, wnid in enumerate(names)}
        there = self.subfolders(root, below)
        unnamed = [each for each in there if each not in folders]
        missing = [] if self.subset else sorted(set(folders) - set(there))
        if unnamed or missing or not there:
            lacks = f"lacks the class folders {_some(missing)}" if missing else (
                f"has the folders {_some(unnamed)}, which are no line of classnames.txt"
                if unnamed else "has no class folder"
            )  # fmt: skip
            also = f" and has {_some(unnamed)} instead" if missing and unnamed else ""
            raise HarnessError(f"{self.name}: {self.path(root, below)} {lacks}{also}.")
        classes = there if self.subset else list(folders)
        return [(each, folders[each], names[folders[each]]) for each in classes]

    def names(self, root: Path | None) -> dict[str, str]:
        """The class names by WordNet id, in the order of classnames.txt.

        Raises:
            HarnessError: a line is no id and a name, an id is there twice or not in its place, or
                most lines have several names.
        """
        found: dict[str, str] = {}
        for number, line in enumerate(self.lines(root, "classnames.txt"), 1):
            wnid, _, name = line.replace("\t", " ").partition(" ")
            if not re.fullmatch("n[0-9]{8}", wnid) or not name.strip() or wnid in found:
                wrong = "has an id for the second time" if wnid in found else "is no id and a name"
                raise HarnessError(
                    f"{self.path(root, 'classnames.txt')}: line {number}, {line!r}, {wrong}. "
                    "Expected is a line a class, such as 'n01440764 tench'."
                )
            found[wnid] = name.strip()
        of = self.path(root, "classnames.txt")
        if list(found) != sorted(found):
            raise HarnessError(
                f"{of}: the ids must be in order, since lines number the classes. Take CoOp's file."
            )
        if sum("," in name for name in found.values()) > len(found) / 2:
            raise HarnessError(
                f"{of} lists several names for a class, with commas between them, and a prompt has "
                "one. Take CoOp's file."
            )
        return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
