"""Caltech101."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class Caltech101(SplitFileDataset):
    """100 kinds of objects; backgrounds and one of the two face classes left out.

    Source: Fei-Fei et al., Learning generative visual models from few training examples (2004);
        CoOp datasets/caltech101.py.
    """

    folder: ClassVar[str] = "caltech-101"
    images: ClassVar[str] = "101_ObjectCategories"
    split: ClassVar[str] = "split_zhou_Caltech101.json"
    published: ClassVar[Published | None] = Published(
        home="https://data.caltech.edu/records/mzrjq-6wc02",
        licence="CC BY 4.0",
        size="137 MB",
        classes=100,
        images={"train": 4128, "val": 1649, "test": 2465},
        torchvision="Caltech101",
        layout={"caltech101/101_ObjectCategories": ""},
        images_folder="101_ObjectCategories",
    )
