"""MMA: multi-modal adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import TRANSFER, Classes, Clip, Edit, Site, SiteContext, blocks_from, published
from harness.methods.adapter import Adapter, Bottleneck, initialised


class Shared(Bottleneck):
    """A bottleneck with a shared inner layer, parallel to the whole block, fed by its LN_1."""

    def __init__(
        self, width: int, rank: int, scale: float, rescale: bool, shared: nn.Linear
    ) -> None:
        super().__init__(width, rank, scale, rescale)
        self.shared = shared

    def branch(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.shared(F.relu(self.down(x)))))

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        return super().forward(at.op.get_submodule("ln1")(x), y, at)


@dataclass(frozen=True, kw_only=True)
class MMA(Adapter):
    """Adapters parallel to the later blocks, whose inner layer image and text share.

        out = Block(x) + alpha * U_m(S(D_m(LN_1(x)))),  D_m, S: linear + ReLU,  U_m: linear

    x: the block's input; LN_1: its own first LayerNorm; D_m [d, r] and U_m [r, d]: one for each
    tower m; S [r, r]: shared by both towers at the same block; alpha: the scale.

    Source: Yang et al., MMA: Multi-Modal Adapter for Vision-Language Models (CVPR 2024), Eq. 4-7;
        code ZjjConan/VLM-MultiModalAdapter, clip/model.py and clip/gsl.py (gradient rescaling).
    Differs: the recipe for transfers is the paper's; the code has none. few_shot takes the settings
        of base-to-new. Other batches and epochs for each dataset stand in comments of an early
        version of its script, and not here. bfloat16 autocast on CUDA instead of half precision
        with loss scaling. With towers of different depth only the blocks that both have are edited.
    """

    lr: float = published(0.0015, "MMA configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml")
    epochs: int = published(5, "MMA configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml")
    batch_size: int = published(16, "MMA configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml")
    rank: int = published(32, "MMA configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml")
    scale: float = published(0.001, "MMA configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml")
    first_block: int = published(5, "MMA configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """Batches of 128 on ImageNet (the code's configuration); one epoch from block 9 for
        transfer (the paper's, as quoted in the code's issue 3: no configuration is released)."""
        batch = {"batch_size": 128} if dataset == "imagenet" else {}
        return batch | ({"epochs": 1, "first_block": 9} if task in TRANSFER else {})

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        edits: dict[Site, Edit] = {}
        shallower = min((clip.image, clip.text), key=lambda tower: len(tower.blocks))
        for block in blocks_from(shallower, self.first_block):
            shared = initialised(self.rank, self.rank)
            for tower in (clip.image, clip.text):
                edits[f"{tower.name}.blocks.{block}"] = Shared(
                    tower.width, self.rank, self.scale, self.gradient_rescale, shared
                )
        return edits
