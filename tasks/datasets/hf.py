"""Hugging Face datasets: of the Hub by name, or of your own disk."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import harness.images.arrow as arrow
from harness.images.contained import ContainedImages
from harness.images.own import HarnessError, Listed, composed
from harness.tasks.datasets.folder import split_of

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?")


@dataclass(frozen=True, kw_only=True)
class Hf(ContainedImages):
    """Hugging Face datasets: `hf:OWNER/NAME[@REVISION]` of the Hub, or `hf:PATH` on your disk.

    A path is a folder of save_to_disk, or parquet files. The columns of images and of labels are
    found by their types, or given. Classes are in the order of ClassLabel, else in natural order of
    the column's values. The usual names of splits are known (see `folder`); others are given with
    --splits. Of a single split each class is split once into train, val and test, 5 : 2 : 3. No
    loading script is ever run. Needs the extra [datasets].

    Source: your dataset.
    """

    requires: ClassVar[str] = "datasets"

    image_column: str = field(default="", metadata={"source": "--image-column"})
    label_column: str = field(default="", metadata={"source": "--label-column"})
    configuration: str = field(default="", metadata={"source": "--configuration"})
    splits: str = field(default="", metadata={"source": "--splits"})

    @classmethod
    def remote(cls, path: str) -> str:
        """The name on the Hub that stands where a path was expected.

        Raises:
            HarnessError: it can only be a path.
        """
        if not NAME.fullmatch(path) or path.endswith((".parquet", ".arrow")):
            raise HarnessError(
                f"there is no file or folder {path}. Give hf:PATH, or hf:OWNER/NAME[@REVISION] for "
                "a dataset of the Hugging Face Hub."
            )
        return path

    def files(self) -> list[Path]:
        return arrow.files(self.path, self.configuration)

    def content_of(self, paths: object) -> str:
        """Of a dataset of the Hub its resolved revision stands for the files."""
        revision = self._table().revision
        own = super().content_of([]) if not revision else ""
        return f"{own}{revision} {self.image_column}".strip()

    def fetch(self) -> Path:
        """Downloads what the Hub has; where the library keeps it.

        Raises:
            HarnessError: it is on this disk as it is.
        """
        if self.files():
            raise HarnessError(f"hf:{self.path} needs no download.")
        return self._table().home

    def encoded(self, path: str) -> bytes:
        split, _, row = path.rpartition("/")
        return self._table().image(split, int(row), self._columns()[0])

    def listed(self) -> dict[str, list[Listed]]:
        table, (_, label) = self._table(), self._columns()
        found: dict[str, list[Listed]] = {}
        for part, split in self._parts().items():
            names = table.labels(split, label)
            if any(name is not None and not name.strip() for name in names):
                raise HarnessError(
                    f"{self.path}: images of the split {split!r} have a class of {label!r} without "
                    "a name. Give it one in ClassLabel."
                )
            missing = names.count(None)
            if missing:
                raise HarnessError(
                    f"{self.path}: {missing:,} of {len(names):,} rows of the split {split!r} have "
                    f"no label in {label!r}. Leave the split out with --splits, or give another "
                    "--label-column."
                )
            found[part] = [
                Listed(f"{split}/{row:08d}", name) for row, name in enumerate(names) if name
            ]
        return found

    def ordered(self, names: object) -> list[str]:
        there = set(super().ordered(names))  # type: ignore[arg-type]
        given = [composed(name) for name in self._table().class_names(self._columns()[1])]
        return [name for name in given if name in there] or super().ordered(there)

    def notes(self) -> list[str]:
        found, table, label = super().notes(), self._table(), self._columns()[1]
        unread = sorted(set(table.splits) - set(self._parts().values()))
        if unread:
            found.append(f"not read, of {self.path}: the splits {', '.join(unread)}.")
        lists = self.read(None)
        held = Counter(item.name for each in lists.values() for item in each)
        without = len(table.class_names(label)) - len(held)
        if without > 0:
            found.append(f"classes, {self.path}: {without} of {label!r} have no image.")
        return found

    def _table(self) -> arrow.Table:
        return arrow.opened(self.path, self.configuration, self.marked())

    def _columns(self) -> tuple[str, str]:
        return self._table().columns(self.image_column, self.label_column)

    def _parts(self) -> dict[str, str]:
        """The dataset's own split of each part; under "" the one that is to be split."""
        there = self._table().splits
        if self.splits:
            return self._given(there)
        if len(there) == 1:
            return {"": there[0]}
        parts: dict[str, str] = {}
        for split in there:
            part = split_of(split)
            if part in parts:
                raise HarnessError(
                    f"{self.path} has two splits for {part}: {parts[part]} and {split}. Say which "
                    f"with --splits {part}={split}."
                )
            if part:
                parts[part] = split
        if "train" not in parts or len(parts) == 1:
            raise HarnessError(
                f"{self.path} has the splits {', '.join(there)}: say what they are with --splits "
                "train=NAME,val=NAME,test=NAME, or train=NAME alone to split it."
            )
        return parts

    def _given(self, there: list[str]) -> dict[str, str]:
        parts: dict[str, str] = {}
        for pair in self.splits.split(","):
            part, _, split = (each.strip() for each in pair.partition("="))
            if part not in ("train", "val", "test") or part in parts or not split:
                raise HarnessError(
                    f"--splits {self.splits!r} is not of the form train=NAME,val=NAME,test=NAME."
                )
            if split not in there:
                raise HarnessError(
                    f"{self.path} has no split {split!r}. It has {', '.join(there)}."
                )
            parts[part] = split
        if len(set(parts.values())) < len(parts) or "train" not in parts:
            raise HarnessError(f"--splits {self.splits!r} needs train, and each split once.")
        return {"": parts["train"]} if len(parts) == 1 else parts
