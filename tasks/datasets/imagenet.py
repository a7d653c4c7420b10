"""ImageNet, and the test sets that are scored with what was learned on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.dataset import FileDataset, HarnessError, Item, Published

HENDRYCKS = "https://github.com/hendrycks/"
PUBLISHED = {
    "imagenet": Published(
        home="https://image-net.org/download", licence="research only", size="145 GB",
        classes=1000, images={"train": 1281167, "test": 50000},
    ),
    "imagenetv2": Published(
        home="https://github.com/modestyachts/ImageNetV2", licence="MIT", size="1.3 GB",
        classes=1000, images={"test": 10000},
    ),
    "imagenet-sketch": Published(
        home="https://github.com/HaohanWang/ImageNet-Sketch", licence="MIT", size="7 GB",
        classes=1000, images={"test": 50889},
    ),
    "imagenet-adversarial": Published(
        home=f"{HENDRYCKS}natural-adv-examples", licence="MIT", size="690 MB",
        classes=200, images={"test": 7500},
    ),
    "imagenet-rendition": Published(
        home=f"{HENDRYCKS}imagenet-r", licence="MIT", size="2.2 GB",
        classes=200, images={"test": 30000},
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageNet(FileDataset):
    """1,000 kinds of objects; `imagenetv2`, `imagenet_sketch`, `_a` and `_r` are for test only.

    Train is read in the order of sorted folders and files, so that the few-shot lists are the same
    everywhere; CoOp's depend on the file system. The official validation set is the test set; the
    images that settings are chosen on are drawn from train, beyond the shots. ImageNet-A and
    ImageNet-R have 200 classes, scored among themselves.

    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge (2015), and Recht
        et al. (2019, V2), Wang et al. (2019, Sketch), Hendrycks et al. (2021, A and R);
        CoOp datasets/imagenet*.py, class names of classnames.txt.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenetv2": {
            "home": "imagenetv2",
            "test": "imagenetv2-matched-frequency-format-val",
            "numbered": True,
        },
        "imagenet_sketch": {"home": "imagenet-sketch", "test": "images"},
        "imagenet_a": {"home": "imagenet-adversarial", "test": "imagenet-a", "subset": True},
        "imagenet_r": {"home": "imagenet-rendition", "test": "imagenet-r", "subset": True},
    }

    home: str = "imagenet"
    test: str = "images/val"
    numbered: bool = False  # folders are label numbers, not WordNet ids
    subset: bool = False  # only the classes that have a folder

    @property
    def published(self) -> Published:  # type: ignore[override]
        return PUBLISHED[self.home]

    @property
    def folder(self) -> str:  # type: ignore[override]
        return self.home

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        pairs = [line.split(" ", 1) for line in self.lines(root, "classnames.txt")]
        names = {str(i) if self.numbered else wnid: n for i, (wnid, n) in enumerate(pairs)}
        train = self.listed(root, "images/train", names) if self.test == "images/val" else []
        return {"train": train, "val": [], "test": self.listed(root, self.test, names)}

    def listed(self, root: Path | None, below: str, names: Mapping[str, str]) -> list[Item]:
        """The images of the class folders below a folder, in sorted order."""
        there = [each for each in self.subfolders(root, below) if each in names]
        classes = there if self.subset else list(names)
        missing = sorted(set(classes) - set(there))
        if missing or not there:
            raise HarnessError(
                f"{self.name}: {self.path(root, below)} lacks the class folder "
                f"{missing[0] if missing else 'of any class in classnames.txt'}."
            )
        return [
            Item(f"{below}/{folder}/{file}", label, names[folder])
            for label, folder in enumerate(classes)
            for file in self.files(root, f"{below}/{folder}")
        ]
