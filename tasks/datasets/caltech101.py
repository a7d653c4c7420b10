"""Caltech101."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import SplitFile


@dataclass(frozen=True, kw_only=True)
class Caltech101(SplitFile):
    """100 kinds of objects; backgrounds and one of the two face classes left out.

    Source: Fei-Fei et al., Learning generative visual models from few training examples (2004);
        CoOp datasets/caltech101.py.
    """

    folder: ClassVar[str] = "caltech-101"
    images: ClassVar[str] = "101_ObjectCategories"
    split: ClassVar[str] = "split_zhou_Caltech101.json"
