"""Your own images in a csv list."""

import os
from dataclasses import dataclass
from pathlib import Path

from harness.images.own import PARTS, HarnessError, Listed, UserImages, rows

COLUMNS = ("path", "label", "split", "group")


@dataclass(frozen=True, kw_only=True)
class Csv(UserImages):
    """Your own images: `csv:FILE` lists a path and a label a line, and a split if you have one.

    The first line names the columns: path, label and perhaps split (train, val or test) and group,
    in any order; others are not read. Paths are relative to the file's folder, or absolute and
    below it; a backslash separates folders as a slash does. Without a split each class is split
    once into train, val and test, 5 : 2 : 3 (scikit-learn, stratified, a fixed seed).

    Images of one group are not independent (frames of a video, photographs of one animal):
    intervals count groups, and a split that is made here keeps them together.

    Source: your file.
    """

    @property
    def home(self) -> Path:
        return Path(self.path).parent

    def listed(self) -> dict[str, list[Listed]]:
        (_, header), *listed = rows(Path(self.path), self.path) or [(1, [])]
        columns = [name.lower() for name in header]
        counts = [columns.count(name) for name in COLUMNS]
        if counts[:2] != [1, 1] or max(counts) > 1:
            raise HarnessError(
                f"{self.path} must begin with a line that names the columns path and label, and "
                f"perhaps split and group, once each, not {','.join(header)!r}."
            )
        found: dict[str, list[Listed]] = {}
        for line, row in listed:
            if len(row) > len(columns):
                raise HarnessError(
                    f"{self.path}, line {line}: {len(row)} values for {len(columns)} columns, in "
                    f"{','.join(row)!r}. Put a value that holds a comma into quotes."
                )
            given = dict(zip(columns, row, strict=False))
            path, label, part, group = (given.get(name, "") for name in COLUMNS)
            if not path or not label:
                raise HarnessError(
                    f"{self.path}, line {line}: a path and a label are expected, not "
                    f"{','.join(row)!r}."
                )
            if counts[2] and part.lower() not in PARTS:
                raise HarnessError(
                    f"{self.path}: the split of {path} must be train, val or test, not {part!r}."
                )
            listed_here = found.setdefault(part.lower(), [])
            listed_here.append(Listed(self._relative(path), label, group))
        return found

    def notes(self) -> list[str]:
        (_, header), *_ = rows(Path(self.path), self.path)
        unread = [repr(name) for name in header if name.lower() not in (*COLUMNS, "")]
        found = super().notes()
        if unread:
            found.append(f"not read, of {self.path}: the columns {', '.join(unread)}.")
        lists = self.read(None)
        trained = {item.group for part in ("train", "val") for item in lists[part]} - {""}
        both = sorted({item.group for item in lists["test"]} & trained)
        if both:
            found.append(
                f"groups, {self.path}: {len(both)} are in test and in train or val, such as "
                f"{both[0]!r}: what is scored is not independent of what was trained on."
            )
        return found

    def _relative(self, path: str) -> str:
        """An absolute path below the file's folder as a relative one, any other as it is."""
        path = path.replace("\\", "/")
        for home in (os.path.abspath(self.home), os.path.realpath(self.home)):  # noqa: PTH100
            if path.startswith(f"{home}/"):
                return path.removeprefix(f"{home}/")
        return path
