"""Tip-X: a few-shot cache that also compares what images and shots look like to the texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    CosineHead,
    HarnessError,
    HeadContext,
    Support,
    class_features,
    published,
)
from harness.methods.tip_adapter import Cached, TipAdapter, grid

ENTRIES = 2**24  # of logits that a search holds at once


class Compared(Cached):
    """A cache whose keys are distributions over the classes, too: `likely` [N, C], in logarithms.

    low, high, least, most: the smallest and largest divergence, and affinity, of the val images.
    """

    likely: Tensor
    gamma: Tensor
    low: Tensor
    high: Tensor
    least: Tensor
    most: Tensor

    def __init__(self, images: int, embedding: int, classes: int, temperature: float) -> None:
        super().__init__(images, embedding, classes, trained=False)
        self.register_buffer("likely", torch.zeros(images, classes))
        for name in ("gamma", "low", "high", "least", "most"):
            self.register_buffer(name, torch.zeros(()))
        self.temperature = temperature

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        return super().forward(image, text, given) - self.gamma * self.scaled(image, text)

    def distributions(self, image: Tensor, text: Tensor) -> Tensor:
        """log softmax of the cosines over the temperature [B, C]."""
        cosines = F.normalize(image, dim=-1) @ class_features(text).T
        return (cosines / self.temperature).log_softmax(-1)

    def divergences(self, image: Tensor, text: Tensor) -> Tensor:
        """KL(p || p_n) [B, N] of images and keys."""
        mine = self.distributions(image, text)
        return (mine.exp() * mine).sum(-1, keepdim=True) - mine.exp() @ self.likely.T

    def scaled(self, image: Tensor, text: Tensor) -> Tensor:
        """psi(KL) L [B, C]."""
        share = (self.divergences(image, text) - self.low) / (self.high - self.low).clamp_min(1e-12)
        return (self.least + share * (self.most - self.least)) @ self.values


@dataclass(frozen=True, kw_only=True)
class TipX(TipAdapter):
    """Tip-Adapter's cache, and a second one that compares the class distributions of image and shot
    instead of their features; nothing is trained.

        logits = cos(f, t) / tau + alpha exp(-beta (1 - f^ F^T)) L - gamma psi(KL(p || P)) L
        p = softmax_c(cos(f, t_c) / T),  P_n = softmax_c(cos(F_n, t_c) / T)

    f, F, L: as in `tip_adapter`; t_c [E]: class feature; KL(p || P) [B, N]: the divergence of each
    shot's distribution from the image's; psi: the linear map of the smallest and largest divergence
    to the smallest and largest affinity f^ F^T of the val images; T = 0.5. alpha, beta and gamma
    are the best of a 20 x 200 x 50 grid on the val images, of equal ones the first.

    Source: Udandarao et al., SuS-X: Training-Free Name-Only Transfer of Vision-Language Models,
        section 3.2, Eq. 4-7 (https://arxiv.org/abs/2211.16198); code vishaal27/SuS-X, tipx.py.
    Differs: the cache is of the few-shot images, as in the paper's few-shot comparison; SuS-X's own
        support sets, generated or retrieved for the names, are not here. The ends of psi are those
        of the val images; the code takes the divergences' from the test images, so that an image's
        answer depends on which others are tested, and leaves those of the last part of a hundred
        images at zero. Keys and templates are `tip_adapter`'s; the code has one view of each image,
        and adds a language model's sentences to the templates. CLIP's logits take the backbone's
        scale, where the code fixes 100, which is OpenAI's. val has min(shots, 4) images a class,
        where the code has the whole val split. On CUDA the towers run in bfloat16 autocast and the
        cache in single precision, in the code both in half precision.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    epochs: int = published(0, "nothing is trained")
    temperature: float = published(0.5, "SuS-X tipx.py, T")
    most_alpha: float = published(50.0, "SuS-X tipx.py, search_scale")
    most_beta: float = published(50.0, "SuS-X tipx.py, search_scale")
    most_gamma: float = published(30.0, "SuS-X tipx.py, search_scale")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """The room of the cache."""
        return {"shots": shots}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        count = len(classes.names)
        return Compared(count * self.shots, clip.embedding, count, self.temperature)

    @torch.no_grad()
    def prepare(self, head: nn.Module, support: Support) -> None:
        super().prepare(head, support)
        assert isinstance(head, Compared)
        count = len(support.labels)
        head.likely.zero_()
        head.likely[:count] = head.distributions(head.keys[:count], support.text)

    @torch.no_grad()
    def finish(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Compared)
        (image, labels), text, count = support.val(), support.text, len(support.labels)
        divergences = head.divergences(image, text)[:, :count]
        affinity = F.normalize(image, dim=-1) @ head.keys[:count].T
        head.low.copy_(divergences.min())
        head.high.copy_(divergences.max())
        head.least.copy_(affinity.min())
        head.most.copy_(affinity.max())
        frozen = CosineHead()(image, text, HeadContext(support.scale))
        compared = -head.scaled(image, text)
        alphas = grid(self.most_alpha, 20)
        betas = [1 + i * (self.most_beta - 1) / 200 for i in range(200)]
        gammas = grid(self.most_gamma, 50)
        cached = [head.cached(image, beta) for beta in betas]
        right = torch.stack(
            [
                correct(frozen + a * each, compared, gammas, labels)
                for a in alphas
                for each in cached
            ]
        )  # [alphas x betas, gammas]
        pair, gamma = divmod(int(right.flatten().argmax()), len(gammas))
        alpha, beta = divmod(pair, len(betas))
        head.alpha.fill_(alphas[alpha])
        head.beta.fill_(betas[beta])
        head.gamma.fill_(gammas[gamma])

    def check(self) -> None:
        super().check()
        if self.trained or not self.temperature:
            raise HarnessError(
                f"{self.name} trains nothing and needs a temperature above 0: leave `trained` as "
                "it is; `tip_adapter_f` has trained keys."
            )


def correct(logits: Tensor, added: Tensor, factors: list[float], labels: Tensor) -> Tensor:
    """How many images are right with logits + w added [B, C], for each factor w."""
    parts = torch.tensor(factors).to(logits).split(max(1, ENTRIES // logits.numel()))
    right = [(logits + w[:, None, None] * added).argmax(-1) == labels for w in parts]
    return torch.cat(right).sum(-1)
