"""KgCoOp: knowledge-guided context optimisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from harness.method import Classes, Output, class_features, published
from harness.methods.coop import CoOp


@dataclass(frozen=True, kw_only=True)
class KgCoOp(CoOp):
    """CoOp with class features kept close to those of hand-written prompts.

        L = CE + lambda (1 - 1/C sum_c cos(t_c, t0_c))

    t_c: the learned prompt's feature of class c; t0_c: that of the dataset's template on the frozen
    tower; lambda = 8.

    Source: Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization,
        Eq. 3-5 (https://arxiv.org/abs/2303.13283); code htyao89/KgCoOp, trainers/kgcoop.py and
        configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml.
    Differs: Eq. 3 prints the squared distance of the normalised features, twice the code's
        1 - cos; the code's form is used, with the code's lambda. The learning rate follows the one
        schedule of the current code: the paper's runs may have applied it twice. bfloat16 autocast
        with float32 prompts instead of half precision.
    """

    epochs: int = published(100, "KgCoOp configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml")
    batch_size: int = published(128, "KgCoOp configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml")
    weight: float = published(8.0, "KgCoOp scripts/base2new_train.sh, lambda")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """The code runs every dataset with the same settings."""
        return {}

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        texture = "a photo of a {}, a type of texture."
        return {"anchor": classes.texts(texture if classes.dataset == "dtd" else classes.template)}

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        return super().loss(output, labels) + self.weight * distance(output)


def distance(output: Output) -> Tensor:
    """1 - mean cosine of class features and their anchors."""
    anchors = class_features(output.given.references["anchor"])
    return 1 - F.cosine_similarity(class_features(output.text), anchors, dim=-1).mean()
