"""Your own images in class folders."""

from dataclasses import dataclass
from pathlib import Path

from harness.images.own import HarnessError, UserImages, images_below

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Folder(UserImages):
    """Your own images: `folder:PATH` holds a folder a class, or train, val and test with them.

    Without a split each class is split once into train, val and test, 5 : 2 : 3 (scikit-learn,
    stratified, a fixed seed). With train and val alone, val is what is scored.

    Source: your folder.
    """

    def listed(self) -> dict[str, list[tuple[str, str]]]:
        parts = {each.lower(): each for each in self._folders(self.home)}
        if not parts:
            raise HarnessError(f"{self.path} has no folders; one a class is expected.")
        if not set(parts) <= set(SPLITS) or "train" not in map(SPLITS.get, parts):
            return {"": self._classes(self.home)}
        found: dict[str, list[tuple[str, str]]] = {}
        for name, there in parts.items():
            found.setdefault(SPLITS[name], []).extend(self._classes(self.home / there))
        if not {"test", "val"} & set(found):
            raise HarnessError(f"{self.path} has train, but neither test nor val.")
        return found

    def _classes(self, folder: Path) -> list[tuple[str, str]]:
        found = []
        for name in self._folders(folder):
            paths = images_below(folder / name, self.home)
            if not paths:
                raise HarnessError(
                    f"{self.path}: the class folder {folder / name} has no images. Fill or remove "
                    "it."
                )
            found += [(path, name) for path in paths]
        return found

    def _folders(self, folder: Path) -> list[str]:
        try:
            there = [each for each in folder.iterdir() if each.is_dir()]
        except OSError as error:
            raise HarnessError(f"{folder} cannot be read: {error.strerror}.") from error
        return sorted(each.name for each in there if not each.name.startswith("."))
