"""Folds of a dataset's training images, each a dataset of its own; the test images play no part."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar

from PIL import Image

from harness import config
from harness.dataset import Classes, Dataset, Item, Lists
from harness.errors import HarnessError
from harness.images.contents import DIGESTS
from harness.images.own import UserImages
from harness.images.source import ImageSource, no_image_left
from harness.registry import Plugin, Registry
from harness.runs.plan import Request
from harness.splits import Split, read_lists

MOST = 5  # folds
USABLE = 0.8  # of the training images, where there are no val images: the rest serves as these


@dataclass(frozen=True, kw_only=True)
class Fold(Dataset):
    """One part of a dataset's training images as the test images, and the other parts to train on.

    The dataset's val images stay what they are: what a method chooses its settings on, as in the
    fit of all training images. Its test images are in no list and are never opened.

    whole: the name of the dataset; number: of this fold, from 0; gone: paths of images that cannot
    be read, which are in no part.

    Source: stratified cross-validation with groups, as scikit-learn's StratifiedGroupKFold; that
        one may leave a class out of a fold, and depends on the order of the list.
    """

    name: ClassVar[str] = "fold"
    template: str = "a photo of a {}."  # type: ignore[misc]
    base: Dataset
    whole: str
    number: int
    folds: int
    gone: tuple[str, ...] = ()

    def read(self, root: Path | None) -> Lists:
        lists = _without(self.gone, read_lists(self.whole, self.base, root))
        items = lists["train"]
        named = _named(self.base, items)
        own = _dealt(items, named, self.folds)
        if isinstance(self.base, UserImages):  # copies count once, as what is drawn once
            items = [i._replace(group=name) for i, name in zip(items, named, strict=True)]
        return {
            "train": [i for i, n in zip(items, own, strict=True) if n != self.number],
            "val": lists["val"],
            "test": [i for i, n in zip(items, own, strict=True) if n == self.number],
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Folded:
    """Somebody's dataset and its folds.

    folds: names under which these are registered; counts: training images by class; shots: the most
    that a fit on a fold may take, of those `asked` for; gone: images that cannot be read.
    """

    name: str
    dataset: Dataset
    folds: Sequence[str]
    counts: Mapping[str, int]
    has_val: bool
    asked: int
    shots: int
    gone: Sequence[str] = ()

    def final_shots(self, uses_val: bool) -> int:
        """The most shots of a fit of all training images."""
        return _most(self.counts.values(), self.asked, self.has_val or not uses_val)


def folded(request: Request, registry: Registry) -> Folded:
    """The one dataset of a request, with its folds, which become known to the registry.

    Raises:
        HarnessError: it cannot be used, or is too small.
    """
    plugins = registry.find("datasets", request.datasets or "")
    if len(plugins) != 1:
        several = ", ".join(plugin.name for plugin in plugins)
        raise HarnessError(f"recommend takes one dataset, not {len(plugins)}: {several}.")
    (plugin,) = plugins
    engine = [each for each in request.bindings if each.target == "engine"]
    bindings = [each for each in request.bindings if each.target != "engine"]
    other = [each for each in engine if each.name != "on_bad_image"]
    if other:
        raise HarnessError(
            f"recommend takes engine.on_bad_image, and not engine.{other[0].name}: it compares "
            "what the command that it names at the end trains."
        )
    unread = [each for each in bindings if not config.applies(each, plugin)]
    if bindings and len(unread) == len(bindings):
        raise HarnessError(f"{unread[0].origin} is for folder: and csv: datasets.")
    dataset = config.build(plugin, bindings)[0]
    if dataset.published is not None:
        raise HarnessError(
            f"recommend is for images of your own, such as --datasets folder:PATH. {plugin.name} "
            "is a published dataset, for which methods have settings of their own: compare them "
            "there with `run` and `leaderboard`."
        )
    (asked,) = request.shots
    if asked < 1:
        raise HarnessError(f"--shots must be at least 1, not {asked}.")
    read, gone = read_lists(plugin.name, dataset, request.root), tuple[str, ...]()
    if config.build_engine(engine).on_bad_image == "skip":
        gone = _unreadable(plugin.name, dataset, request, read)
    lists = _without(gone, read)
    number = fold_count(plugin.name, dataset, lists["train"])
    folds = [Fold(template=dataset.template, base=dataset, whole=plugin.name, number=n,
                  folds=number, gone=gone) for n in range(number)]  # fmt: skip
    plain = re.sub(r"[^\w.:+-]", "_", plugin.name)  # in a list of names * and [ have a meaning
    names = [f"{plain}.fold{fold.number + 1}of{number}" for fold in folds]
    registry.plugins["datasets"] |= {
        name: Plugin(name, Fold, dict(vars(fold)), __name__)
        for name, fold in zip(names, folds, strict=True)
    }
    has_val = bool(lists["val"])
    of_fold = Counter(item.label for item in folds[0].read(request.root)["train"])
    return Folded(
        name=plugin.name, dataset=dataset, folds=names, has_val=has_val, asked=asked,
        counts=Counter(item.name for item in lists["train"]),
        shots=_most(of_fold.values(), asked, has_val), gone=gone,
    )  # fmt: skip


def _unreadable(name: str, dataset: Dataset, request: Request, lists: Lists) -> tuple[str, ...]:
    """The paths of the training and val images that cannot be read; every one is opened.

    Raises:
        HarnessError: a class has no training image that can be read.
    """
    DIGESTS.disk = request.disk
    items = (*lists["train"], *lists["val"])
    classes = Classes(name, (), dataset.template)
    every = Split(items, classes, tuple(range(len(items))), dataset.content(request.root))
    source = ImageSource(dataset, request.root, request.disk)
    gone = tuple(items[place].path for place in source.unreadable(every))
    left = {item.name for item in _without(gone, lists)["train"]}
    lost = [item for item in lists["train"] if item.name not in left]
    if lost:
        raise no_image_left(name, "training", lost[0].name, lost[0].path)
    return gone


def _without(gone: Sequence[str], lists: Lists) -> Lists:
    """Lists without some images."""
    paths = set(gone)
    return {part: [item for item in items if item.path not in paths] if paths else items
            for part, items in lists.items()}  # fmt: skip


def _most(counts: Collection[int], asked: int, every: bool) -> int:
    """The most images a class that a draw takes."""
    return min(asked, max(counts) if every else max(1, int(USABLE * median(counts))))


def fold_count(name: str, dataset: Dataset, items: Sequence[Item]) -> int:
    """How many folds the training images of a dataset have: five, or as many as a typical class has
    units.

    Raises:
        HarnessError: a class is not in two folds, or there is one class alone.
    """
    units = _units(items, _named(dataset, items))
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
    return _dealt(items, _named(dataset, items), folds)


def _dealt(items: Sequence[Item], named: Sequence[str], folds: int) -> list[int]:
    of_unit, counts = dict[str, int](), [0] * folds
    for units in _units(items, named).values():
        mine = [0] * folds
        for unit in sorted(units, key=lambda unit: (-len(units[unit]), _hash(unit))):
            fold = min(range(folds), key=lambda n: (mine[n], counts[n], n))
            of_unit[unit] = fold
            mine[fold] += len(units[unit])
            counts[fold] += len(units[unit])
    return [of_unit[unit] for unit in named]


def _units(items: Sequence[Item], named: Sequence[str]) -> dict[int, dict[str, list[Item]]]:
    """The items of each unit, by class in the order of labels; a unit of several classes counts for
    the one with the lowest label."""
    first = dict[str, int]()
    for item, unit in zip(items, named, strict=True):
        first[unit] = min(item.label, first.get(unit, item.label))
    found: dict[int, dict[str, list[Item]]] = {item.label: {} for item in items}
    for item, unit in zip(items, named, strict=True):
        found[first[unit]].setdefault(unit, []).append(item)
    return dict(sorted(found.items()))


def _named(dataset: Dataset, items: Sequence[Item]) -> list[str]:
    """The unit of each item. Of a user's own images those with a copy of one image are one unit,
    with all of their groups."""
    names = [dataset.unit(item) for item in items]
    if not isinstance(dataset, UserImages):
        return names
    joined = {name: name for name in names}  # each to one that is the same, or to itself

    def first(name: str) -> str:
        while joined[name] != name:
            name = joined[name] = joined[joined[name]]
        return name

    of_digest: dict[bytes, str] = {}
    digests = dataset.contents([item.path for item in items])
    for name, digest in zip(names, digests, strict=True):
        if digest:
            one, other = sorted((first(name), first(of_digest.setdefault(digest, name))))
            joined[other] = one
    return [first(name) for name in names]


def _hash(unit: str) -> str:
    return hashlib.sha256(unit.encode(errors="surrogatepass")).hexdigest()
