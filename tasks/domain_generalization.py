"""Domain generalization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.task import Transfer


@dataclass(frozen=True, kw_only=True)
class DomainGeneralization(Transfer):
    """Fit once on all classes of a source dataset; evaluate on its classes in other domains.

    ImageNet-A and ImageNet-R are scored over their own 200 classes.

    Source: Zhou et al., Conditional Prompt Learning for Vision-Language Models, section 4.3
        (https://arxiv.org/abs/2203.05557): ImageNet, and four variants of it.
    """

    targets: ClassVar[Mapping[str, Sequence[str]]] = {
        "imagenet": ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
        "emoji": ("emoji_flat", "emoji_mono", "emoji_3d", "emoji_retro"),
    }
