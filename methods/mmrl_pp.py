"""MMRL++: MMRL with shared maps of low-rank differences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import TRANSFER, Clip, HarnessError, Tower, published
from harness.methods.mmrl import MMRL

CONFIG = "MMRL trainers/config.py"
BY_DATASET = {  # beta and lambda
    "imagenet": (0.9, 0.2), "fgvc_aircraft": (0.9, 2.0), "ucf101": (0.9, 3.0), "dtd": (0.9, 7.0),
    "oxford_pets": (0.7, 0.01), "stanford_cars": (0.7, 6.0), "caltech101": (0.6, 3.0),
    "sun397": (0.5, 3.0), "oxford_flowers": (0.4, 7.0), "eurosat": (0.2, 0.01),
    "food101": (0.1, 1.0),
}  # fmt: skip


def kaiming(rows: int, columns: int) -> nn.Parameter:
    """[rows, columns], uniform with the bound of PyTorch's linear layers."""
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rows, columns), a=math.sqrt(5)))


class LowRank(nn.Module):
    """x (W + U_j V_j)^T + b_j, of which all blocks share W."""

    def __init__(self, weight: nn.Parameter, bias: Tensor, rank: int) -> None:
        super().__init__()
        self.weight = weight
        self.u = kaiming(len(weight), rank)
        self.v = nn.Parameter(torch.zeros(rank, weight.shape[1]))
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.u @ self.v, self.bias)


class LowRankProjection(nn.Module):
    """CLIP's frozen projection and a learned difference from it."""

    def __init__(self, width: int, embedding: int, rank: int) -> None:
        super().__init__()
        self.u = kaiming(width, rank)
        self.v = nn.Parameter(torch.zeros(rank, embedding))

    def forward(self, x: Tensor, proj: Tensor) -> Tensor:
        """x [B, D], proj [D, E] -> [B, E]."""
        return x @ (proj + self.u @ self.v)


@dataclass(frozen=True, kw_only=True)
class MMRLPlusPlus(MMRL):
    """MMRL with few parameters: the blocks' maps differ by low-rank products, the second image
    feature starts at CLIP's projection, and tokens keep a part of what the block below made.

        A_j(R) = R (W + U_j V_j)^T + b_j;  f_r = (P + U V)^T mean_k LN(r_k)
        before block j = 7 .. 12:  r_k = beta A_j(R)_k + (1 - beta) r_k

    W [D, D_r]: learned, one of each tower; U_j [D, 4], V_j [4, D_r], b_j [D]: learned, V_j zero at
    the start; P [D, E]: CLIP's frozen projection; U [D, 64], V [64, E]: learned, V zero at the
    start; r_k: the inserted tokens. In the text tower B_j likewise. Everything else is MMRL's.

    Source: Guo and Gu, MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning
        for Vision-Language Models (https://arxiv.org/abs/2505.10088); code yunncheng/MMRL,
        trainers/mmrlpp.py, clip/model_mmrl.py, clip/model_mmrlpp.py, trainers/config.py and
        configs/trainers/MMRLpp.
    Differs: in transfers beta is the source's on every target, where the code sets another for each
        target dataset. On datasets beside the code's eleven, beta and w are its configuration's.
        Otherwise as mmrl.
    """

    lr: float = published(0.001, "MMRL configs/trainers/MMRLpp/vit_b16.yaml")
    epochs: int = published(10, "MMRL configs/trainers/MMRLpp/vit_b16.yaml")
    batch_size: int = published(4, "MMRL configs/trainers/MMRLpp/vit_b16.yaml")
    width: int = published(512, "MMRL configs/trainers/MMRLpp/vit_b16.yaml, D_r")
    beta: float = published(0.9, "MMRL configs/trainers/MMRLpp; by dataset in " + CONFIG)
    rank: int = published(4, "MMRL configs/trainers/MMRLpp/vit_b16.yaml, RES_LORA_DIM")
    projection_rank: int = published(64, "MMRL configs/trainers/MMRLpp/vit_b16.yaml")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """MMRL trainers/config.py (beta and the weight) and configs/trainers/MMRLpp (the rest)."""
        if task in TRANSFER:
            weight = 0.1 if dataset == "imagenet" else 0.2
            return {"epochs": 1, "batch_size": 32, "warmup_epochs": 0, "weight": weight}
        own: dict[str, Any] = dict(
            zip(("beta", "weight"), BY_DATASET.get(dataset, (0.9, 1.0)), strict=True)
        )
        if dataset == "imagenet":
            return own | {"epochs": 5, "batch_size": 32}
        if task == "few_shot":
            return own | {"epochs": 100, "batch_size": 32, "lr": 0.002}
        return own

    def mappings(self, tower: Tower, count: int) -> list[nn.Module]:
        start = nn.Linear(self.width, tower.width)
        shared = nn.Parameter(start.weight.detach().clone())
        return [LowRank(shared, start.bias, self.rank) for _ in range(count)]

    def mixing(self) -> float:
        return self.beta

    def projection(self, clip: Clip) -> nn.Module:
        return LowRankProjection(clip.image.width, clip.embedding, self.projection_rank)

    def check(self) -> None:
        super().check()
        if self.beta > 1:
            raise HarnessError(f"{self.name}.beta must be at most 1, not {self.beta}.")
