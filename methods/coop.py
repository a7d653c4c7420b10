"""CoOp: context optimisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import Classes, Clip, Edit, HarnessError, Method, Site, SiteContext, published


class Context(Edit):
    """Replaces the token embeddings after start-of-text by learned vectors [M, D]."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        return self.replaced(y, self.vectors.expand(len(y), -1, -1))

    def replaced(self, y: Tensor, context: Tensor) -> Tensor:
        """y [R, L, D] with the tokens after the first replaced by context [R, M, D]."""
        start, rest = y[:, :1], y[:, 1 + context.shape[1] :]
        return torch.cat([start, context.to(y.dtype), rest], dim=1)  # [R, L, D]


def embedded(clip: Clip, words: str) -> Tensor:
    """The token embeddings [M, D] of some words."""
    ids = clip.tokenize([words])[0]
    return clip.text.text.token_embedding(ids[1 : int(ids.argmax())]).detach().clone()


def few_shot_epochs(dataset: str, shots: int) -> int:
    """CoOp's epochs for classification over all classes (CoOp COOP.md)."""
    return 50 if shots == 1 or dataset == "imagenet" else 100 if shots <= 4 else 200


@dataclass(frozen=True, kw_only=True)
class CoOp(Method):
    """Learned context vectors, shared by all classes, that replace the words of the prompt.

        t_c = [SOS] v_1 ... v_M [name of c] "." [EOS];  L = CE(cos(f(x), g(t_c)) / tau)

    v_m: learned vectors in the space of the token embeddings; f, g: the frozen towers.

    Source: Zhou et al., Learning to Prompt for Vision-Language Models, section 3.2
        (https://arxiv.org/abs/2109.01134); for base-to-new the configuration of Zhou et al.,
        Conditional Prompt Learning, section 4.1 (https://arxiv.org/abs/2203.05557): M = 4,
        initialised from "a photo of a", 200 epochs, 50 on ImageNet. Few-shot classification over
        all classes takes the first paper's: M = 16 random vectors, and 50 epochs with one shot and
        on ImageNet, 100 with up to four, 200 above.
    Differs: bfloat16 autocast with float32 prompts instead of half-precision weights and prompts.
    """

    epochs: int = published(200, "CoOp scripts/cocoop/base2new_train.sh; Zhou et al. 2022b, 4.1")
    context: str = published("a photo of a", "Zhou et al. 2022b, section 4.1")
    random_vectors: int = published(0, "M of N(0, 0.02^2) instead of `context`; 16 in few_shot")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """CoOp COOP.md (few-shot); scripts/cocoop (the rest)."""
        if task == "few_shot":
            return {"random_vectors": 16, "epochs": few_shot_epochs(dataset, shots)}
        return {"epochs": 50} if dataset == "imagenet" else {}

    def check(self) -> None:
        super().check()
        if not self.context.strip() and not self.random_vectors:
            raise HarnessError(f"{self.name} needs words in `context`, or `random_vectors`.")

    def prompts(self, classes: Classes) -> list[list[str]]:
        words = " ".join(["X"] * self.random_vectors) or self.context
        return classes.texts(f"{words} {{}}.")

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        if self.random_vectors:
            return {
                "text.tokens": Context(0.02 * torch.randn(self.random_vectors, clip.text.width))
            }
        return {"text.tokens": Context(embedded(clip, self.context))}
