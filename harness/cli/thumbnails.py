"""Small pictures of images for the report: of the embedded datasets, and of others if asked."""

import base64
import io
from collections.abc import Sequence
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
STRIP = 40  # of an image in a strip
EMBEDDED = ("emoji", *Emoji.variants)
WHOLE = ("hf", "torchvision", "wds")  # their images are no files, or known to the dataset alone
CREDIT = (
    "Emoji drawings, shown under a fixed rotation, scale and background: Twemoji by Twitter, Inc. "
    "and other contributors (CC BY 4.0), Noto Emoji by Google Inc. (Apache-2.0), Fluent Emoji by "
    "Microsoft Corporation (MIT), Firefox OS Emoji by Mozilla Foundation (Apache-2.0, CC BY 4.0)."
)


@dataclass
class Thumbnails:
    """Pictures as data: addresses; an image that cannot be read has none.

    root: below it lie the images of other datasets, or None if they are not to be shown; plugins:
    that define more datasets; embedded: whether an embedded image was shown; unseen:
    datasets below `root` of which no image could be.
    """

    root: Path | None = None
    plugins: tuple[str, ...] = ()
    embedded: bool = False
    _seen: dict[str, bool] = field(default_factory=dict, repr=False)
    _registry: "Registry | None" = field(default=None, repr=False)

    @property
    def unseen(self) -> list[str]:
        return [dataset for dataset, seen in self._seen.items() if not seen]

    def of(self, dataset: str, path: str) -> str | None:
        """Of an image of a dataset, by its path there."""
        image = self._image(dataset, path, SIZE)
        return _address(image, 80) if image is not None else None

    def strip(self, dataset: str, paths: Sequence[str]) -> str | None:
        """Of images of a dataset beside each other, those that can be read."""
        from PIL import Image

        found = [image for path in paths if (image := self._image(dataset, path, STRIP))]
        if not found:
            return None
        whole = Image.new("RGB", (STRIP * len(paths), STRIP), "white")
        for place, image in enumerate(found):
            middle = ((STRIP - image.width) // 2, (STRIP - image.height) // 2)
            whole.paste(image, (place * STRIP + middle[0], middle[1]))
        return _address(whole, 55)

    def _image(self, dataset: str, path: str, size: int) -> "Image.Image | None":
        embedded = dataset in EMBEDDED
        try:
            image = self._embedded(path) if embedded else self._below(dataset, path)
        except Exception:  # datasets of plugins raise all kinds
            image = None
        self._seen[dataset] = self._seen.get(dataset, embedded) or image is not None
        if image is not None:
            self.embedded |= embedded
            image.thumbnail((size, size))
        return image

    def _embedded(self, path: str) -> "Image.Image":
        return Emoji().open(Item(path, 0, ""), None).convert("RGB")

    def _below(self, dataset: str, path: str) -> "Image.Image | None":
        if self.root is None:
            return None
        if self._registry is None:
            from harness.cli import options

            self._registry = options.plugins(list(self.plugins))
        start = self.root.resolve()
        family, _, own = dataset.partition(":")  # the user's: no record knows its folder
        plugin = self._registry.plugins["datasets"].get(dataset)
        if plugin is None and family in WHOLE:
            home = (start / path_below(own, dataset)).resolve()
            if not home.is_relative_to(start):
                return None
            place = own if family == "torchvision" else home
            (plugin,) = self._registry.find("datasets", [f"{family}:{place}"])
        if plugin is not None:
            item = Item(path_below(path, dataset), 0, "")
            return plugin.cls(**plugin.fixed).open(item, self.root).convert("RGB")
        for home in (start / own, start) if own else ():
            file = (home / path_below(path, dataset)).resolve()
            if file.is_relative_to(start) and file.is_file():
                return open_rgb(file, dataset, turn=True)
        return None


def _address(image: "Image.Image", quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=6)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
