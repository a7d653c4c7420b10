"""Oxford Flowers 102."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class OxfordFlowers(SplitFileDataset):
    """102 flowers, in CoOp's own random split.

    Source: Nilsback and Zisserman, Automated Flower Classification over a Large Number of
        Classes (2008);
        CoOp datasets/oxford_flowers.py.
    """

    template: ClassVar[str] = "a photo of a {}, a type of flower."
    folder: ClassVar[str] = "oxford_flowers"
    images: ClassVar[str] = "jpg"
    split: ClassVar[str] = "split_zhou_OxfordFlowers.json"
    published: ClassVar[Published | None] = Published(
        home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        licence="not stated",
        size="345 MB",
        classes=102,
        images={"train": 4093, "val": 1633, "test": 2463},
        torchvision="Flowers102",
        layout={"flowers-102/jpg": "", "flowers-102/imagelabels.mat": ""},
        images_folder="jpg",
    )
