"""AdaptFormer: an adapter parallel to the MLP."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from harness.method import Classes, Clip, Edit, Site, Tower, blocks_from, published
from harness.methods.adapter import Adapter, Bottleneck


class Parallel(Bottleneck):
    """y + s * ReLU(x W_d) W_u, which starts at zero."""

    def __init__(self, width: int, rank: int, scale: float, rescale: bool) -> None:
        super().__init__(width, rank, scale, rescale)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def branch(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu())


@dataclass(frozen=True, kw_only=True)
class AdaptFormer(Adapter):
    """A bottleneck parallel to the MLP of every image block; the text tower stays frozen.

        x_l = MLP(LN(x')) + s ReLU(LN(x') W_d) W_u + x'

    x': what left the attention; LN(x'): the second LayerNorm's output, which the MLP receives;
    W_d [D, 64], W_u [64, D]: trained, with biases, W_u and both biases zero at the start; s = 0.1.

    Source: Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition,
        Eq. 3-5 (https://arxiv.org/abs/2205.13535); code ShoufaChen/AdaptFormer.
    Differs: the released code feeds x' without the LayerNorm and drops a tenth of the bottleneck;
        the paper's equations are followed. The paper trains other backbones on whole datasets; the
        recipe here (rate, epochs, batch, rescaled gradients) is that of `adapter`, so that both
        compare on equal terms: in transfers, too, where that has blocks 7 to 12 alone. few_shot
        takes the settings of base-to-new.
    """

    rank: int = published(64, "AdaptFormer section 4.1, bottleneck")
    scale: float = published(0.1, "AdaptFormer section 4.1, s")
    first_block: int = published(1, "AdaptFormer section 3.2, every block (counted from 1)")

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        blocks = blocks_from(clip.image, self.first_block)
        return {f"image.blocks.{block}.mlp": self.module(clip.image) for block in blocks}

    def module(self, tower: Tower) -> Edit:
        return Parallel(tower.width, self.rank, self.scale, self.gradient_rescale)
