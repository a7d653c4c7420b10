"""Comp-LoRA: low-rank adaptation in the complementary subspace."""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.method import Edit, HarnessError, published
from harness.methods.lora import LoRA, LowRank


class Complementary(LowRank):
    """A low-rank update between the complements of the frozen matrix's top singular directions."""

    def __init__(self, weight: Tensor, k: int, rank: int, alpha: float, rate: float) -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, rank, alpha, rate)
        left, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
        self.register_buffer("left", left[:, :k].contiguous(), persistent=False)  # U_k [D, k]
        self.register_buffer("right", right[:k].T.contiguous(), persistent=False)  # V_k [D, k]

    left: Tensor
    right: Tensor

    def update(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would leave the complement
            a = self.a - self.a @ self.right @ self.right.T
            b = self.b - self.left @ (self.left.T @ self.b)
        return x @ a.T @ b.T


@dataclass(frozen=True, kw_only=True)
class CompLoRA(LoRA):
    """CLIP-LoRA with updates kept out of the top singular directions of each frozen matrix.

        W = U S V^T,  W' = W + (alpha / sqrt(r)) (I - U_k U_k^T) B A (I - V_k V_k^T)

    U_k, V_k [D, k]: the k leading left and right singular vectors of W; A, B, alpha, r as in
    `lora`.

    Source: Wang et al., Complementary Subspace Low-Rank Adaptation of Vision-Language Models for
        Few-Shot Classification (https://arxiv.org/abs/2501.15040), abstract.
    Differs: no code is public and the abstract gives no equation: the projection on both sides, k
        and the recipe (CLIP-LoRA's) are this project's reading.
    """

    k: int = published(32, "our choice: the paper's value is not public")

    def module(self, weight: Tensor) -> Edit:
        if self.k + self.rank > min(weight.shape):
            raise HarnessError(
                f"{self.name}.k = {self.k} leaves less than rank {self.rank} of a matrix of "
                f"{min(weight.shape)} columns. Set a smaller k."
            )
        return Complementary(weight, self.k, self.rank, self.alpha, self.dropout)
