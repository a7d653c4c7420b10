"""UCF101."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import SplitFile


@dataclass(frozen=True, kw_only=True)
class UCF101(SplitFile):
    """101 actions: the middle frame of each video.

    Source: Soomro et al., UCF101 (2012);
        CoOp datasets/ucf101.py.
    """

    template: ClassVar[str] = "a photo of a person doing {}."
    folder: ClassVar[str] = "ucf101"
    images: ClassVar[str] = "UCF-101-midframes"
    split: ClassVar[str] = "split_zhou_UCF101.json"
