"""Tip-Adapter: a cache of the few-shot features, as it is or trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    BEST_SEVEN,
    IMAGENETS,
    Classes,
    Clip,
    CosineHead,
    HarnessError,
    HeadContext,
    Method,
    Support,
    Views,
    cosine_decay,
    published,
)

INITIAL_ALPHA = {"caltech101": 3, "dtd": 2, "eurosat": 2, "fgvc_aircraft": 5, "oxford_flowers": 10,
                 "stanford_cars": 3, "ucf101": 3}  # fmt: skip
LARGEST = {  # (beta, alpha) of the search
    "caltech101": (12, 5), "dtd": (13, 13), "eurosat": (12, 10), "fgvc_aircraft": (30, 30),
    "food101": (10, 10), "oxford_flowers": (50, 50), "stanford_cars": (20, 10), "sun397": (12, 10),
}  # fmt: skip


class Cached(CosineHead):
    """CLIP's logits plus those of a cache with one key for each few-shot image."""

    keys: Tensor
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, images: int, embedding: int, classes: int, trained: bool) -> None:
        super().__init__()
        keys = torch.zeros(images, embedding)
        if trained:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("values", torch.zeros(images, classes))
        self.register_buffer("alpha", torch.zeros(()))
        self.register_buffer("beta", torch.zeros(()))

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        return super().forward(image, text, given) + self.alpha * self.cached(image, self.beta)

    def cached(self, image: Tensor, beta: Tensor | float) -> Tensor:
        """exp(-beta (1 - f F^T)) L [B, C]."""
        affinity = F.normalize(image, dim=-1) @ self.keys.T
        return (beta * affinity - beta).exp() @ self.values


@dataclass(frozen=True, kw_only=True)
class TipAdapter(Method):
    """A classifier from the few-shot features themselves, added to CLIP's; nothing is trained.

        logits = cos(f, t) / tau + alpha exp(-beta (1 - f^ F^T)) L

    f^ [E]: normalised image feature; F [N, E]: the keys, for each few-shot image the normalised
    mean of its features under ten augmentations; L [N, C]: their labels, one-hot. alpha and beta
    are the best of a 20 x 200 grid on the val images, of equal ones the first. t is the mean of
    seven templates on ImageNet and its variants, elsewhere the dataset's one.

    `tip_adapter_f` trains the keys, from these values and with the initial alpha and beta, before
    the search.

    Source: Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification,
        Eq. 3-9 (https://arxiv.org/abs/2207.09519); code gaopengcuhk/Tip-Adapter, main.py, utils.py,
        configs.
    Differs: the ten augmentations are those of the first ten epochs of `tip_adapter_f`, so that
        their features are computed once. The search never sees test images, where the code uses
        them on ImageNet; val has min(shots, 4) images a class, where the code has the whole val
        split. `tip_adapter_f` is scored after the last epoch, where the code takes the best epoch
        on the test images. The code knows no variants of ImageNet; they take its seven templates,
        and `ensemble=False` takes one template everywhere. CLIP's logits take the backbone's scale;
        the code fixes 100, which is OpenAI's. On CUDA the towers run in bfloat16 autocast and the
        cache in single precision, in the code both in half precision.
    """

    uses_val: ClassVar[bool] = True
    only_fitted_classes: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tip_adapter_f": {"trained": True}}

    lr: float = published(1e-3, "Tip-Adapter configs")
    epochs: int = published(20, "Tip-Adapter configs, of tip_adapter_f")
    batch_size: int = published(256, "Tip-Adapter main.py")
    momentum: float = published(0.9, "PyTorch's default, AdamW's beta_1")
    weight_decay: float = published(1e-2, "PyTorch's default, AdamW")
    warmup_epochs: int = published(0, "Tip-Adapter main.py")
    eps: float = published(1e-4, "Tip-Adapter main.py, AdamW")
    trained: bool = published(False, "Tip-Adapter-F")
    shots: int = published(16, "images a class that the cache has room for")
    augmentations: int = published(10, "Tip-Adapter configs, augment_epoch")
    alpha: float = published(1.17, "Tip-Adapter configs, init_alpha")
    beta: float = published(1.0, "Tip-Adapter configs, init_beta")
    most_alpha: float = published(3.0, "Tip-Adapter configs, search_scale")
    most_beta: float = published(7.0, "Tip-Adapter configs, search_scale")
    ensemble: bool = published(
        True, "Tip-Adapter datasets/imagenet.py: seven templates on ImageNet"
    )

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """Tip-Adapter configs/*.yaml; that datasets without one take ImageNet's is our choice."""
        beta, alpha = LARGEST.get(dataset, (7, 3))
        return {
            "shots": shots,
            "alpha": float(INITIAL_ALPHA.get(dataset, 1.17)),
            "most_alpha": float(alpha),
            "most_beta": float(beta),
            "epochs": 100 if dataset == "eurosat" else 20,
        }

    def prompts(self, classes: Classes) -> list[list[str]]:
        if self.ensemble and classes.dataset in IMAGENETS:
            return classes.texts(*BEST_SEVEN)
        return classes.texts(classes.template)

    def views(self) -> Views:
        return Views(scale=(0.5, 1.0), drop_last=False)

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        count = len(classes.names)
        return Cached(count * self.shots, clip.embedding, count, self.trained)

    def prepare(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Cached)
        count = len(support.labels)
        if count > len(head.keys):
            raise HarnessError(f"{self.name}.shots = {self.shots} is less than there are.")
        features = sum(support.view(number) for number in range(self.augmentations))
        with torch.no_grad():
            head.keys.zero_()
            head.values.zero_()
            head.keys[:count] = F.normalize(torch.as_tensor(features), dim=-1)
            head.values[:count] = F.one_hot(support.labels, head.values.shape[1])
            head.alpha.fill_(self.alpha)
            head.beta.fill_(self.beta)

    @torch.no_grad()
    def finish(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Cached)
        image, labels = support.val()
        scale = support.scale
        frozen = CosineHead()(image, support.text, HeadContext(scale))
        best = -1
        for beta in grid(self.most_beta, 200):
            cached = head.cached(image, beta)
            for alpha in grid(self.most_alpha, 20):
                correct = int(((frozen + alpha * cached).argmax(-1) == labels).sum())
                if correct > best:
                    best = correct
                    head.alpha.fill_(alpha)
                    head.beta.fill_(beta)

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay,
            betas=(self.momentum, 0.999),
        )  # fmt: skip

    def learning_rate(self, step: int, steps_an_epoch: int, total: int) -> float:
        return cosine_decay(self.lr, step, total)


def grid(most: float, count: int) -> list[float]:
    """0.1 + i (most - 0.1) / count for i = 0 .. count - 1 (Tip-Adapter utils.py, search_hp)."""
    return [0.1 + i * (most - 0.1) / count for i in range(count)]
