"""Food-101."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import SplitFile


@dataclass(frozen=True, kw_only=True)
class Food101(SplitFile):
    """101 dishes.

    Source: Bossard et al., Food-101 (2014);
        CoOp datasets/food101.py.
    """

    template: ClassVar[str] = "a photo of {}, a type of food."
    folder: ClassVar[str] = "food-101"
    images: ClassVar[str] = "images"
    split: ClassVar[str] = "split_zhou_Food101.json"
