"""Describable Textures."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import SplitFile


@dataclass(frozen=True, kw_only=True)
class DTD(SplitFile):
    """47 textures.

    Source: Cimpoi et al., Describing Textures in the Wild (2014);
        CoOp datasets/dtd.py.
    """

    template: ClassVar[str] = "{} texture."
    folder: ClassVar[str] = "dtd"
    images: ClassVar[str] = "images"
    split: ClassVar[str] = "split_zhou_DescribableTextures.json"
