"""FGVC-Aircraft."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.dataset import FileDataset, HarnessError, Item, Published


@dataclass(frozen=True, kw_only=True)
class FGVCAircraft(FileDataset):
    """100 aircraft variants, in the official split.

    Source: Maji et al., Fine-Grained Visual Classification of Aircraft (2013);
        CoOp datasets/fgvc_aircraft.py.
    """

    template: ClassVar[str] = "a photo of a {}, a type of aircraft."
    folder: ClassVar[str] = "fgvc_aircraft"
    images: ClassVar[str] = "images"
    published: ClassVar[Published | None] = Published(
        home="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        licence="research only",
        size="2.8 GB",
        classes=100,
        images={"train": 3334, "val": 3333, "test": 3333},
        torchvision="FGVCAircraft",
        layout={"fgvc-aircraft-2013b/data/*": ""},
    )

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        labels = {name: label for label, name in enumerate(self.lines(root, "variants.txt"))}

        def items(part: str) -> list[Item]:
            file = f"images_variant_{part}.txt"
            found = []
            for line in self.lines(root, file):
                image, _, name = line.partition(" ")
                if name not in labels:
                    raise HarnessError(f"{self.name}: {file} says {line!r}, and variants.txt has "
                                       f"no variant {name!r}.")  # fmt: skip
                found.append(Item(f"{image}.jpg", labels[name], name))
            return found

        return {part: items(part) for part in ("train", "val", "test")}
