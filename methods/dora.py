"""DoRA: low-rank updates of a weight's direction, and its magnitude."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import Edit, SiteContext, published
from harness.methods.lora import LoRA, LowRank


class Decomposed(LowRank):
    """(m / |W + s B A|) (W + s B A) x + b, with the frozen product where it is as it was."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, rate: float) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, rank, alpha, rate)
        self.magnitude = nn.Parameter(weight.detach().norm(dim=1))

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        weight, bias = at.op.weight, at.op.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        changed = weight.to(self.a.dtype) + self.scale * self.b @ self.a
        factor = self.magnitude / changed.detach().norm(dim=1)  # no gradient through the norm
        dropped = at.dropout(x, self.rate)
        plain = y - bias if dropped is x else F.linear(dropped, weight)
        change = (factor - 1) * plain + factor * self.scale * self.update(dropped)
        return y + change.to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """CLIP-LoRA whose updates change the direction of each row of a matrix, beside a learned
    magnitude of the row.

        W' = m (W + s B A) / |W + s B A|

    m [outputs]: learned, |W| at the start; |.|: the norm of each row, a constant in the gradient;
    s B A: CLIP-LoRA's update, with its sites, rank and recipe.

    Source: Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, Eq. 5 and 11
        (https://arxiv.org/abs/2402.09353); code NVlabs/DoRA.
    Differs: DoRA was not published for CLIP: sites, rank, scale, dropout and recipe are CLIP-LoRA's
        (see `lora`). As in the code, dropout is on what the change is applied to, and not on what
        the frozen matrix is.
    """

    rank: int = published(2, "CLIP-LoRA run_utils.py, r")

    def module(self, weight: Tensor) -> Edit:
        return Decomposed(weight, self.rank, self.alpha, self.dropout)
