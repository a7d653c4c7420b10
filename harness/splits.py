"""Which images: CoOp's few-shot lists, base and new classes, the same for every dataset."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness.dataset import Classes, Item
from harness.errors import HarnessError


@dataclass(frozen=True)
class Split:
    """Images with their classes, and where each image stood before classes were selected.

    `positions` are indices into the list before the classes were selected: what augmentation
    depends on. `content` is the dataset's hash of what the list does not show. `skipped` are paths
    of images that were left out because they cannot be read.
    """

    items: tuple[Item, ...]
    classes: Classes
    positions: tuple[int, ...]
    content: str
    skipped: tuple[str, ...] = ()

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

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the exact list: paths, labels, names, order and positions; and of `content`."""
        lines = [
            f"{item.path}\t{item.label}\t{item.name}\t{position}"
            for item, position in zip(self.items, self.positions, strict=True)
        ]
        text = "\n".join([*lines, repr(self.classes), self.content])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def few_shot(
    train: Sequence[Item], val: Sequence[Item], shots: int, seed: int
) -> tuple[list[Item], list[Item]]:
    """`shots` images a class of train, then min(shots, 4) of val, from one random stream.

    Classes are visited in order of first appearance; a class with fewer images gives all of them
    without a draw. This is what CoOp draws for SEED = seed, list for list. Without a val list the
    second draw is from what the first one left of train.

    Source: Dassl base_dataset.py, generate_fewshot_dataset; CoOp datasets/*.py.
    """
    stream = random.Random(seed)
    drawn = _sample(train, shots, stream)
    taken = set(drawn) if not val else set()
    return drawn, _sample(val or [i for i in train if i not in taken], min(shots, 4), stream)


def _sample(items: Sequence[Item], count: int, stream: random.Random) -> list[Item]:
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    chosen = []
    for group in by_label.values():
        chosen += stream.sample(group, count) if len(group) >= count else group
    return chosen


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
        HarnessError: no image of the subset is among the items.
    """
    names = classes.names
    half = (len(names) + 1) // 2
    first, last = {"all": (0, len(names)), "base": (0, half), "new": (half, len(names))}[subset]
    kept = [
        (position, Item(item.path, item.label - first, item.name))
        for position, item in enumerate(items)
        if first <= item.label < last
    ]
    if not kept:
        raise HarnessError(f"{classes.dataset} has no {split} images of its {subset} classes.")
    return Split(
        items=tuple(item for _, item in kept),
        classes=replace(classes, names=names[first:last]),
        positions=tuple(position for position, _ in kept),
        content=content,
    )
