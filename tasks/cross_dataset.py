"""Cross-dataset transfer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.task import Transfer


@dataclass(frozen=True, kw_only=True)
class CrossDataset(Transfer):
    """Fit once on all classes of a source dataset; evaluate on all classes of other datasets.

    Source: Zhou et al., Conditional Prompt Learning for Vision-Language Models, section 4.2
        (https://arxiv.org/abs/2203.05557): ImageNet, and ten datasets.
    """

    targets: ClassVar[Mapping[str, Sequence[str]]] = {
        "imagenet": (
            "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
            "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
        ),
        "emoji": (
            "emoji_animals", "emoji_food", "emoji_travel", "emoji_objects", "emoji_activities",
            "emoji_smileys", "emoji_people", "emoji_symbols",
        ),
    }  # fmt: skip
