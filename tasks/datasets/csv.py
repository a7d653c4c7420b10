"""Your own images in a csv list."""

from dataclasses import dataclass
from pathlib import Path

from harness.images.own import PARTS, HarnessError, UserImages, rows


@dataclass(frozen=True, kw_only=True)
class Csv(UserImages):
    """Your own images: `csv:FILE` lists path,label or path,label,split (train, val or test).

    The first line names the columns. Paths are relative to the file's folder and stay below it.
    Without a split each class is split once into train, val and test, 5 : 2 : 3 (scikit-learn,
    stratified, a fixed seed).

    Source: your file.
    """

    @property
    def home(self) -> Path:
        return Path(self.path).parent

    def listed(self) -> dict[str, list[tuple[str, str]]]:
        header, *listed = rows(Path(self.path), self.path, 2) or [[]]
        columns = [name.lower() for name in header]
        if columns not in (["path", "label"], ["path", "label", "split"]):
            raise HarnessError(
                f"{self.path} must begin with the line `path,label` or `path,label,split`, not "
                f"{','.join(header)!r}."
            )
        found: dict[str, list[tuple[str, str]]] = {}
        for row in listed:
            part = row[2].lower() if len(columns) == 3 and len(row) > 2 else ""
            if len(columns) == 3 and part not in PARTS:
                raise HarnessError(
                    f"{self.path}: the split of {row[0]} must be train, val or test, not {part!r}."
                )
            found.setdefault(part, []).append((row[0], row[1]))
        return found
