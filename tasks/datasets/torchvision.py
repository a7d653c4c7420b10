"""Classification sets that torchvision downloads and reads, by name."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from harness.dataset import Dataset, Item
from harness.images.contained import DIGESTS, HarnessError, to_rgb

FOLDER = "torchvision"
DIGITS = tuple("0123456789")
# CLIP's, spelled as there.
SIGNS = (
    "red and white circle 20 kph speed limit", "red and white circle 30 kph speed limit",
    "red and white circle 50 kph speed limit", "red and white circle 60 kph speed limit",
    "red and white circle 70 kph speed limit", "red and white circle 80 kph speed limit",
    "end / de-restriction of 80 kph speed limit", "red and white circle 100 kph speed limit",
    "red and white circle 120 kph speed limit",
    "red and white circle red car and black car no passing",
    "red and white circle red truck and black car no passing",
    "red and white triangle road intersection warning", "white and yellow diamond priority road",
    "red and white upside down triangle yield right-of-way", "stop",
    "empty red and white circle", "red and white circle no truck entry",
    "red circle with white horizonal stripe no entry",
    "red and white triangle with exclamation mark warning",
    "red and white triangle with black left curve approaching warning",
    "red and white triangle with black right curve approaching warning",
    "red and white triangle with black double curve approaching warning",
    "red and white triangle rough / bumpy road warning",
    "red and white triangle car skidding / slipping warning",
    "red and white triangle with merging / narrow lanes warning",
    "red and white triangle with person digging / construction / road work warning",
    "red and white triangle with traffic light approaching warning",
    "red and white triangle with person walking warning",
    "red and white triangle with child and person walking warning",
    "red and white triangle with bicyle warning",
    "red and white triangle with snowflake / ice warning",
    "red and white triangle with deer warning",
    "white circle with gray strike bar no speed limit",
    "blue circle with white right turn arrow mandatory",
    "blue circle with white left turn arrow mandatory",
    "blue circle with white forward arrow mandatory",
    "blue circle with white forward or right turn arrow mandatory",
    "blue circle with white forward or left turn arrow mandatory",
    "blue circle with white keep right arrow mandatory",
    "blue circle with white keep left arrow mandatory",
    "blue circle with white arrows indicating a traffic circle",
    "white circle with gray strike bar indicating no passing for cars has ended",
    "white circle with gray strike bar indicating no passing for trucks has ended",
)  # fmt: skip


class Kind(NamedTuple):
    """How torchvision splits a set; its classes if it has none of its own; CLIP's template."""

    splits: Mapping[str, Mapping[str, Any]]
    template: str
    names: tuple[str, ...] = ()


_TRAIN: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: Mapping[str, Mapping[str, Any]] = {n: {"split": n} for n in ("train", "test")}
KINDS = {
    "CIFAR10": Kind(_TRAIN, "a photo of a {}."),
    "CIFAR100": Kind(_TRAIN, "a photo of a {}."),
    "STL10": Kind(_SPLIT, "a photo of a {}."),
    "MNIST": Kind(_TRAIN, 'a photo of the number: "{}".', DIGITS),
    "FashionMNIST": Kind(_TRAIN, "a photo of a {}."),
    "SVHN": Kind(_SPLIT, 'a photo of the number: "{}".', DIGITS),
    "GTSRB": Kind(_SPLIT, 'a zoomed in photo of a "{}" traffic sign.', SIGNS),
    "RenderedSST2": Kind({**_SPLIT, "val": {"split": "val"}}, "a {} review of a movie."),
}


