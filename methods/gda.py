"""GDA: Gaussian discriminant analysis on the few-shot features, added to CLIP's classifier."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    BEST_SEVEN,
    Classes,
    Clip,
    CosineHead,
    HarnessError,
    HeadContext,
    Method,
    Support,
    Views,
    class_features,
    ensembled,
    published,
)

SINGLE = 1.2e-7  # the relative spacing of single precision, in which the features are


class Gaussian(CosineHead):
    """CLIP's logits plus alpha times those of Gaussian classes with one covariance.

    weight [C, E] and bias [C] are of the fitted classes; for others they are made of the features
    of the shots [M, E] that are nearest to each class's text.
    """

    weight: Tensor
    bias: Tensor
    alpha: Tensor
    shots: Tensor

    def __init__(
        self, classes: int, embedding: int, stored: int, nearest: int, copies: int
    ) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(classes, embedding))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("alpha", torch.zeros(()))
        self.register_buffer("shots", torch.zeros(stored, embedding))
        self.nearest, self.copies = nearest, copies
        self.last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None  # texts, and what they gave

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        rows = given.rows
        own = self.remembered(text) if rows is None else (self.weight[rows], self.bias[rows])
        return super().forward(image, text, given) + self.alpha * self.scores(image, *own)

    def scores(self, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """f^ w_c + b_c [B, C]."""
        return F.normalize(image, dim=-1) @ weight.T + bias

    def remembered(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """`unseen`, which all batches of an evaluation share."""
        if self.last is None or not torch.equal(self.last[0], text):
            weight, bias = self.unseen(class_features(text.double()))
            self.last = text, (weight.to(text), bias.to(text))
        return self.last[1]

    def unseen(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [C, E] and biases [C] of classes without shots, from normalised texts [C, E]."""
        if not len(self.shots):
            raise HarnessError("gda with the pooled covariance knows the fitted classes alone.")
        shots = self.shots[self.shots.any(1)].to(text)
        count = min(self.nearest, len(shots))
        near = shots[(text @ shots.T).topk(count, dim=1).indices]  # [C, k, E]
        means = (near.sum(1) + self.copies * text) / (count + self.copies)
        inverse = torch.zeros(text.shape[1], text.shape[1]).to(text)
        for each, centre in zip(near, text, strict=True):
            around = each - centre
            inverse += shrunk_inverse(around.T @ around, count)
        return discriminant(means, inverse / len(text))


def shrunk_inverse(scatter: Tensor, count: int) -> Tensor:
    """E ((M - 1) S + tr(S) I)^-1 of the scatter (M - 1) S [E, E] of M features (Kubokawa and
    Srivastava's ridge estimator)."""
    size = len(scatter)
    ridge = scatter.trace() / (count - 1) * torch.eye(size).to(scatter)
    return size * torch.linalg.inv(scatter + ridge)


def discriminant(means: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """w_c = P mu_c [C, E] and b_c = log(1/C) - mu_c^T P mu_c / 2 [C]."""
    weight = means @ inverse
    return weight, -math.log(len(means)) - (weight * means).sum(1) / 2


@dataclass(frozen=True, kw_only=True)
class GDA(Method):
    """Gaussian classes with one covariance, estimated from the shots and added to CLIP's
    classifier; nothing is trained.

        logits = cos(f, t_c) / tau + alpha (w_c f^ + b_c)
        w_c = P mu_c,  b_c = log(1/C) - mu_c^T P mu_c / 2

    f^ [E]: normalised image feature; mu_c: mean of class c's f^ over ten views of each shot.
    few_shot and domain_generalization: P = E ((M - 1) S + tr(S) I)^-1 of the M centred features
    with covariance S (`pooled`). Elsewhere: P = pinv of the mean of the classes' covariances
    (`by_class`); a class without shots takes the 64 features of shots nearest to its text t: mu_c
    is the mean of these and 16 copies of t, P the mean over such classes of the pooled form about
    t. alpha is the best of 10^-4 .. 10^2 on the val images, of equal ones the first.

    Source: Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, Eq. 4-10
        (https://arxiv.org/abs/2402.04087); code mrflogs/ICLR24, main_few_shots.py,
        main_robustness.py and main_base2new.py.
    Differs: cross_dataset, which is not published, takes the rule of base2new for classes without
        shots. alpha is chosen on val images everywhere, where the code uses ImageNet's test images;
        val has min(shots, 4) images a class. The ridge makes the matrix regular, so that it is
        inverted where the code takes a pseudo-inverse; that of `by_class` drops what is below
        single precision, computed in double. On CUDA the towers run in bfloat16 autocast, the
        closed forms in double precision, in the code both in half or single precision.
    """

    uses_val: ClassVar[bool] = True

    epochs: int = published(0, "nothing is trained")
    views_of_each: int = published(10, "GDA main_few_shots.py, augment_epoch")
    covariance: Literal["pooled", "by_class"] = published("by_class", "GDA main_base2new.py")
    nearest: int = published(64, "GDA main_base2new.py, features of shots for an unseen class")
    text_copies: int = published(16, "GDA main_base2new.py, of the text in an unseen class's mean")
    most_shots: int = published(16, "images a class that there is room for")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """GDA main_few_shots.py, main_robustness.py and main_base2new.py."""
        pooled = task in ("few_shot", "domain_generalization")
        covariance = "pooled" if pooled else "by_class"
        return {"covariance": covariance, "most_shots": shots}

    def prompts(self, classes: Classes) -> list[list[str]]:
        return ensembled(classes, *BEST_SEVEN)

    def views(self) -> Views:
        return Views(scale=(0.5, 1.0), drop_last=False, count=self.views_of_each)

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        count = len(classes.names)
        stored = count * self.most_shots * self.views_of_each
        stored = stored if self.covariance == "by_class" else 0
        return Gaussian(count, clip.embedding, stored, self.nearest, self.text_copies)

    @torch.no_grad()
    def prepare(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Gaussian)
        views = [F.normalize(support.view(number), dim=-1) for number in range(self.views_of_each)]
        image, labels = torch.cat(views).double(), support.labels.repeat(self.views_of_each)
        own = F.one_hot(labels, len(head.weight)).to(image)  # [M, C]
        means = own.T @ image / own.sum(0)[:, None]
        centred = image - means[labels]
        if self.covariance == "pooled":
            inverse = shrunk_inverse(centred.T @ centred, len(image))
        else:
            shares = 1 / (own.sum(0) - 1)[labels]  # of a class's unbiased covariance
            mean = (shares[:, None] * centred).T @ centred / len(means)
            inverse = torch.linalg.pinv(mean, rtol=SINGLE * len(mean), hermitian=True)
            head.shots.zero_()
            head.last = None
            head.shots[: len(image)] = image.to(head.shots)
        weight, bias = discriminant(means, inverse)
        head.weight.copy_(weight)
        head.bias.copy_(bias)

    @torch.no_grad()
    def finish(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Gaussian)
        image, labels = support.val()
        frozen = CosineHead()(image, support.text, HeadContext(support.scale))
        added = head.scores(image, head.weight, head.bias)
        alphas = [10.0**power for power in range(-4, 3)]
        correct = [int(((frozen + a * added).argmax(-1) == labels).sum()) for a in alphas]
        head.alpha.fill_(alphas[correct.index(max(correct))])
