"""VPT: visual prompt tuning."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.method import Classes, Clip, Edit, Method, Site, SiteContext, blocks_from, published


class Appended(Edit):
    """Tokens after the patch tokens: appended to the input, then put in place of what the block
    before made of them."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def tokens(self) -> Tensor:
        """[M, D]."""
        return self.vectors

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        tokens = self.tokens().to(y.dtype).expand(len(y), -1, -1)  # [B, M, D]
        kept = y if at.site.endswith(".tokens") else y[:, : -tokens.shape[1]]
        return torch.cat([kept, tokens], dim=1)  # [B, L + M, D]


def entering(tower: str, depth: int) -> list[Site]:
    """The sites before the first `depth` blocks of a tower."""
    return [f"{tower}.tokens", *(f"{tower}.blocks.{block}" for block in range(depth - 1))]


def deep(clip: Clip, tokens: int, depth: int) -> dict[Site, Edit]:
    """Random tokens N(0, 0.02^2) before each of the first `depth` image blocks."""
    blocks_from(clip.image, 1, depth)
    width = clip.image.width
    return {s: Appended(0.02 * torch.randn(tokens, width)) for s in entering("image", depth)}


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Learned tokens beside the patch tokens, new ones before each block; texts stay frozen.

        [c_i, x_i, _] = Block_i([c_{i-1}, x_{i-1}, P_{i-1}]),  i = 1 .. J

    c: class token; x: patch tokens; P_i [M, D]: learned, the block's outputs at their places are
    dropped; the first are added after the positional embedding and before the first LayerNorm.

    Source: Jia et al., Visual Prompt Tuning, Eq. 5 (VPT-Deep, https://arxiv.org/abs/2203.12119), as
        the baseline of Khattak et al., MaPLe: code muzairkhattak/multimodal-prompt-learning,
        configs/trainers/VPT (M = 8, J = 12).
    Differs: tokens stand after the patch tokens, as in MaPLe's code, not behind the class token:
        the image tower is blind to the order; one that pools its tokens pools these, too. In
        transfers 5 epochs, as its script trains; the one that tests loads epoch 2, so that this is
        our reading. few_shot takes the settings of base-to-new. bfloat16 autocast on CUDA where the
        authors' model runs in single precision.
    """

    lr: float = published(0.0025, "MaPLe configs/trainers/VPT")
    epochs: int = published(5, "MaPLe configs/trainers/VPT; in transfers: our reading")
    batch_size: int = published(4, "MaPLe configs/trainers/VPT")
    tokens: int = published(8, "MaPLe configs/trainers/VPT, M")
    depth: int = published(12, "MaPLe configs/trainers/VPT, J")

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        return deep(clip, self.tokens, self.depth)
