"""Small pictures of images for the report: of the embedded datasets, and of others if asked."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.dataset import Item
from harness.decoding import open_rgb
from harness.files import path_below
from harness.tasks.datasets.emoji import Emoji

if TYPE_CHECKING:
    from PIL import Image

    from harness.registry import Registry

SIZE = 48  # pixels
EMBEDDED = ("emoji", *Emoji.variants)
CREDIT = (
    "Emoji drawings, shown under a fixed rotation, scale and background: Twemoji by Twitter, Inc. "
    "and other contributors (CC BY 4.0), Noto Emoji by Google Inc. (Apache-2.0), Fluent Emoji by "
    "Microsoft Corporation (MIT), Firefox OS Emoji by Mozilla Foundation (Apache-2.0, CC BY 4.0)."
)


@dataclass
class Thumbnails:
    """Pictures as data: addresses; an image that cannot be read has none.

    root: below it lie the images of other datasets, or None if they are not to be shown; plugins:
    that define more datasets; embedded: whether an embedded image was shown.
    """

    root: Path | None = None
    plugins: tuple[str, ...] = ()
    embedded: bool = False
    _registry: "Registry | None" = field(default=None, repr=False)

    def of(self, dataset: str, path: str) -> str | None:
        """Of an image of a dataset, by its path there."""
        try:
            embedded = dataset in EMBEDDED
            image = self._embedded(path) if embedded else self._below(dataset, path)
        except Exception:  # datasets of plugins raise all kinds
            return None
        if image is None:
            return None
        self.embedded |= embedded
        image.thumbnail((SIZE, SIZE))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=80, method=6)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"

    def _embedded(self, path: str) -> "Image.Image":
        return Emoji().open(Item(path, 0, ""), None).convert("RGB")

    def _below(self, dataset: str, path: str) -> "Image.Image | None":
        if self.root is None:
            return None
        if self._registry is None:
            from harness.cli import options

            self._registry = options.plugins(list(self.plugins))
        plugin = self._registry.plugins["datasets"].get(dataset)
        if plugin is not None:
            item = Item(path_below(path, dataset), 0, "")
            return plugin.cls(**plugin.fixed).open(item, self.root).convert("RGB")
        own = dataset.partition(":")[2]  # the user's, whose folder is not known to the record
        start = self.root.resolve()
        for home in (start / own, start) if own else ():
            file = (home / path_below(path, dataset)).resolve()
            if file.is_relative_to(start) and file.is_file():
                return open_rgb(file, dataset, turn=True)
        return None
