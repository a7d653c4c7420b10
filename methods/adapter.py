"""The standard adapter, the DRA paper's baseline; its bottleneck is what mma and dra build on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    TRANSFER,
    Classes,
    Clip,
    Edit,
    HarnessError,
    Method,
    Site,
    SiteContext,
    Tower,
    blocks_from,
    published,
    rescale_gradient,
)


def initialised(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with MMA's initialisation: Kaiming-normal weights (fan_out), zero bias."""
    linear = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return linear


class Bottleneck(Edit):
    """y + s * sigma(sigma(x W_d) W_u), with the gradient rescaling of MMA's code.

    With `rescale` the branch's incoming gradient is multiplied by 1/s and the one that leaves it by
    s: its parameters learn as if s were 1, and earlier layers get the true gradient.
    """

    def __init__(self, width: int, rank: int, scale: float, rescale: bool) -> None:
        super().__init__()
        self.down = initialised(width, rank)
        self.up = initialised(rank, width)
        self.scale, self.rescale = scale, rescale

    def branch(self, x: Tensor) -> Tensor:
        """[R, L, D] -> [R, L, D], before the scale."""
        return F.relu(self.up(F.relu(self.down(x))))  # Eq. 8

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        return y + self.scale * self.leave(self.branch(self.enter(x)))

    def enter(self, x: Tensor) -> Tensor:
        return rescale_gradient(x, self.scale) if self.rescale else x

    def leave(self, branch: Tensor) -> Tensor:
        return rescale_gradient(branch, 1 / self.scale) if self.rescale else branch


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """A bottleneck parallel to the attention module of the later blocks, in both towers.

        X_adapter = OP(X) + s * sigma(sigma(X W_d) W_u)                                     (Eq. 8)

    X: what the attention module receives (the first LayerNorm's output) [N, d]; OP(X): its output;
    W_d [d, r], W_u [r, d]: trained, with biases; sigma: ReLU; s: the scale.

    Source: Wang et al., Dynamic Rank Adaptation for Vision-Language Models, Eq. 8 and the baseline
        of Table 4; its recipe is that of the same paper, section 4.1.2.
    Differs: the paper does not say how its baseline is initialised, whether it has biases, or
        whether it rescales gradients; all three are taken from MMA's released code, on which the
        paper builds. `gradient_rescale=False` gives the plain gradient. few_shot takes the settings
        of base-to-new.
    """

    lr: float = published(0.0015, "DRA section 4.1.2")
    epochs: int = published(5, "DRA section 4.1.2")
    batch_size: int = published(16, "DRA section 4.1.2")
    warmup_epochs: int = published(0, "MMA configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml")
    rank: int = published(32, "DRA section 4.1.2, r")
    scale: float = published(0.001, "DRA section 4.1.2, s")
    first_block: int = published(5, "DRA section 4.1.2, h (counted from 1)")
    gradient_rescale: bool = published(True, "MMA clip/gsl.py")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """DRA section 4.1.2: batches of 128 on ImageNet; one epoch from block 7 for transfer."""
        batch = {"batch_size": 128} if dataset == "imagenet" else {}
        return batch | ({"epochs": 1, "first_block": 7} if task in TRANSFER else {})

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        return {
            f"{tower.name}.blocks.{block}.attn": self.module(tower)
            for tower in (clip.image, clip.text)
            for block in blocks_from(tower, self.first_block)
        }

    def check(self) -> None:
        super().check()
        if self.rank < 1 or self.scale <= 0:
            raise HarnessError(f"{self.name} needs rank >= 1 and scale > 0, not {self}.")

    def module(self, tower: Tower) -> Edit:
        """The edit of one block of `tower`."""
        return Bottleneck(tower.width, self.rank, self.scale, self.gradient_rescale)
