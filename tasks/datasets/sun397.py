"""SUN397."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import SplitFile


@dataclass(frozen=True, kw_only=True)
class SUN397(SplitFile):
    """397 scenes.

    Source: Xiao et al., SUN Database (2010);
        CoOp datasets/sun397.py.
    """

    folder: ClassVar[str] = "sun397"
    images: ClassVar[str] = "SUN397"
    split: ClassVar[str] = "split_zhou_SUN397.json"
