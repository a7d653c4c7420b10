"""SUN397."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class SUN397(SplitFileDataset):
    """397 scenes.

    Source: Xiao et al., SUN Database (2010);
        CoOp datasets/sun397.py.
    """

    folder: ClassVar[str] = "sun397"
    images: ClassVar[str] = "SUN397"
    split: ClassVar[str] = "split_zhou_SUN397.json"
    published: ClassVar[Published | None] = Published(
        home="https://vision.princeton.edu/projects/2010/SUN/",
        licence="research only",
        size="37 GB",
        classes=397,
        images={"train": 15880, "val": 3970, "test": 19850},
        torchvision="SUN397",
        layout={"SUN397": ""},
        images_folder="SUN397",
    )
