"""EuroSAT."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import SplitFile


@dataclass(frozen=True, kw_only=True)
class EuroSAT(SplitFile):
    """Ten kinds of land on satellite images.

    Source: Helber et al., EuroSAT (2019);
        CoOp datasets/eurosat.py.
    """

    template: ClassVar[str] = "a centered satellite photo of {}."
    folder: ClassVar[str] = "eurosat"
    images: ClassVar[str] = "2750"
    split: ClassVar[str] = "split_zhou_EuroSAT.json"
