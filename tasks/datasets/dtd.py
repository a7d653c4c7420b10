"""Describable Textures."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class DTD(SplitFileDataset):
    """47 textures.

    Source: Cimpoi et al., Describing Textures in the Wild (2014);
        CoOp datasets/dtd.py.
    """

    template: ClassVar[str] = "{} texture."
    folder: ClassVar[str] = "dtd"
    images: ClassVar[str] = "images"
    split: ClassVar[str] = "split_zhou_DescribableTextures.json"
    published: ClassVar[Published | None] = Published(
        home="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        licence="research only",
        size="600 MB",
        classes=47,
        images={"train": 2820, "val": 1128, "test": 1692},
        torchvision="DTD",
        layout={"dtd/dtd/*": ""},
    )
