"""Stanford Cars."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import SplitFile


@dataclass(frozen=True, kw_only=True)
class StanfordCars(SplitFile):
    """196 car models.

    Source: Krause et al., 3D Object Representations for Fine-Grained Categorization (2013);
        CoOp datasets/stanford_cars.py.
    """

    folder: ClassVar[str] = "stanford_cars"
    images: ClassVar[str] = ""
    split: ClassVar[str] = "split_zhou_StanfordCars.json"
