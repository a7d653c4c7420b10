"""The embedded datasets: emoji drawn by several designers, read from sprite sheets."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from harness.dataset import Dataset, Item
from harness.tasks.datasets.emoji.views import view

HERE = Path(__file__).parent
CELL = 64  # pixels
TRAIN_VIEWS, VAL_VIEWS, TEST_VIEWS = range(24), range(24, 32), range(10)
GROUPS = (
    "animals",
    "food",
    "travel",
    "objects",
    "activities",
    "smileys",
    "people",
    "symbols",
)  # fmt: skip
SHIFTED = {
    "emoji_flat": "fluent-emoji-flat",
    "emoji_mono": "fluent-emoji-high-contrast",
    "emoji_3d": "fluent-emoji",
    "emoji_retro": "fxemoji",
}


@dataclass(frozen=True, kw_only=True)
class Emoji(Dataset):
    """Emoji of one group, or of all (the source): one designer's to train on, another's to test.

    `emoji` mixes all groups and shares no class with `emoji_animals` and its seven siblings;
    `emoji_flat`, `emoji_mono`, `emoji_3d` and `emoji_retro` are its classes in other styles, for
    test only. An image is a drawing under a fixed view: background, rotation, scale, shift.

    Source: Twemoji (train, val), Noto Emoji old and new (test), Fluent Emoji and FxEmojis (shifted
        variants); names of Unicode CLDR. Licences: tasks/datasets/emoji/README.md.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{f"emoji_{group}": {"group": group} for group in GROUPS},
        **{name: {"test_styles": (style,), "shots": False} for name, style in SHIFTED.items()},
    }

    group: str = "source"
    test_styles: tuple[str, ...] = ("noto", "noto-v1")
    shots: bool = True  # whether there are images to train on

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        index = _index()
        names = index["source"] if self.group == "source" else index["groups"][self.group]

        def items(styles: tuple[str, ...], views: range) -> list[Item]:
            return [
                Item(f"{style}/{name}/{number}", label, name)
                for label, name in enumerate(names)
                for style in styles
                for number in views
            ]

        shots = ("twemoji",) if self.shots else ()
        return {
            "train": items(shots, TRAIN_VIEWS),
            "val": items(shots, VAL_VIEWS),
            "test": items(self.test_styles, TEST_VIEWS),
        }

    def open(self, item: Item, root: Path | None) -> Image.Image:
        return _image(item.path)

    def unit(self, item: Item) -> str:
        """The drawing, of which the images are views."""
        return item.path.rpartition("/")[0]

    def content(self, root: Path | None) -> str:
        return super().content(root) + _files()


@functools.cache
def _index() -> dict[str, Any]:
    return json.loads((HERE / "classes.json").read_text(encoding="utf-8"))


@functools.cache
def _files() -> str:
    """A hash of the sheets and of what is where on them."""
    files = [*sorted((HERE / "sheets").iterdir()), HERE / "classes.json"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@functools.cache
def _sheet(style: str) -> Image.Image:
    (path,) = (HERE / "sheets").glob(f"{style}.*")
    return Image.open(path).convert("RGBA")


@functools.lru_cache(maxsize=4096)
def _image(path: str) -> Image.Image:
    style, name, _ = path.split("/")
    index = _index()
    row, column = divmod(index["cells"][style][name], index["columns"])
    left, top = column * CELL, row * CELL
    sprite = _sheet(style).crop((left, top, left + CELL, top + CELL))
    return view(sprite, path)
