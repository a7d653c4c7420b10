"""Your own images inside larger files: rows of a table, members of an archive."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image

from harness.code import code_hash
from harness.dataset import PARTS, Dataset, Item
from harness.decoding import open_rgb, rgb_of
from harness.errors import HarnessError, first_sentence
from harness.files import ARCHIVES, is_hidden, path_below, read_text, reason, shown, stamp
from harness.images.cache import Tensors
from harness.images.contents import DIGESTS
from harness.images.own import UserImages
from harness.rgb import to_rgb

__all__ = ["ARCHIVES", "DIGESTS", "ContainedImages", "HarnessError", "first_sentence",
           "is_hidden", "open_rgb", "path_below", "read_text", "reason", "to_rgb"]  # fmt: skip

GROUP = 1000  # images whose hashes are kept together
_STAMPS: dict["ContainedImages", str] = {}  # of this process, renewed whenever lists are read
_LISTS: dict["ContainedImages", tuple[str, dict[str, list[Item]]]] = {}


@dataclass(frozen=True, kw_only=True)
class ContainedImages(UserImages):
    """Images that are read from the inside of larger files, without extracting them.

    most: of more images than that, a plan does not look for copies, which opens every one.
    """

    most: ClassVar[int] = 20_000

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that hold the images, sorted."""

    @abstractmethod
    def encoded(self, path: str) -> bytes:
        """The bytes of an image as they are kept.

        Raises:
            HarnessError: it is not there.
        """

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        """Read once as long as the files stay the same ones: there may be a million images."""
        mark = self.renewed()
        if _LISTS.get(self, ("", {}))[0] != mark:
            _LISTS[self] = (mark, super().read(root))
        return {part: [*items] for part, items in _LISTS[self][1].items()}

    def renewed(self) -> str:
        """What changes when one of the files does; looked at again."""
        marks = "\n".join(f"{path}\t{stamp(path)}" for path in self.files())
        _STAMPS[self] = hashlib.sha256(marks.encode(errors="surrogatepass")).hexdigest()[:16]
        return _STAMPS[self]

    def marked(self) -> str:
        """The same, as it was when the lists were read."""
        return _STAMPS.get(self) or self.renewed()

    def open(self, item: Item, root: Path | None) -> Image.Image:
        return rgb_of(self.encoded(item.path), item.path, shown(self.path))

    def file(self, item: Item, root: Path | None) -> Path | None:
        return None

    def stamp(self, item: Item, root: Path | None) -> str:
        return self.marked()

    def content(self, root: Path | None) -> str:
        return self.content_of([])

    def content_of(self, paths: Iterable[str]) -> str:
        """A hash of the files that hold the images, wherever they lie, and of the code that reads
        them: which of the images are asked for plays no part."""
        files = self.files()
        code = code_hash(type(self), Dataset, "harness.tasks.datasets")
        digests = sorted(
            (path.relative_to(self.home).as_posix(), digest.hex())
            for path, digest in zip(files, DIGESTS.of(files), strict=True)
        )
        return hashlib.sha256(f"{code} {digests!r}".encode()).hexdigest()[:16]

    def contents(self, paths: Sequence[str]) -> list[bytes]:
        found: list[bytes] = []
        for start in range(0, len(paths), GROUP):
            group = paths[start : start + GROUP]

            def compute(some: Sequence[str] = group) -> Tensors:
                digests = b"".join(map(self._digest, some))
                return {"x": torch.frombuffer(bytearray(digests), dtype=torch.uint8)}

            key = (self.marked(), *group)
            kept = DIGESTS.disk.get("contents", key, compute) if DIGESTS.disk else compute()
            rows = kept["x"].view(len(group), 32).numpy()
            found += [row.tobytes() if row.any() else b"" for row in rows]
        return found

    def notes(self) -> list[str]:
        lists = self.read(None)
        count = sum(len(lists[part]) for part in PARTS)
        if count <= self.most:
            return super().notes()
        return [
            f"copies, {shown(self.path)}: not looked for among {count:,} images; "
            "`python -m harness data verify` does."
        ]

    def _digest(self, path: str) -> bytes:
        try:
            return hashlib.sha256(self.encoded(path)).digest()
        except HarnessError:
            return bytes(32)

    def _check_inside(self, paths: Iterable[str]) -> None:
        """No path is one of the file system."""
