"""Tar shards in the layout that CLIP_benchmark publishes."""

from dataclasses import dataclass, field
from pathlib import Path

import harness.images.shards as shards
from harness.images.contained import ContainedImages, read_text, reason
from harness.images.own import HarnessError, Listed, composed, is_hidden
from harness.tasks.datasets.folder import split_of

TEMPLATES = "zeroshot_classification_templates.txt"


@dataclass(frozen=True, kw_only=True)
class Wds(ContainedImages):
    """Tar shards: `wds:PATH` holds train/*.tar and test/*.tar, as CLIP_benchmark publishes them.

    A sample is an image and its class number in a .cls file of the same name. classnames.txt names
    the classes in the order of their numbers. Its zero-shot templates are the prompts, unless
    --template gives others. Shards are indexed once and read without extracting them. With test
    alone, or train alone, each class is split once into train, val and test, 5 : 2 : 3; with train
    and val alone, val is scored.

    Source: your folder.
    Differs: CLIP_benchmark shows images as they are stored, without turning them or a white ground,
        leaves underscores in names, and keeps classes without images in the classifier.
    """

    template: str = field(  # type: ignore[misc]
        default="", metadata={"source": f"--template, or {TEMPLATES}"}
    )

    def __post_init__(self) -> None:
        if not self.template and self.path:
            object.__setattr__(self, "template", "\n".join(self._templates()))

    def files(self) -> list[Path]:
        beside = [self.home / name for name in ("classnames.txt", TEMPLATES)]
        shards_of = [path for paths in self._shards().values() for path in paths]
        return sorted([*shards_of, *(path for path in beside if path.is_file())])

    def encoded(self, path: str) -> bytes:
        shard, _, member = path.partition(".tar/")
        return shards.index(self.home / f"{shard}.tar", self.path).encoded(member)

    def listed(self) -> dict[str, list[Listed]]:
        names = self._names()
        found: dict[str, list[Listed]] = {}
        for part, paths in self._shards().items():
            found[part] = []
            for path in paths:
                where = path.relative_to(self.home).as_posix()
                for member, label in shards.index(path, self.path).labels.items():
                    if not 0 <= label < len(names):
                        raise HarnessError(
                            f"{self.path}: {where} gives {member} the class {label}; "
                            f"classnames.txt names {len(names)} classes, from 0."
                        )
                    found[part].append(Listed(f"{where}/{member}", names[label]))
        return found if len(found) > 1 else {"": next(iter(found.values()), [])}

    def ordered(self, names: object) -> list[str]:
        there = set(super().ordered(names))  # type: ignore[arg-type]
        return [name for name in self._names() if name in there]

    def left_out(self, root: Path | None) -> dict[str, int]:
        found: dict[str, int] = {}
        for paths in self._shards().values():
            for path in paths:
                for suffix, count in shards.index(path, self.path).left_out.items():
                    found[suffix] = found.get(suffix, 0) + count
        return dict(sorted(found.items()))

    def notes(self) -> list[str]:
        found, lists = super().notes(), self.read(None)
        without = len(self._names()) - len({item.name for item in lists["train"]})
        if without:
            found.append(f"classes, {self.path}: {without} of classnames.txt have no image.")
        return found

    def _shards(self) -> dict[str, list[Path]]:
        """The shards of each part, in natural order of their names.

        Raises:
            HarnessError: there are none, or two folders of one part.
        """
        parts: dict[str, list[Path]] = {}
        try:
            folders = sorted(each for each in self.home.iterdir() if each.is_dir())
        except OSError as error:
            raise HarnessError(f"{self.path} cannot be read: {reason(error)}.") from error
        for folder in folders:
            part = split_of(folder.name)
            found = sorted(each for each in folder.glob("*.tar") if not is_hidden(each.name))
            if not found or part is None:
                continue
            if part in parts:
                raise HarnessError(f"{self.path} has two folders for {part}. Keep one.")
            self._check_count(folder, found)
            for path in found:
                if not path.resolve().is_relative_to(self.home.resolve()):
                    raise HarnessError(f"{path} is a link that leaves {self.path}.")
            parts[part] = found
        if not parts:
            raise HarnessError(
                f"{self.path} has no shards: train/*.tar and test/*.tar are expected, beside "
                "classnames.txt."
            )
        return parts

    def _check_count(self, folder: Path, found: list[Path]) -> None:
        """CLIP_benchmark says in nshards.txt how many there are, numbered from 0."""
        if not (folder / "nshards.txt").is_file():
            return
        said = read_text(folder / "nshards.txt", self.path).strip()
        there = sorted(each.stem for each in found)
        if not said.isdecimal() or there != sorted(str(i) for i in range(int(said))):
            raise HarnessError(
                f"{self.path}: {folder.name}/nshards.txt says {said!r}, and there are "
                f"{len(found)} shards ({', '.join(there[:5])}). Complete the download, or remove "
                "the file."
            )

    def _names(self) -> list[str]:
        names = [composed(name) for name in self._lines("classnames.txt")]
        if not names or "" in names or len(set(names)) < len(names):
            what = "is empty"
            for line, name in enumerate(names, 1):
                if (first := names.index(name) + 1) < line:
                    what = (
                        f"names two classes {name!r}, in lines {first} and {line}: one prompt "
                        "cannot tell them apart. Give one of them a name of its own"
                    )
                    break
            if "" in names:  # who skips it numbers the classes otherwise
                what = f"has an empty line, {names.index('') + 1}, before its end"
            raise HarnessError(f"{self.home / 'classnames.txt'} {what}.")
        return names

    def _templates(self) -> list[str]:
        """The dataset's zero-shot templates, with {} for the class name."""
        if not (self.home / TEMPLATES).is_file():
            return ["a photo of a {}."]
        found = [line.replace("{c}", "{}") for line in self._lines(TEMPLATES) if line]
        if not found or any("{}" not in each for each in found):
            raise HarnessError(f"{self.home / TEMPLATES}: each line needs {{c}} for the class.")
        return found

    def _lines(self, name: str) -> list[str]:
        text = read_text(self.home / name, f"wds:{self.path}")
        return [line.strip() for line in text.rstrip().splitlines()]
