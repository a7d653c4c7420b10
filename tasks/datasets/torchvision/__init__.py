"""Classification sets that torchvision downloads and reads, by name."""

import contextlib
import hashlib
import importlib.util
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from harness.dataset import Dataset, Item, Published
from harness.images.contained import (
    ARCHIVES,
    DIGESTS,
    HarnessError,
    first_sentence,
    is_hidden,
    open_rgb,
    path_below,
    to_rgb,
)

FOLDER = "torchvision"
# What is known of each set: home, licence, size of the download, numbers of classes and images,
# templates, and the names of classes where torchvision has none or CLIP's authors have others.
SETS = json.loads((Path(__file__).parent / "sets.json").read_text(encoding="utf-8"))
# Sets of the field's benchmark: a second reading with other lists would give other numbers.
OURS = {
    "Caltech101": "caltech101", "DTD": "dtd", "EuroSAT": "eurosat", "FGVCAircraft": "fgvc_aircraft",
    "Flowers102": "oxford_flowers", "Food101": "food101", "ImageNet": "imagenet",
    "OxfordIIITPet": "oxford_pets", "StanfordCars": "stanford_cars", "SUN397": "sun397",
    "UCF101": "ucf101",
}  # fmt: skip


_TRAIN: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: Mapping[str, Mapping[str, Any]] = {n: {"split": n} for n in ("train", "test")}
_WITH_VAL: Mapping[str, Mapping[str, Any]] = {**_SPLIT, "val": {"split": "val"}}
SPLITS = {  # the arguments of torchvision's classes
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"), _TRAIN),
    **dict.fromkeys(("STL10", "SVHN", "GTSRB", "FER2013"), _SPLIT),
    **dict.fromkeys(("PCAM", "RenderedSST2"), _WITH_VAL),
    "Country211": {**_SPLIT, "val": {"split": "valid"}},
}
NOT_DOWNLOADED = ("FER2013",)
_OPENED: dict[tuple[str, Path, str], Any] = {}
_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Torchvision(Dataset):
    """Sets that torchvision reads: `torchvision:NAME`.

    `data prepare torchvision:NAME` downloads it. NAME is CIFAR10, CIFAR100, STL10, MNIST,
    FashionMNIST, KMNIST, SVHN, GTSRB, PCAM, FER2013, Country211 or RenderedSST2. They lie in
    torchvision/NAME below --data-root. FER2013 is not downloaded: its fer2013.csv or
    icml_face_data.csv goes into torchvision/FER2013/fer2013. PCAM needs h5py. What torchvision does
    not split off for validation is drawn from train beyond the shots.

    Source: torchvision.datasets; names and templates that CLIP's authors published
        (https://github.com/openai/CLIP/blob/main/data/prompts.md).
    Differs: that file gives some classes of FER2013 several names, of which the first is taken. It
        does not have SVHN, which takes MNIST's template, nor FashionMNIST and KMNIST, whose
        templates are our choice. FER2013's test images are those of both its public and its
        private test.
    """

    names_only: ClassVar[bool] = True

    path: str = field(default="", metadata={"source": "what follows the colon"})
    template: str = field(  # type: ignore[misc]
        default="", metadata={"source": "--template, or the set's own"}
    )

    def __post_init__(self) -> None:
        if not self.template and self.path:
            object.__setattr__(self, "template", "\n".join(SETS[self.path]["templates"]))

    @property
    def published(self) -> Published | None:  # type: ignore[override]
        if not self.path:
            return None
        names = ("home", "licence", "size", "classes", "images")
        return Published(**{name: SETS[self.path][name] for name in names})

    @classmethod
    def remote(cls, path: str) -> str:
        """The set's name as torchvision spells it.

        Raises:
            HarnessError: it is none that is read here.
        """
        known = {name.lower(): name for name in (*SETS, *OURS)}
        found = known.get(path.lower())
        if found in OURS:
            raise HarnessError(
                f"torchvision:{found} is read as {OURS[found]}, with the lists that the field uses."
            )
        if found is None:
            raise HarnessError(f"torchvision:{path} is not read. Known: {', '.join(SETS)}.")
        if found == "PCAM" and importlib.util.find_spec("h5py") is None:
            raise HarnessError(
                "torchvision:PCAM needs the package h5py, which is not installed: "
                "pip install 'vlm-peft-harness[datasets]'."
            )
        return found

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        for part in SPLITS[self.path]:  # the files may be others by now
            _OPENED.pop((self.path, self.home(root), part), None)
        found: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for part in SPLITS[self.path]:
            names, labels = self._names(root), self._labels(root, part)
            there, classes = set(labels), set(range(len(names)))
            if there != classes:  # a folder that is missing shifts the numbers of others
                wrong = sorted(there - classes)
                what = f"the label {wrong[0]}" if wrong else f"images of {len(there)} classes"
                raise HarnessError(
                    f"torchvision:{self.path}: {part} in {self.home(root)} has {what}; the set has "
                    f"{len(names)} classes."
                )
            found[part] = [
                Item(f"{part}/{number:06d}", label, names[label])
                for number, label in enumerate(labels)
            ]
        return found

    def open(self, item: Item, root: Path | None) -> Image.Image:
        file = self.file(item, root)
        if file is not None:
            return open_rgb(file, f"torchvision:{self.path}")
        part, _, number = item.path.partition("/")
        with self._blamed(root):
            return to_rgb(self._part(root, part)[int(number)][0])

    def file(self, item: Item, root: Path | None) -> Path | None:
        part, _, number = item.path.partition("/")
        listed = _listed(self._part(root, part))
        first = listed[int(number)][0] if listed else None
        if not isinstance(first, str):
            return None
        home = self.home(root)
        return home / path_below(Path(first).relative_to(home).as_posix(), str(home))

    def content(self, root: Path | None) -> str:
        """Also of the bytes of all files, but archives."""
        home = self.home(root)
        files = sorted(
            path
            for path in home.rglob("*")
            if path.is_file() and not path.name.endswith(ARCHIVES) and not is_hidden(path.name)
        )
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

    def download(self, home: Path) -> None:
        """Downloads the set, all of its splits.

        Raises:
            HarnessError: torchvision does not, with where to get it.
        """
        if self.path in NOT_DOWNLOADED:
            raise HarnessError(
                f"torchvision:{self.path} cannot be downloaded by a command. Get it from "
                f"{SETS[self.path]['home']}; `show torchvision` says where it goes."
            )
        for split in SPLITS[self.path].values():
            _made(self.path, home, download=True, **split)

    def _part(self, root: Path | None, part: str) -> Any:
        with self._blamed(root):
            return _opened(self.path, self.home(root), part)

    @contextlib.contextmanager
    def _blamed(self, root: Path | None) -> Iterator[None]:
        """Turns whatever torchvision raises for files that are not as they should be into a
        sentence."""
        try:
            yield
        except HarnessError:
            raise
        except Exception as error:
            what = first_sentence(error)
            how = f"`python -m harness data prepare torchvision:{self.path}` downloads it."
            if self.path in NOT_DOWNLOADED:
                how = f"Get it from {SETS[self.path]['home']}."
            raise HarnessError(
                f"torchvision:{self.path} cannot be read from {self.home(root)}: {what}. {how}"
            ) from error

    def _names(self, root: Path | None) -> tuple[str, ...]:
        return tuple(SETS[self.path].get("names") or self._part(root, "train").classes)

    def _labels(self, root: Path | None, part: str) -> list[int]:
        read = self._part(root, part)
        with self._blamed(root):
            images, labels = len(read), _labels(read)
        what = ""
        if len(labels) != images:
            what = f"{images:,} images and {len(labels):,} labels"
        if None in labels:
            what = "no labels"
        if what:
            raise HarnessError(f"torchvision:{self.path}: {part} in {self.home(root)} has {what}.")
        return [int(label) for label in labels]


def _labels(read: Any) -> list[Any]:
    """The label of every image of a set of torchvision, None of one that has none."""
    if hasattr(read, "h5py"):  # PCAM, which reads them one by one
        with read.h5py.File(read._base_folder / read._FILES[read._split]["targets"][0]) as file:
            return file["y"][:].ravel().tolist()
    listed = _listed(read)
    if listed:
        return [label for _, label in listed]
    return [*map(int, getattr(read, "targets", getattr(read, "labels", ())))]


def _listed(read: Any) -> list[tuple[Any, int]]:
    """What a set of torchvision lists: a file or an image, and a label; nothing of an array."""
    return getattr(read, "_samples", getattr(read, "samples", []))


def _opened(name: str, home: Path, part: str) -> Any:
    """torchvision's object, made once: it may hold all images."""
    with _LOCK:
        if (name, home, part) not in _OPENED:
            _OPENED[name, home, part] = _made(name, home, **SPLITS[name][part])
        return _OPENED[name, home, part]


def _made(name: str, home: Path, **options: Any) -> Any:
    """torchvision's object. It unpickles CIFAR's files only if they have their published hash."""
    import torchvision.datasets

    return getattr(torchvision.datasets, name)(root=str(home), **options)
