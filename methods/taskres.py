"""TaskRes: task residuals on the text features."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.method import (
    BEST_SEVEN,
    Classes,
    Clip,
    CosineHead,
    HeadContext,
    Method,
    ensembled,
    published,
)

TEMPLATES = (*BEST_SEVEN, "a photo of a {}.")


class Shifted(CosineHead):
    """CLIP's classifier on text features that have a learned residual each."""

    def __init__(self, classes: int, embedding: int, scale: float) -> None:
        super().__init__()
        self.residual = nn.Parameter(torch.zeros(classes, embedding))
        self.scale = scale

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        """text [C, T, E]: the mean of its T features is shifted."""
        shifted = text.mean(1) + self.scale * self.residual
        return super().forward(image, shifted[:, None], given)


@dataclass(frozen=True, kw_only=True)
class TaskRes(Method):
    """A learned residual on the text feature of each fitted class; both towers stay frozen.

        t'_c = t_c + alpha x_c;  logits_c = cos(f, t'_c) / tau

    f [E]: image feature; t_c [E]: mean of the features of the class's templates, before
    normalisation; x_c [E]: learned, zero at the start; alpha = 0.5, on Oxford Flowers 1.

    Source: Yu et al., Task Residual for Tuning Vision-Language Models, Eq. 3-5
        (https://arxiv.org/abs/2211.10277); code geekyutao/TaskRes, trainers/taskres.py,
        train_regular.sh and configs/trainers/TaskRes.
    Differs: the names of classes are read with spaces, where the code leaves underscores in them.
        The regular base classifier alone. The enhanced one starts from a text projection tuned on
        the same shots, which the authors offer as files and not as code. On CUDA the towers run in
        bfloat16 autocast and the residual in single precision, in the code both in single
        precision.
    """

    only_fitted_classes: ClassVar[bool] = True

    lr: float = published(2e-3, "TaskRes train_regular.sh")
    epochs: int = published(200, "TaskRes train_regular.sh, 8 and 16 shots")
    batch_size: int = published(256, "TaskRes configs/trainers/TaskRes")
    momentum: float = published(0.9, "PyTorch's default, Adam's beta_1")
    scale: float = published(0.5, "TaskRes train_regular.sh, alpha")
    ensemble: bool = published(True, "TaskRes trainers/taskres.py: eight templates on ImageNet")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """TaskRes train_regular.sh; generalization_vit16.yaml on ImageNet with ViT-B/16."""
        return {
            "epochs": 200 if shots >= 8 else 100,
            "lr": 2e-4 if dataset == "imagenet" else 2e-3,
            "scale": 1.0 if dataset == "oxford_flowers" else 0.5,
        }

    def prompts(self, classes: Classes) -> list[list[str]]:
        return ensembled(classes, *(TEMPLATES if self.ensemble else [classes.template]))

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Shifted(len(classes.names), clip.embedding, self.scale)

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (self.momentum, 0.999)
        return torch.optim.Adam(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay)
