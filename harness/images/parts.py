"""Train, val and test of images that come without: the same every time."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness.dataset import PARTS
from harness.errors import HarnessError

SHARES = {"val": 0.2, "test": 0.3}  # as CoOp splits the datasets that come without a split

Contents = Callable[[Sequence[str]], list[bytes]]  # hashes of the bytes of images, by path


class Listed(NamedTuple):
    """An image of a list: its path below the folder, its class, its group if it has one."""

    path: str
    name: str
    group: str = ""


def split(images: Sequence[Listed], path: str, contents: Contents) -> dict[str, list[Listed]]:
    """Train, val and test, 5 : 2 : 3 of each class; groups, and copies of an image, stay together.

    Raises:
        HarnessError: an image is listed twice, a group has two classes, or a class is too small;
            it names the dataset by `path`.
    """
    twice = [p for p, count in Counter(image.path for image in images).items() if count > 1]
    if twice:
        raise HarnessError(
            f"{path} lists {twice[0]!r} more than once. List each image once, with one class."
        )
    by_class: dict[str, list[Listed]] = {}
    classes_of: dict[str, str] = {}
    for image in sorted(images):
        by_class.setdefault(image.name, []).append(image)
        if image.group and classes_of.setdefault(image.group, image.name) != image.name:
            raise HarnessError(
                f"{path}: the group {image.group!r} has images of two classes, "
                f"{classes_of[image.group]!r} and {image.name!r}. Give the split yourself, in "
                "a column of that name."
            )
    parts: dict[str, list[Listed]] = {part: [] for part in PARTS}
    for name, mine in by_class.items():
        units = _units(mine, contents)
        if len(units) < 3:  # hardly anything but copies
            units = _units(mine, None)
        rest = list(units)
        if len(rest) < 3:
            what = "groups" if any(image.group for image in mine) else "images"
            raise HarnessError(
                f"{path}: the class {name!r} has {len(rest)} {what}, too few to split "
                "into train, val and test. Add images, or give the split yourself."
            )
        sizes = {part: max(1, round(share * len(rest))) for part, share in SHARES.items()}
        for part, size in sizes.items():
            from sklearn.model_selection import train_test_split  # takes a second

            rest, taken = train_test_split(rest, test_size=size, random_state=0)
            parts[part] += [image for unit in taken for image in units[unit]]
        parts["train"] += [image for unit in rest for image in units[unit]]
    return parts


def _units(images: Sequence[Listed], contents: Contents | None) -> dict[str, list[Listed]]:
    """Images of one class that stay together: of a group, and copies of each other if their
    contents are given."""
    units: dict[str, list[Listed]] = {}
    first: dict[bytes, str] = {}
    known = contents([image.path for image in images]) if contents else [b""] * len(images)
    for image, content in zip(images, known, strict=True):
        unit = f"group {image.group}" if image.group else f"path {image.path}"
        if content and not image.group:
            unit = first.setdefault(content, unit)
        units.setdefault(unit, []).append(image)
    return units
