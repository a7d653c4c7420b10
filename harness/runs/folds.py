"""Folds of a dataset's training images, each a dataset of its own; the test images play no part."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar

from PIL import Image

from harness.dataset import Dataset, Item
from harness.errors import HarnessError
from harness.images.own import UserImages
from harness.splits import read_lists

MOST = 5  # folds


@dataclass(frozen=True, kw_only=True)
class Fold(Dataset):
    """One part of a dataset's training images as the test images, and the other parts to train on.

    The dataset's val images stay what they are: what a method chooses its settings on, as in the
    fit of all training images. Its test images are in no list and are never opened.

    whole: the name of the dataset; number: of this fold, from 0.

    Source: stratified cross-validation with groups, as scikit-learn's StratifiedGroupKFold; that
        one may leave a class out of a fold, and depends on the order of the list.
    """

    name: ClassVar[str] = "fold"
    template: str = "a photo of a {}."  # type: ignore[misc]
    base: Dataset
    whole: str
    number: int
    folds: int

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        lists = read_lists(self.whole, self.base, root)
        own = assigned(self.base, lists["train"], self.folds)
        return {
            "train": [i for i, n in zip(lists["train"], own, strict=True) if n != self.number],
            "val": lists["val"],
            "test": [i for i, n in zip(lists["train"], own, strict=True) if n == self.number],
        }

    def open(self, item: Item, root: Path | None) -> Image.Image:
        return self.base.open(item, root)

    def content(self, root: Path | None) -> str:
        """As of the whole dataset; of a user's own images without those of the test part."""
        if not isinstance(self.base, UserImages):
            return self.base.content(root)
        items = [item for part in self.read(root).values() for item in part]
        return self.base.content_of(sorted(item.path for item in items))

    def stamp(self, item: Item, root: Path | None) -> str:
        return self.base.stamp(item, root)

    def unit(self, item: Item) -> str:
        return self.base.unit(item)

    def ids(self, root: Path | None) -> tuple[str, ...]:
        return self.base.ids(root)

    def left_out(self, root: Path | None) -> dict[str, int]:
        return self.base.left_out(root)


def fold_count(name: str, dataset: Dataset, root: Path | None) -> int:
    """How many folds a dataset has: five, or as many as a typical class has units.

    Raises:
        HarnessError: a class is not in two folds, or there is one class alone.
    """
    items = read_lists(name, dataset, root)["train"]
    units = _units(dataset, items)
    if len(units) < 2:
        raise HarnessError(
            f"{name} has training images of {len(units)} class{'es' * (not units)}. Methods are "
            "compared on two classes or more."
        )
    folds = max(2, min(MOST, int(median(len(each) for each in units.values()))))
    places = dict[str, set[int]]()
    for item, fold in zip(items, assigned(dataset, items, folds), strict=True):
        places.setdefault(item.name, set()).add(fold)
    small = [each for each, there in places.items() if len(there) < 2]
    if small:
        count = sum(item.name == small[0] for item in items)
        what = "1 training image" if count == 1 else (
            f"{count} training images, which are not independent of each other"
        )  # fmt: skip
        more = f" (and {len(small) - 1} more classes are as small)" if len(small) > 1 else ""
        raise HarnessError(
            f"{name}: the class {small[0]!r} has {what}{more}. Methods are compared on training "
            "images that are held out: every class needs two independent ones at least, and about "
            "twenty for an answer that says much."
        )
    return folds


def assigned(dataset: Dataset, items: Sequence[Item], folds: int) -> list[int]:
    """The fold of each item: the units of each class are dealt out, so that every class is in as
    many folds as it has units. It depends on paths alone, not on their order."""
    of_unit, counts = dict[str, int](), [0] * folds
    for units in _units(dataset, items).values():
        mine = [0] * folds
        for unit in sorted(units, key=lambda unit: (-len(units[unit]), _hash(unit))):
            fold = min(range(folds), key=lambda n: (mine[n], counts[n], n))
            of_unit[unit] = fold
            mine[fold] += len(units[unit])
            counts[fold] += len(units[unit])
    return [of_unit[dataset.unit(item)] for item in items]


def _units(dataset: Dataset, items: Sequence[Item]) -> dict[int, dict[str, list[Item]]]:
    """The items of each unit, by class in the order of labels; a unit of several classes counts for
    the one with the lowest label."""
    first = dict[str, int]()
    for item in items:
        unit = dataset.unit(item)
        first[unit] = min(item.label, first.get(unit, item.label))
    found: dict[int, dict[str, list[Item]]] = {item.label: {} for item in items}
    for item in items:
        unit = dataset.unit(item)
        found[first[unit]].setdefault(unit, []).append(item)
    return dict(sorted(found.items()))


def _hash(unit: str) -> str:
    return hashlib.sha256(unit.encode(errors="surrogatepass")).hexdigest()
