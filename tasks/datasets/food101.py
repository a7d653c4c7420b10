"""Food-101."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class Food101(SplitFileDataset):
    """101 dishes.

    Source: Bossard et al., Food-101 (2014);
        CoOp datasets/food101.py.
    """

    template: ClassVar[str] = "a photo of {}, a type of food."
    folder: ClassVar[str] = "food-101"
    images: ClassVar[str] = "images"
    split: ClassVar[str] = "split_zhou_Food101.json"
    published: ClassVar[Published | None] = Published(
        home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        licence="research only",
        size="5.0 GB",
        classes=101,
        images={"train": 50500, "val": 20200, "test": 30300},
        torchvision="Food101",
        layout={"food-101/images": "", "food-101/meta": ""},
    )
