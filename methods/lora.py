"""CLIP-LoRA: low-rank adaptation of the attention of both towers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    Edit,
    HarnessError,
    Method,
    Site,
    SiteContext,
    Views,
    cosine_decay,
    published,
)


class LowRank(Edit):
    """y + alpha / sqrt(r) * dropout(x) A^T B^T."""

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, rate: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.scale, self.rate = alpha / math.sqrt(rank), rate

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        return y + self.scale * self.update(at.dropout(x, self.rate))

    def update(self, x: Tensor) -> Tensor:
        """x [R, L, D] times the update's transpose."""
        return x @ self.a.T @ self.b.T


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank updates of the query, key and value matrices of every block of both towers.

        W' = W + (alpha / sqrt(r)) B A

    A [r, D]: Kaiming-uniform (a = sqrt 5); B [D, r]: zero at the start; in training a quarter of
    the numbers that enter A are dropped, independently for q, k and v. alpha = 1, r = 2.

    Source: Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, section 4
        (https://arxiv.org/abs/2405.18541); code MaxZanella/CLIP-LoRA, lora.py and loralib.
    Differs: alpha / sqrt(r) as the code has it, where the paper prints alpha / r. Logits take the
        backbone's own scale; the code fixes 100, which is OpenAI's. The shots are the field's,
        where the code samples val before train. The paper has no base-to-new protocol: the few-shot
        recipe is used there, this project's choice. On CUDA bfloat16 autocast with normalised
        features and logits in single precision, where the code has half-precision autocast with
        loss scaling.
    """

    lr: float = published(2e-4, "CLIP-LoRA run_utils.py")
    epochs: int = published(0, "not used: `iterations` counts")
    iterations: int = published(8000, "CLIP-LoRA run_utils.py, 500 for each shot")
    batch_size: int = published(32, "CLIP-LoRA run_utils.py")
    momentum: float = published(0.9, "CLIP-LoRA lora.py, AdamW's beta_1")
    weight_decay: float = published(1e-2, "CLIP-LoRA lora.py, AdamW")
    warmup_epochs: int = published(0, "CLIP-LoRA lora.py")
    rank: int = published(2, "CLIP-LoRA run_utils.py, r")
    alpha: float = published(1.0, "CLIP-LoRA run_utils.py")
    dropout: float = published(0.25, "CLIP-LoRA run_utils.py")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """CLIP-LoRA run_utils.py: 500 iterations a shot."""
        return {"iterations": 500 * shots}

    def views(self) -> Views:
        return Views(drop_last=False)

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        return {
            f"{tower.name}.blocks.{i}.{part}": self.module(getattr(block.attn, part).weight)
            for tower in (clip.image, clip.text)
            for i, block in enumerate(tower.blocks)
            for part in ("q", "k", "v")
        }

    def module(self, weight: Tensor) -> Edit:
        """The edit of one frozen matrix [D, D]."""
        outputs, inputs = weight.shape
        return LowRank(inputs, outputs, self.rank, self.alpha, self.dropout)

    def check(self) -> None:
        super().check()
        if self.rank < 1 or self.dropout >= 1:
            raise HarnessError(f"{self.name} needs rank >= 1 and dropout < 1, not {self}.")

    def steps(self, steps_an_epoch: int) -> int:
        return self.iterations

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (self.momentum, 0.999)
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay
        )

    def learning_rate(self, step: int, steps_an_epoch: int, total: int) -> float:
        return cosine_decay(self.lr, step, total, floor=1e-6)
