"""Flat-LoRA: low-rank updates that are trained under random noise on the whole matrix."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from harness.method import Edit, SiteContext, published
from harness.methods.lora import LoRA, LowRank


class Flattened(LowRank):
    """A low-rank update, and in training noise on the matrix that it comes to."""

    def __init__(
        self, inputs: int, outputs: int, rank: int, alpha: float, rate: float, rho: float
    ) -> None:
        super().__init__(inputs, outputs, rank, alpha, rate)
        self.rho = rho

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        left = super().forward(x, y, at)
        return left + F.linear(x, self.noise(at)) if at.training and self.rho else left

    def noise(self, at: SiteContext) -> Tensor:
        """epsilon [outputs, inputs] of the step."""
        weight = at.op.weight
        assert isinstance(weight, Tensor)
        changed = weight.to(self.a.dtype) + self.scale * (self.b @ self.a).detach()
        strength = self.rho / 2 * (1 - math.cos(math.pi * at.progress))
        deviation = strength / math.sqrt(changed.shape[1]) * changed.norm(dim=1, keepdim=True)
        return deviation * at.normal("flat", *changed.shape, like=changed)


@dataclass(frozen=True, kw_only=True)
class FlatLoRA(LoRA):
    """CLIP-LoRA that learns from gradients at randomly moved matrices, so that it ends in a flat
    region of all weights.

        gradient at W' + epsilon,  W' = W + (alpha / sqrt(r)) B A
        epsilon_ij ~ N(0, (rho h(t) |W'_i|)^2 / n),  h(t) = (1 - cos(pi t / T)) / 2

    W' [m, n]: the changed matrix; |W'_i|: the norm of its row i; t: steps done of T; epsilon is
    drawn anew for each matrix and step, is a constant in the gradient, and is gone in evaluation.

    Source: Li et al., Flat-LoRA: Low-Rank Adaptation over a Flat Loss Landscape, section 3
        (https://arxiv.org/abs/2409.14396); code nblt/Flat-LoRA, logTrainer.py.
    Differs: it was not published for CLIP: sites, rank, scale, dropout and recipe are CLIP-LoRA's
        (see `lora`). As in the code, dropout is on what enters the update alone; noise acts on all
        that enters the matrix.
    """

    rho: float = published(0.05, "Flat-LoRA Readme.md")

    def module(self, weight: Tensor) -> Edit:
        outputs, inputs = weight.shape
        return Flattened(inputs, outputs, self.rank, self.alpha, self.dropout, self.rho)
