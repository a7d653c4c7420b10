"""BA-LoRA: low-rank updates of the largest singular directions, held to the frozen model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    CosineHead,
    Edit,
    Output,
    Site,
    SiteContext,
    published,
)
from harness.methods.clip_svd import decomposed
from harness.methods.lora import LoRA, LowRank

CODE = "BA-LoRA train.py"


class Principal(LowRank):
    """y + s (B A - B_0 A_0) x: B_0 A_0 is the frozen matrix's best approximation of its rank."""

    first_a: Tensor
    first_b: Tensor

    def __init__(self, op: nn.Module, rank: int, alpha: float, rate: float) -> None:
        left, values, right = decomposed(op)
        super().__init__(right.shape[1], len(left), rank, alpha, rate)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
        sign = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()  # [rank, 1]
        size = (values / self.scale).sqrt()
        self.a = nn.Parameter(size[:, None] * sign * right)
        self.b = nn.Parameter(size * sign.T * left)
        self.register_buffer("first_a", self.a.detach().clone())
        self.register_buffer("first_b", self.b.detach().clone())

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        return super().forward(x, y, at) - self.scale * (x @ self.first_a.T @ self.first_b.T)


@dataclass(frozen=True, kw_only=True)
class BALoRA(LoRA):
    """CLIP-LoRA that starts as the largest singular directions of each matrix, with three terms
    that hold the logits to the frozen model's, spread them, and keep them to a few directions.

        L = CE + l_1 mean (z_n - z0_n)^2 + l_2 (1/C) sum_{i != j} Cov(z)_ij^2
               - l_3 (sum_{i <= k} sigma_i) / (sum_i sigma_i)
        W' = W - s B_0 A_0 + s B A,  A_0 = sqrt(S_r / s) V_r^T,  B_0 = U_r sqrt(S_r / s)

    z [B, C]: the batch's logits; z0: the frozen model's of the same views; z_n, z0_n: rows of norm
    1; Cov: covariance of the C logits over the batch; sigma: singular values of z; U_r S_r V_r^T:
    W's r largest singular values and their vectors; A and B start at A_0 and B_0;
    s = alpha / sqrt(r).

    Source: Chang et al., BA-LoRA: Bias-Alleviating Low-Rank Adaptation to Mitigate Catastrophic
        Inheritance in Large Language Models, section on language understanding
        (https://arxiv.org/abs/2408.04556); code cyp-jlu-ai/BA-LoRA, train.py, "nlu".
    Differs: it was not published for CLIP: sites, rank, scale and recipe are CLIP-LoRA's (see
        `lora`), and the logits are CLIP's, of its scale, for which the second term's weight is not
        made: that term is 0.04 with 25 classes of the embedded default and 0.33 with 200. The last
        term has a gradient, as in the paper; the code computes it without one. B_0 and A_0 are
        saved beside A and B.
    """

    frozen_images: ClassVar[bool | Literal["training"]] = "training"

    dropout: float = published(0.0, "PiSSA's start takes none")
    consistency: float = published(1e-4, f"{CODE}, lambda1")
    diversity: float = published(3e-4, f"{CODE}, lambda2")
    focus: float = published(1e-4, f"{CODE}, lambda3")
    directions: int = published(3, f"{CODE}, k")

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return {"frozen": self.prompts(classes)}

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        return {
            f"{tower.name}.blocks.{i}.{part}": Principal(
                getattr(block.attn, part), self.rank, self.alpha, self.dropout
            )
            for tower in (clip.image, clip.text)
            for i, block in enumerate(tower.blocks)
            for part in ("q", "k", "v")
        }

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        given, logits = output.given, output.logits
        assert given.image is not None
        frozen = CosineHead()(given.image, given.references["frozen"], given)
        drift = F.mse_loss(F.normalize(logits, dim=-1), F.normalize(frozen, dim=-1))
        centred = logits - logits.mean(0)
        covariance = centred.T @ centred / max(1, len(logits) - 1)  # [C, C]
        spread = (covariance - covariance.diag().diag()).square().sum() / logits.shape[1]
        values = torch.linalg.svdvals(logits)
        return (
            super().loss(output, labels)
            + self.consistency * drift
            + self.diversity * spread
            - self.focus * values[: self.directions].sum() / values.sum()
        )
