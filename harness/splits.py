"""Which images: CoOp's few-shot lists, base and new classes, the same for every dataset."""

import hashlib
import posixpath
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.dataset import Classes, Dataset, Item, Lists, check_classes
from harness.errors import HarnessError
from harness.garbage import uncollected


@dataclass(frozen=True)
class Split:
    """Images with their classes, and where each image stood before classes were selected.

    `positions` are indices into the list before the classes were selected: what augmentation
    depends on. `content` is the dataset's hash of what the list does not show. `skipped` are paths
    of images that were left out because they cannot be read. `templates` are all of the dataset's
    where the method takes the first alone: it is the same list for every method.
    """

    items: tuple[Item, ...]
    classes: Classes
    positions: tuple[int, ...]
    content: str
    skipped: tuple[str, ...] = ()
    templates: str = ""

    @property
    def dataset_classes(self) -> Classes:
        """The classes as the dataset has them, with all of its templates."""
        return replace(self.classes, template=self.templates or self.classes.template)

    def of_one_template(self) -> "Split":
        """The same images under the first of the dataset's templates."""
        first, others, _ = self.classes.template.partition("\n")
        classes = replace(self.classes, template=first)
        return replace(self, classes=classes, templates=self.classes.template) if others else self

    def without(self, places: Iterable[int]) -> "Split":
        """The split without the images at some places of its list, which it names as skipped."""
        gone = set(places)
        kept = [place for place in range(len(self.items)) if place not in gone]
        return replace(
            self,
            items=tuple(self.items[place] for place in kept),
            positions=tuple(self.positions[place] for place in kept),
            skipped=tuple(self.items[place].path for place in sorted(gone)),
        )

    def units(self, dataset: Dataset) -> list[int]:
        """The number of each image's unit, from 0 in order of appearance; see `Dataset.unit`."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(dataset.unit(item), len(numbers)) for item in self.items]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the exact list: paths, labels, names, order and positions; and of `content`."""
        lines = [
            f"{item.path}\t{item.label}\t{item.name}\t{position}"
            for item, position in zip(self.items, self.positions, strict=True)
        ]
        ids = [repr(self.classes.ids)] if self.classes.ids else []
        text = "\n".join([*lines, repr(self.dataset_classes), *ids, self.content])
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def read_lists(name: str, dataset: Dataset, root: Path | None) -> Lists:
    """The lists of a dataset, checked.

    Raises:
        HarnessError: the data is missing or unusable; see `check_lists`.
    """
    with uncollected():  # a million new tuples are no garbage
        lists = dataset.read(root)
        check_lists(name, lists)
    return lists


def check_lists(name: str, lists: Lists) -> None:
    """Raises HarnessError if an image is in two parts or has two labels, or if the parts disagree
    on the classes."""
    check_classes(name, lists)
    if not _repeated(lists):
        return
    seen: dict[str, tuple[str, int, str]] = {}
    shared: dict[str, list[str]] = {}
    for part, items in lists.items():
        for item in items:
            path = _plain(item.path)
            first, label, called = seen.setdefault(path, (part, item.label, item.name))
            if label != item.label:
                raise HarnessError(
                    f"{name}: {item.path!r} is listed as {called!r} in {first} and as "
                    f"{item.name!r} in {part}. An image has one class."
                )
            if first != part:
                shared.setdefault(f"in {first} and in {part}", []).append(item.path)
    for where, paths in shared.items():
        some = ", ".join(map(repr, paths[:5])) + ", ..." * (len(paths) > 5)
        raise HarnessError(
            f"{name}: {len(paths)} images are listed {where}: {some}. What is scored must not be "
            "trained on: list each image once."
        )


def _repeated(lists: Lists) -> bool:
    """Whether a path may be there twice: by hashes, as a million paths would fill the memory."""
    count = sum(map(len, lists.values()))
    hashes = (hash(_plain(item.path)) for items in lists.values() for item in items)
    ordered = np.sort(np.fromiter(hashes, np.int64, count))
    return bool((ordered[1:] == ordered[:-1]).any())


def _plain(path: str) -> str:
    """A path in its shortest spelling; quick, because there may be a million."""
    return posixpath.normpath(path) if "/." in path or "//" in path or path[:1] == "." else path


