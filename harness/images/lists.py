"""Few-shot lists that are given: checked against the dataset before anything is run."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from harness.dataset import Dataset, Item, Lists
from harness.errors import HarnessError
from harness.files import shown
from harness.images.contents import DIGESTS


@dataclass(frozen=True)
class ListedImage:
    """A line of a list: what it says of an image, and a hash of it if it gives one."""

    part: str
    path: str
    label: int
    name: str
    fingerprint: str = ""


@dataclass(frozen=True)
class FewShotList:
    """The training and validation images of one dataset, number of shots and seed."""

    file: Path
    images: tuple[ListedImage, ...]

    def items(
        self, name: str, dataset: Dataset, lists: Lists, shots: int,
        root: Path | None = None,
    ) -> tuple[list[Item], list[Item]]:  # fmt: skip
        """The training and the validation images, as the dataset lists them.

        Raises:
            HarnessError: the list does not fit the dataset, with what is wrong.
        """
        known = {i.path: (part, i) for part, items in lists.items() for i in items}
        found = dict[str, list[Item]](train=[], val=[])
        before = ""  # what stands before the dataset's own paths
        for number, image in enumerate(self.images):
            start, path = _below(image.path, known)
            before = start if number == 0 else before
            if path is None:
                raise self._wrong(name, f"{image.path!r} is no image of it")
            if start != before:
                first = self.images[0].path
                raise self._wrong(name, f"{image.path!r} and {first!r} begin differently")
            part, item = known[path]
            if part == "test":
                raise self._wrong(name, f"{image.path!r} is a test image")
            if (item.label, _spoken(item.name)) != (image.label, _spoken(image.name)):
                raise self._wrong(
                    name, f"{image.path!r} is {image.name!r} (label {image.label}) in the list and "
                    f"{item.name!r} (label {item.label}) in the dataset",
                )  # fmt: skip
            found[image.part].append(item)
        self._check(name, found, {item.label: item.name for item in lists["train"]}, shots)
        self._check_contents(name, dataset, [*found["train"], *found["val"]], root)
        return found["train"], found["val"]

    def _check(self, name: str, found: Lists, names: Mapping[int, str], shots: int) -> None:
        counts = Counter(item.path for items in found.values() for item in items)
        twice = [path for path, count in counts.items() if count > 1]
        if twice:
            raise self._wrong(name, f"{twice[0]!r} is listed twice")
        trained = Counter(item.label for item in found["train"])  # two classes may share a name
        lacking = sorted(names[label] for label in names.keys() - trained.keys())
        if lacking:
            raise self._wrong(name, f"the class {lacking[0]!r} has no training image")
        (most, count), *_ = trained.most_common(1)
        if count > shots:
            what = f"the class {names[most]!r} has {count} images instead of {shots}"
            raise self._wrong(name, what)

    def _check_contents(
        self, name: str, dataset: Dataset, items: Sequence[Item], root: Path | None
    ) -> None:
        """Where the list gives hashes of images, they are those of the dataset."""
        listed = sorted(self.images, key=lambda image: image.part)  # train before val
        if not any(image.fingerprint for image in listed):
            return
        hashes = fingerprints(dataset, items, root)
        for image, item, found in zip(listed, items, hashes, strict=True):
            if found and image.fingerprint not in ("", found):
                raise self._wrong(
                    name, f"{item.path!r} is another image than the one that was listed: its "
                    f"fingerprint is {found}, not {image.fingerprint}",
                )  # fmt: skip

    def _wrong(self, name: str, what: str) -> HarnessError:
        return HarnessError(
            f"{shown(self.file)} does not fit {name}: {what}. Nothing was run; correct the list, "
            "or give the data that it was made of."
        )


@dataclass(frozen=True)
class ListFolder:
    """The lists of a folder, by dataset, shots and seed; `name` stands for them in tables."""

    folder: Path
    lists: Mapping[tuple[str, int, int], FewShotList]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    def of(self, dataset: str, shots: int, seed: int) -> FewShotList:
        """The list of a run.

        Raises:
            HarnessError: there is none, with what there is.
        """
        found = self.lists.get((file_name(dataset), shots, seed))
        if found is None:
            there = ", ".join(stem(*key) for key in sorted(self.lists)[:5])
            more = ", ..." * (len(self.lists) > 5)
            raise HarnessError(
                f"{self.folder} has no list of {dataset} with {shots} shots and seed {seed}: "
                f"{stem(dataset, shots, seed)}.jsonl is not there, but {there}{more}."
            )
        return found


def fingerprint(train: Sequence[Item], val: Sequence[Item]) -> str:
    """A hash of a list: paths, labels and names in their order."""
    text = repr([[tuple(item[:3]) for item in part] for part in (train, val)])
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def fingerprints(dataset: Dataset, items: Sequence[Item], root: Path | None) -> list[str]:
    """A hash of each image: of its file's bytes, or of its pixels if it has no file of its own;
    nothing for a file that cannot be read."""
    files = [dataset.file(item, root) for item in items]
    if None not in files:
        return [digest.hex()[:16] for digest in DIGESTS.of([f for f in files if f is not None])]
    found = []
    for item in items:
        image = dataset.open(item, root)
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes())
        found.append(pixels.hexdigest()[:16])
    return found


def _below(path: str, known: Mapping[str, Any]) -> tuple[str, str | None]:
    """What stands before the dataset's own path, and that path; None if there is none."""
    if path in known:
        return "", path
    parts = PurePosixPath(path).parts
    for count in range(1, len(parts)):
        if (rest := "/".join(parts[count:])) in known:
            return "/".join(parts[:count]), rest
    return "", None


def _spoken(name: str) -> str:
    return name.replace("_", " ").casefold()


def stem(dataset: str, shots: int, seed: int) -> str:
    """The name of a list's file, without its suffix."""
    return f"{file_name(dataset)}-shot_{shots}-seed_{seed}"


def file_name(dataset: str) -> str:
    """A dataset's name as part of a file's name: folder:birds is folder_birds."""
    return re.sub(r"[^\w.-]", "_", dataset)
