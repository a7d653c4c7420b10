"""What a dataset is, at a glance: classes, halves, prompts, numbers and sizes of images, copies."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.dataset import PARTS, Classes, Dataset, Item
from harness.errors import HarnessError
from harness.images.library import unread
from harness.records.tables import plain_table
from harness.splits import class_names, read_lists

OPENED = 200  # images whose sizes are looked at, evenly spread over the lists


def describe(name: str, dataset: Dataset, root: Path | None) -> str:
    """The description of a dataset as text; of one that is not on disk, what is known of it."""
    about = dataset.published
    lines = []
    if about:
        lines += [f"home: {about.home}", f"licence: {about.licence}", f"download: {about.size}"]
    try:
        lists = read_lists(name, dataset, root)
    except HarnessError as error:
        if about is None:
            raise
        return "\n".join([*lines, f"published: {about.classes} classes", str(error)])
    names = tuple(class_names(lists["train"] or lists["test"]))
    half = (len(names) + 1) // 2
    prompts = Classes(name, names[:3], dataset.template).texts(dataset.template)
    lines += [
        f"{len(names)} classes: base {_ends(names[:half])}, new {_ends(names[half:])}",
        f"template: {' | '.join(dataset.template.splitlines())}",
        f"prompts: {' | '.join(prompt for each in prompts for prompt in each)}",
        _sizes(dataset, root, lists),
        *unread(name, dataset, root),
    ]
    return f"{plain_table(_counts(lists))}\n\n" + "\n".join(lines)


def _counts(lists: Mapping[str, Sequence[Item]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for part in PARTS:
        each = Counter(item.label for item in lists[part]).values()
        if each:
            rows.append({"split": part, "images": len(lists[part]), "classes": len(each),
                         "min a class": min(each), "median": f"{statistics.median(each):g}",
                         "max": max(each)})  # fmt: skip
    return rows


def _sizes(dataset: Dataset, root: Path | None, lists: Mapping[str, Sequence[Item]]) -> str:
    """The least, middle and greatest width and height of some images."""
    every = [item for part in PARTS for item in lists[part]]
    found, bad = list[tuple[int, int]](), 0
    for item in every[:: max(1, len(every) // OPENED)][:OPENED]:
        try:
            found.append(dataset.open(item, root).size)
        except HarnessError:
            bad += 1
    if not found:
        return f"sizes: none of {bad} images that were opened can be read"
    wide, high = ([size[axis] for size in found] for axis in (0, 1))
    said = ", ".join(
        f"{what} {min(each)} to {max(each)} (median {statistics.median(each):g})"
        for what, each in (("width", wide), ("height", high))
    )
    unreadable = f"; {bad} cannot be read" if bad else ""
    return f"sizes of {len(found)} of {len(every):,} images: {said} pixels{unreadable}"


def _ends(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return f"{names[0]!r} to {names[-1]!r} ({len(names)})"