def few_shot(
    train: Sequence[Item], val: Sequence[Item], shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """`shots` images a class of train, then min(shots, 4) of val, from one random stream.

    Classes are visited in order of first appearance; a class with fewer images gives all of them
    without a draw. This is what CoOp draws for SEED = seed, list for list. Without a val list the
    second draw is from what the first one left of train, but for images of the same groups.

    Source: Dassl base_dataset.py, generate_fewshot_dataset; CoOp datasets/*.py.
    """
    stream = random.Random(seed)
    drawn = _sample(train, shots, stream)
    others = min(shots, 4)
    return drawn, _sample(val, others, stream) if val else _sample(train, others, stream, {*drawn})


def refilled(
    split: Split,
    places: Iterable[int],
    spare: Sequence[Item],
    seed: int,
    readable: Callable[[Item], bool],
) -> Split:
    """The split with other images of the same classes in some places, drawn from `spare`, which has
    the split's labels; a place stays empty where its class has none left that can be read. What was
    replaced is skipped."""
    items, empty = list(split.items), list[int]()
    left: dict[int, list[Item]] = {}
    for place in sorted(places):
        item = items[place]
        if item.label not in left:  # two classes may have one name
            left[item.label] = [each for each in spare if each.label == item.label]
            random.Random(f"{seed} {item.name}").shuffle(left[item.label])
        pool = left[item.label]
        while pool and not readable(pool[-1]):
            pool.pop()
        if pool:
            items[place] = pool.pop()
        else:
            empty.append(place)
    gone = tuple(split.items[place].path for place in sorted(places))
    return replace(replace(split, items=tuple(items)).without(empty), skipped=gone)


def _sample(
    items: Sequence[Item], count: int, stream: random.Random, taken: Set[Item] = frozenset()
) -> list[Item]:
    """`count` items of each class that are not taken, and of no group of which one is. It holds
    places, not items: a list of a million may make its items when it is asked for them."""
    groups = {item.group for item in taken if item.group}
    by_label: defaultdict[int, array[int]] = defaultdict(lambda: array("l"))
    for place, item in enumerate(items):
        if not taken or (item not in taken and item.group not in groups):
            by_label[item.label].append(place)
    chosen: list[int] = []
    for places in by_label.values():
        chosen += stream.sample(places, count) if len(places) >= count else places
    return [items[place] for place in chosen]


def class_names(items: Iterable[Item]) -> list[str]:
    """Names in label order.

    Raises:
        HarnessError: a label with two names, or a gap in the labels.
    """
    names: dict[int, str] = {}
    for item in items:
        if names.setdefault(item.label, item.name) != item.name:
            raise HarnessError(
                f"label {item.label} is both {names[item.label]!r} and {item.name!r}"
            )
    missing = sorted(set(range(len(names))) - set(names))
    if missing:
        raise HarnessError(f"labels must run from 0 to {len(names) - 1}; missing: {missing[:5]}")
    return [names[label] for label in range(len(names))]


def select(
    items: Sequence[Item], subset: str, classes: Classes, content: str = "", split: str = "test"
) -> Split:
    """The items of a subset of the classes, relabelled from 0 in label order.

    base is the first ceil(n/2) of the n classes and new the rest, whichever of them `items` hold.

    Source: CoOp datasets/oxford_pets.py, subsample_classes.

    Raises:
        HarnessError: no image of the subset is among the items, or it is of one class alone.
    """
    names = classes.names
    half = (len(names) + 1) // 2
    first, last = {"all": (0, len(names)), "base": (0, half), "new": (half, len(names))}[subset]
    kept = [
        (position, item._replace(label=item.label - first))
        for position, item in enumerate(items)
        if first <= item.label < last
    ]
    if not kept:
        raise HarnessError(f"{classes.dataset} has no {split} images of its {subset} classes.")
    if last - first < 2:
        where, needed = ("", 2) if subset == "all" else (f" among its {subset} classes", 4)
        raise HarnessError(
            f"{classes.dataset} has a single class{where}, {names[first]!r}: every answer would be "
            f"right. At least {needed} classes are needed."
        )
    return Split(
        items=tuple(item for _, item in kept),
        classes=replace(
            classes,
            names=names[first:last],
            ids=classes.ids[first:last],
            descriptions=classes.descriptions[first:last],
        ),
        positions=tuple(position for position, _ in kept),
        content=content,
    )
