"""Oxford-IIIT Pets."""

from dataclasses import dataclass
from typing import ClassVar

from harness.dataset import Published, SplitFileDataset


@dataclass(frozen=True, kw_only=True)
class OxfordPets(SplitFileDataset):
    """37 breeds of cats and dogs.

    Source: Parkhi et al., Cats and Dogs (2012);
        CoOp datasets/oxford_pets.py.
    Differs: three of its 7,349 pictures have transparent parts, which stand on white here and show
        what lies under them in CoOp.
    """

    template: ClassVar[str] = "a photo of a {}, a type of pet."
    folder: ClassVar[str] = "oxford_pets"
    images: ClassVar[str] = "images"
    split: ClassVar[str] = "split_zhou_OxfordPets.json"
    published: ClassVar[Published | None] = Published(
        home="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        licence="CC BY-SA 4.0",
        size="811 MB",
        classes=37,
        images={"train": 2944, "val": 736, "test": 3669},
        torchvision="OxfordIIITPet",
        layout={"oxford-iiit-pet/images": "", "oxford-iiit-pet/annotations": ""},
    )
