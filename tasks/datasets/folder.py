"""Your own images in class folders."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.images.own import (
    HarnessError,
    Item,
    Listed,
    UserImages,
    files_below,
    is_hidden,
    is_image,
    shown,
)

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Folder(UserImages):
    """Your own images: `folder:PATH` holds a folder a class, or train, val and test with them.

    Without a split each class is split once into train, val and test, 5 : 2 : 3 (scikit-learn,
    stratified, a fixed seed). The folders of a split may also be called training; valid,
    validation, dev; testing, eval, evaluation; in any case, and with `_set`, `_data` or `_images`
    behind. With train and val alone, val is what
    is scored. Files without the suffix of an image that is read are left out and counted.

    Source: your folder.
    """

    def listed(self) -> dict[str, list[Listed]]:
        parts = self._parts()
        if not parts:
            return {"": self._classes(self.home)}
        return {part: self._classes(self.home / name) for part, name in parts.items()}

    def left_out(self, root: Path | None) -> dict[str, int]:
        """By suffix; images that lie beside the class folders are in no class."""
        parts = [self.home / name for name in self._parts().values()]
        found: Counter[str] = Counter()
        for folder in parts or [self.home]:
            inside = [path for name in self._folders(folder)
                      for path in files_below(folder / name, self.home)]  # fmt: skip
            found.update(_suffix(path) for path in inside if not is_image(path))
        for folder in {self.home, *parts}:
            beside = [each.name for each in folder.iterdir() if not each.is_dir()]
            found.update(
                f"{_suffix(name)} in no class folder"
                for name in beside
                if is_image(name) and not is_hidden(name)
            )
        return dict(sorted(found.items()))

    def nested(self, items: Sequence[Item]) -> list[str]:
        """If all images lie in several folders of a class, which may be the classes."""
        depth = 1 if self._parts() else 0
        inner = dict[str, set[str]]()
        for item in items:
            name, *within, _ = Path(item.path).parts[depth:]
            inner.setdefault(name, set()).add("/".join(within))
        several = {name: folders for name, folders in inner.items() if len(folders) > 1}
        if not several or any("" in folders for folders in inner.values()):
            return []
        name = min(several)
        some = " and ".join(f"{name}/{each}" for each in sorted(several[name])[:2])
        return [f"classes, {shown(self.path)}: all images lie in folders of folders, such as "
                f"{shown(some)}, and {name!r} is taken for a class. If the inner folders are the "
                "classes, put them side by side in one folder, or give a csv: list."]  # fmt: skip

    def _parts(self) -> dict[str, str]:
        """The folder of each part, or nothing if the folders are classes.

        Raises:
            HarnessError: that is not certain, with what to give.
        """
        there = self._folders(self.home)
        if not there:
            raise HarnessError(f"{self.path} has no folders; one a class is expected.")
        found = splits_among(there)
        splits = list(found)
        if not splits:
            self._check_no_splits_inside(there)
            return {}
        others = [name for name in there if name not in splits]
        if others:
            raise HarnessError(
                f"{self.path} holds {', '.join(splits)} beside {_some(others)}. If they are "
                "splits, give a folder that holds them alone; if they are classes, a csv: list."
            )
        parts: dict[str, str] = {}
        for name in splits:
            part = found[name]
            if part in parts:
                raise HarnessError(
                    f"{self.path} has two folders for {part}: {parts[part]} and {name}. Keep one."
                )
            parts[part] = name
        if "train" not in parts:
            raise HarnessError(f"{self.path} has {_some(splits)}, but no train.")
        if len(parts) == 1:
            raise HarnessError(f"{self.path} has train, but neither test nor val.")
        return parts

    def _check_no_splits_inside(self, there: list[str]) -> None:
        """Splits one floor below would be mixed within a class."""
        for name in there:
            inside = self._folders(self.home / name)
            splits = list(splits_among(inside))
            if not splits:
                continue
            remedy = f"give folder:{self.home / name}" if len(there) == 1 else (
                "put the folders of the splits first, as in train/CLASS, or give a csv: list"
            )  # fmt: skip
            raise HarnessError(
                f"{self.path}: {name} holds {_some(splits)}, as a split does: {remedy}."
            )

    def _classes(self, folder: Path) -> list[Listed]:
        found = []
        for name in self._folders(folder):
            there = files_below(folder / name, self.home)
            paths = [path for path in there if is_image(path)]
            if not paths:
                counts = Counter(map(_suffix, there))
                some = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
                beside = f" that can be read, but {some}" if some else ""
                raise HarnessError(
                    f"{self.path}: the class folder {folder / name} has no images{beside}. Fill or "
                    "remove it."
                )
            found += [Listed(path, name) for path in paths]
        return found

    def _folders(self, folder: Path) -> list[str]:
        try:
            there = [each for each in folder.iterdir() if each.is_dir()]
        except OSError as error:
            raise HarnessError(f"{folder} cannot be read: {error.strerror}.") from error
        names = sorted(each.name for each in there if not is_hidden(each.name))
        for name in names:
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise HarnessError(
                    f"{self.path}: the folder name {name!r} is not UTF-8. Rename it."
                )
        return names


def _suffix(path: str) -> str:
    return Path(path).suffix.lower() or "without suffix"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def splits_among(names: Sequence[str]) -> dict[str, str]:
    """Which split each of some folders holds that lie side by side: by its name alone, or by what
    distinguishes it from others, as in seg_train and seg_test, or train2017 and val2017."""
    exact = {name: split_of(name) for name in names}
    found = {name: part for name, part in exact.items() if part}
    if found:
        return found
    alike: dict[str, dict[str, str]] = {}
    for name in names:
        words = re.findall("[a-z]+", name.lower())
        parts = [SPLITS[word] for word in words if word in SPLITS]
        if len(parts) == 1:
            rest = " ".join(word for word in words if word not in SPLITS)
            alike.setdefault(rest, {})[name] = parts[0]
    return next((each for each in alike.values() if {"train"} < set(each.values())), {})


def split_of(name: str) -> str | None:
    """Which split a folder of this name holds: train, val, test, or none."""
    word = re.sub(r"[ _-]?(set|data|images)$", "", name.lower())
    return SPLITS.get(word)
