"""UCF101."""

import re
from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Item, Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class UCF101(SplitFileDataset):
    """101 actions: the middle frame of each video.

    Source: Soomro et al., UCF101 (2012);
        CoOp datasets/ucf101.py.
    """

    template: ClassVar[str] = "a photo of a person doing {}."
    folder: ClassVar[str] = "ucf101"
    images: ClassVar[str] = "UCF-101-midframes"
    split: ClassVar[str] = "split_zhou_UCF101.json"
    published: ClassVar[Published | None] = Published(
        home="https://www.crcv.ucf.edu/data/UCF101.php (the middle frames: CoOp's list)",
        licence="not stated",
        size="6.5 GB as video",
        classes=101,
        images={"train": 7639, "val": 1898, "test": 3783},
    )

    def unit(self, item: Item) -> str:
        """The group of clips, which were cut from one video: v_Archery_g01_c02 is of g01."""
        return re.sub(r"_c\d+\.\w+$", "", item.path)
