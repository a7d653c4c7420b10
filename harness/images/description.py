"""What a dataset is, at a glance: classes, halves, prompts, numbers and sizes of images, copies."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.dataset import PARTS, Classes, Dataset, Item, Lists
from harness.errors import HarnessError
from harness.images import library
from harness.records.tables import plain_table
from harness.splits import class_names, read_lists

OPENED = 200  # images whose sizes are looked at, evenly spread over the lists


@dataclass
class Description:
    """What is known of a dataset. problem: why it is not read; published: what is known of it
    anyway; splits: the images of each class, in label order; sizes: what was opened, the width and
    height of what can be read."""

    dataset: str
    published: dict[str, Any] | None = None
    problem: str | None = None
    classes: Sequence[str] = ()
    base: Sequence[str] = ()
    new: Sequence[str] = ()
    templates: Sequence[str] = ()
    prompts: Sequence[str] = ()  # of three classes
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    opened: int = 0
    sizes: Sequence[tuple[int, int]] = ()
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        about, lines = self.published, list[str]()
        if about:
            lines += [f"{name}: {about[name]}" for name in ("home", "licence", "download")]
        if self.problem:
            known = [f"published: {about['classes']} classes"] if about else []
            return "\n".join([*lines, *known, self.problem])
        lines += [
            f"{len(self.classes)} classes: base {_ends(self.base)}, new {_ends(self.new)}",
            f"template{'s' * (len(self.templates) > 1)}: {' | '.join(self.templates)}",
            f"prompts: {' | '.join(self.prompts)}",
            self._sizes(),
            *self.notes,
        ]
        rows = [
            {"split": part, "images": each["images"], "classes": each["classes"],
             "min a class": each["min"], "median": f"{each['median']:g}", "max": each["max"]}
            for part, each in self.splits.items()
        ]  # fmt: skip
        return f"{plain_table(rows)}\n\n" + "\n".join(lines)

    def _sizes(self) -> str:
        """The least, middle and greatest width and height of some images."""
        bad = self.opened - len(self.sizes)
        if not self.sizes:
            return f"sizes: none of {bad} images that were opened can be read"
        wide, high = ([size[axis] for size in self.sizes] for axis in (0, 1))
        said = ", ".join(
            f"{what} {min(each)} to {max(each)} (median {statistics.median(each):g})"
            for what, each in (("width", wide), ("height", high))
        )
        unreadable = f"; {bad} cannot be read" if bad else ""
        every = sum(each["images"] for each in self.splits.values())
        return f"sizes of {len(self.sizes)} of {every:,} images: {said} pixels{unreadable}"


def describe(name: str, dataset: Dataset, root: Path | None) -> Description:
    """The description of a dataset; of one that is not on disk, what is known of it.

    Raises:
        HarnessError: nothing is known of it but that it cannot be read.
    """
    about, found = dataset.published, Description(name)
    if about:
        found.published = {
            "home": about.home, "licence": about.licence, "download": about.size,
            "classes": about.classes, "images": {**about.images},
        }  # fmt: skip
    try:
        lists = read_lists(name, dataset, root)
    except HarnessError as error:
        if about is None:
            raise
        found.problem = str(error)
        return found
    names = class_names(lists["train"] or lists["test"])
    half = (len(names) + 1) // 2
    found.classes, found.base, found.new = names, names[:half], names[half:]
    found.templates = dataset.template.splitlines()
    prompts = Classes(name, tuple(names[:3]), dataset.template).texts(dataset.template)
    found.prompts = [prompt for each in prompts for prompt in each]
    found.splits = {part: _count(lists[part], len(names)) for part in PARTS if lists[part]}
    found.opened, found.sizes = _opened(dataset, root, lists)
    found.notes = library.unread(name, dataset, root)
    return found


def _count(items: Sequence[Item], classes: int) -> dict[str, Any]:
    counts = Counter(item.label for item in items)
    there = counts.values()
    return {
        "images": len(items), "classes": len(counts), "min": min(there),
        "median": statistics.median(there), "max": max(there),
        "by_class": [counts[label] for label in range(classes)],
    }  # fmt: skip


def _opened(dataset: Dataset, root: Path | None, lists: Lists) -> tuple[int, list[tuple[int, int]]]:
    """How many images were opened, and the sizes of those that can be read."""
    every = [item for part in PARTS for item in lists[part]]
    chosen, found = every[:: max(1, len(every) // OPENED)][:OPENED], list[tuple[int, int]]()
    for item in chosen:
        try:
            found.append(dataset.open(item, root).size)
        except HarnessError:
            continue
    return len(chosen), found


def _ends(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return f"{names[0]!r} to {names[-1]!r} ({len(names)})"
