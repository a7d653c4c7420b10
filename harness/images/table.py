"""Tables of images that the library `datasets` reads: memory-mapped, by row."""

import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import reason, regular_file

LABELS = ("label", "labels", "class", "target")


@dataclass(frozen=True, eq=False)
class Table:
    """The splits of a dataset. revision: of the Hub, the commit that was read; else nothing."""

    path: str
    parts: Mapping[str, Any]
    revision: str = ""

    @property
    def splits(self) -> list[str]:
        """The names of its splits."""
        return list(self.parts)

    def columns(self, image: str, label: str) -> tuple[str, str]:
        """The columns of images and of labels: those that are given, or that their types tell.

        Raises:
            HarnessError: none or several, with what there is.
        """
        import datasets

        features = next(iter(self.parts.values())).features
        for split, part in self.parts.items():
            if part.features.keys() != features.keys():
                raise HarnessError(f"{self.path}: the split {split!r} has other columns.")
        for given in filter(None, (image, label)):
            if given not in features:
                raise HarnessError(
                    f"{self.path} has no column {given!r}. It has {', '.join(features)}."
                )
        one = features.get(image)
        if image and not (isinstance(one, datasets.Image) or _holds_bytes(one)):
            raise HarnessError(
                f"{self.path}: the column {image!r} does not hold one image a row, but {one}."
            )
        images = [n for n, each in features.items() if isinstance(each, datasets.Image)]
        images = images or [n for n, each in features.items() if _holds_bytes(each)]
        classes = [n for n, each in features.items() if isinstance(each, datasets.ClassLabel)]
        values = [n for n, each in features.items() if _holds_values(each)]
        likely = [n for n in values if n in LABELS]
        classes = [*classes, *(n for n in likely if n not in classes)] or values
        return (
            image or self._only("image", images, features),
            label or self._only("label", classes, features),
        )

    def _only(self, what: str, found: Sequence[str], features: Mapping[str, Any]) -> str:
        if len(found) != 1:
            some = "several columns" if found else "no column"
            raise HarnessError(
                f"{self.path} has {some} of {what}s ({', '.join(found or features)}). Say which "
                f"with --{what}-column."
            )
        return found[0]

    def class_names(self, column: str) -> list[str]:
        """The names of ClassLabel, in its order; none of another column."""
        every = [getattr(part.features[column], "names", None) for part in self.parts.values()]
        if any(names != every[0] for names in every):
            raise HarnessError(
                f"{self.path}: the splits name the classes of {column!r} differently. Store them "
                "with one ClassLabel."
            )
        return list(every[0] or [])

    def labels(self, split: str, column: str) -> list[str | None]:
        """The class of every row; None of one that has none, which a negative number says, too.

        Raises:
            HarnessError: the column holds something else.
        """
        names = self.class_names(column)
        part = self.parts[split].select_columns([column]).with_format("arrow")
        values = part[:].column(column).to_pylist() if len(part) else []
        if names:
            if any(value is not None and value >= len(names) for value in values):
                raise HarnessError(f"{self.path}: {column!r} has labels that have no name.")
            return [None if value is None or value < 0 else names[value] for value in values]
        kinds = Counter(map(type, values)).keys() - {type(None)}
        if not kinds <= {int, str}:
            raise HarnessError(
                f"{self.path}: {column!r} holds {', '.join(sorted(k.__name__ for k in kinds))}; "
                "labels are text or whole numbers. Give another --label-column."
            )
        texts = {
            value: None if type(value) is int and value < 0 else str(value).strip() or None
            for value in set(values) - {None}
        }
        return [texts.get(value) for value in values]

    def image(self, split: str, row: int, column: str) -> bytes:
        """The bytes of an image as they are stored.

        Raises:
            HarnessError: there are none.
        """
        value = self._encoded(column)[split][row][column]
        value = value if isinstance(value, Mapping) else {"bytes": value}
        if isinstance(value.get("bytes"), bytes):
            return value["bytes"]
        where, name = value.get("path"), f"{self.path}: row {row} of {split}"
        if not where:
            raise HarnessError(f"{name} has no image in {column!r}.")
        home, real = os.path.realpath(self.home), os.path.realpath(where)
        if os.path.commonpath([home, real]) != home:
            raise HarnessError(f"{name} refers to {where}, which is outside of the dataset.")
        try:
            return regular_file(Path(real)).read_bytes()
        except OSError as error:
            raise HarnessError(f"{name}: {where} cannot be read: {reason(error)}.") from error

    @property
    def home(self) -> Path:
        """The folder that may hold images in files of their own."""
        import datasets

        return Path(datasets.config.HF_CACHE_HOME if self.revision else self.path)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - few tables, and each for as long as the process
    def _encoded(self, column: str) -> dict[str, Any]:
        import datasets

        parts = {split: part.select_columns([column]) for split, part in self.parts.items()}
        if isinstance(next(iter(parts.values())).features[column], datasets.Image):
            undecoded = datasets.Image(decode=False)
            parts = {split: part.cast_column(column, undecoded) for split, part in parts.items()}
        return parts


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return getattr(feature.get("bytes"), "dtype", "") in ("binary", "large_binary")
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _holds_values(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return kind in ("string", "large_string") or kind.startswith(("int", "uint"))
