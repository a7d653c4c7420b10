"""EuroSAT."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class EuroSAT(SplitFileDataset):
    """Ten kinds of land on satellite images.

    Source: Helber et al., EuroSAT (2019);
        CoOp datasets/eurosat.py.
    """

    template: ClassVar[str] = "a centered satellite photo of {}."
    folder: ClassVar[str] = "eurosat"
    images: ClassVar[str] = "2750"
    split: ClassVar[str] = "split_zhou_EuroSAT.json"
    published: ClassVar[Published | None] = Published(
        home="https://github.com/phelber/EuroSAT",
        licence="MIT",
        size="90 MB",
        classes=10,
        images={"train": 13500, "val": 5400, "test": 8100},
        torchvision="EuroSAT",
        layout={"eurosat/2750": ""},
        images_folder="2750",
    )
