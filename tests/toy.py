"""A dataset of coloured discs, registered as a plugin by the tests."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from harness.dataset import Dataset, Item

NAMES = ("red", "green", "blue", "white", "cyan", "magenta", "yellow")


@dataclass(frozen=True, kw_only=True)
class Toy(Dataset):
    """Coloured discs on grey.

    Source: drawn on the fly.
    """

    tested: int = 8  # images of a class

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        def items(numbers: range) -> list[Item]:
            return [
                Item(f"{name}/{n}", label, name)
                for label, name in enumerate(NAMES)
                for n in numbers
            ]

        return {
            "train": items(range(20)),
            "val": items(range(20, 26)),
            "test": items(range(26, 26 + self.tested)),
        }

    def open(self, item: Item, root: Path | None) -> Image.Image:
        name, number = item.path.split("/")
        shift = int(number)
        image = Image.new("RGB", (60, 50), (100 + shift, 100, 130 - shift))
        ImageDraw.Draw(image).ellipse((5 + shift, 5, 25 + shift, 30 + shift // 2), fill=name)
        return image
