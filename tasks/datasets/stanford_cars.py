"""Stanford Cars."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class StanfordCars(SplitFileDataset):
    """196 car models.

    Source: Krause et al., 3D Object Representations for Fine-Grained Categorization (2013);
        CoOp datasets/stanford_cars.py.
    """

    folder: ClassVar[str] = "stanford_cars"
    images: ClassVar[str] = ""
    split: ClassVar[str] = "split_zhou_StanfordCars.json"
    published: ClassVar[Published | None] = Published(
        home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone; see CoOp's list)",
        licence="research only",
        size="1.9 GB",
        classes=196,
        images={"train": 6509, "val": 1635, "test": 8041},
    )