@dataclass(frozen=True, kw_only=True)
class Torchvision(Dataset):
    """Sets that torchvision reads: `torchvision:NAME`.

    `data prepare torchvision:NAME` downloads it. NAME is CIFAR10, CIFAR100, STL10, MNIST, SVHN,
    FashionMNIST, GTSRB or RenderedSST2. They lie in torchvision/NAME below --data-root. Classes are
    torchvision's, of digits their numbers, of GTSRB CLIP's. What torchvision does not split off for
    validation is drawn from train beyond the shots.

    Source: torchvision.datasets; names and templates (the first of each set) of CLIP's
        data/prompts.md. It has no SVHN and no FashionMNIST: that they take MNIST's template and the
        plain one is our choice.
    """

    names_only: ClassVar[bool] = True

    path: str = field(default="", metadata={"source": "what follows the colon"})
    template: str = field(  # type: ignore[misc]
        default="", metadata={"source": "--template, or the set's own"}
    )

    def __post_init__(self) -> None:
        if not self.template and self.path:
            object.__setattr__(self, "template", KINDS[self.path].template)

    @classmethod
    def remote(cls, path: str) -> str:
        """The set's name as torchvision spells it.

        Raises:
            HarnessError: it is none that is read here.
        """
        found = {name.lower(): name for name in KINDS}.get(path.lower())
        if found is None:
            raise HarnessError(f"torchvision:{path} is not read. Known: {', '.join(KINDS)}.")
        return found

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        found: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for part in KINDS[self.path].splits:
            names, labels = self._names(root), self._labels(root, part)
            wrong = [label for label in labels if not 0 <= label < len(names)]
            if wrong:
                raise HarnessError(f"torchvision:{self.path}: {part} has the label {wrong[0]}.")
            found[part] = [
                Item(f"{part}/{number:06d}", label, names[label])
                for number, label in enumerate(labels)
            ]
        return found

    def open(self, item: Item, root: Path | None) -> Image.Image:
        part, _, number = item.path.partition("/")
        return to_rgb(self._part(root, part)[int(number)][0])

    def content(self, root: Path | None) -> str:
        """Also of the bytes of all files."""
        home = self.home(root)
        files = sorted(path for path in home.rglob("*") if path.is_file())
        digests = [
            (path.relative_to(home).as_posix(), digest.hex())
            for path, digest in zip(files, DIGESTS.of(files), strict=True)
        ]
        return super().content(root) + hashlib.sha256(repr(digests).encode()).hexdigest()[:16]

    def home(self, root: Path | None) -> Path:
        """Where the set lies.

        Raises:
            HarnessError: no root was given.
        """
        if root is None:
            raise HarnessError(
                f"torchvision:{self.path} is read from disk, but no --data-root was given. Give "
                "--data-root FOLDER (or set $DATA)."
            )
        return root / FOLDER / self.path

    def download(self, root: Path | None) -> Path:
        """Downloads the set, all of its splits; returns where it lies."""
        home = self.home(root)
        home.mkdir(parents=True, exist_ok=True)
        for split in KINDS[self.path].splits.values():
            _made(self.path, home, download=True, **split)
        return home

    def _part(self, root: Path | None, part: str) -> Any:
        try:
            return _opened(self.path, self.home(root), part)
        except (RuntimeError, OSError, ValueError) as error:
            what = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            raise HarnessError(
                f"torchvision:{self.path} cannot be read from {self.home(root)}: {what}. "
                f"`python -m harness data prepare torchvision:{self.path}` downloads it."
            ) from error

    def _names(self, root: Path | None) -> tuple[str, ...]:
        return KINDS[self.path].names or tuple(self._part(root, "train").classes)

    def _labels(self, root: Path | None, part: str) -> list[int]:
        read = self._part(root, part)
        if hasattr(read, "_samples"):
            return [int(label) for _, label in read._samples]
        return [int(label) for label in getattr(read, "targets", getattr(read, "labels", ()))]


@functools.lru_cache(maxsize=8)
def _opened(name: str, home: Path, part: str) -> Any:
    return _made(name, home, **KINDS[name].splits[part])


def _made(name: str, home: Path, **options: Any) -> Any:
    """torchvision's object. It unpickles CIFAR's files only if they have their published hash."""
    import torchvision.datasets

    return getattr(torchvision.datasets, name)(root=str(home), **options)
