"""ProDA: prompt distribution learning."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    Edit,
    HarnessError,
    HeadContext,
    Method,
    Output,
    Site,
    SiteContext,
    published,
)


class Contexts(Edit):
    """K context vectors of length M, after, around or before the name: each row has its own."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)  # [K, M, D]

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        count, length = self.vectors.shape[:2]
        # tokens of the name: less [SOS], M, "."; where the tokenizer merges a final "." into the
        # name's it is one less, but then the name stands last and its length is not used
        name = at.ids.argmax(-1) - length - 2
        places = torch.stack(
            [1 + m + name * (m >= before_name(length, at.kinds, count)) for m in range(length)], 1
        )  # [R, M]
        vectors = self.vectors[at.kinds].to(y.dtype)  # [R, M, D]
        return y.scatter(1, places[:, :, None].expand_as(vectors), vectors)


def before_name(length: int, kinds: Tensor, count: int) -> Tensor:
    """How many of the context tokens of prompt `kinds` stand before the name."""
    middle, front = kinds >= count // 2, kinds >= count // 2 + count // 4
    return torch.where(front, 0, torch.where(middle, length // 2, length))


class Mean(nn.Module):
    """Cosine with the mean of the class's normalised text features, not normalised again."""

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        weights = F.normalize(text[:-1], dim=-1).mean(1)  # [C, E]; the last row has no name
        return given.scale * F.normalize(image, dim=-1) @ weights.T


@dataclass(frozen=True, kw_only=True)
class ProDA(Method):
    """A set of prompts, whose class features are taken as Gaussian.

        mu_c = mean_k w_kc,  D_ij = sum_k (w_ki - mu_i) * (w_kj - mu_j) / (b + 1)
        l_j = s f . mu_j + s^2 / 2 * (f * f) . (D_yy + D_jj - 2 D_yj)
        L = CE(l, y) + lambda mean_{k != l} |cos(g(P_k), g(P_l))|
        inference: argmax_j f . mu_j over all K prompts

    w_kc [E]: normalised feature of class c with prompt k; b = 4 of the K = 32 prompts take part in
    a step; * : entry by entry (a diagonal covariance over features); s: CLIP's logit scale; y: the
    label; P_k: prompt k without a name. Each prompt has 16 vectors N(0, 0.02^2): behind them stands
    the name in half of the prompts, between them in a quarter, before them in a quarter.

    Source: Lu et al., Prompt Distribution Learning, Eq. 4-10 (https://arxiv.org/abs/2205.03340).
    Differs: no code is public; this is our reading of the equations, with the covariance diagonal
        and over b + 1. Batch size and warm-up are CoOp's. The rate and the epochs are the paper's
        as they are quoted.
    """

    lr: float = published(0.001, "ProDA section 4.1, as quoted")
    epochs: int = published(100, "ProDA section 4.1, as quoted")
    count: int = published(32, "ProDA section 4.1, K")
    drawn: int = published(4, "ProDA section 4.1, b")
    vectors: int = published(16, "ProDA section 4.1, M")
    weight: float = published(0.1, "ProDA section 4.1, lambda")

    def prompts(self, classes: Classes) -> list[list[str]]:
        kinds = torch.arange(self.count)
        before = before_name(self.vectors, kinds, self.count).tolist()
        words = [(["X"] * first, ["X"] * (self.vectors - first)) for first in before]
        templates = [" ".join([*one, "{}", *two]) + "." for one, two in words]
        nameless = " ".join(["X"] * self.vectors) + "."
        return [*classes.texts(*templates), [nameless] * self.count]

    def texts_a_step(self) -> int:
        return self.drawn

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        shape = (self.count, self.vectors, clip.text.width)
        return {"text.tokens": Contexts(0.02 * torch.randn(shape))}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Mean()

    def check(self) -> None:
        super().check()
        if not 2 <= self.drawn <= self.count:
            raise HarnessError(f"{self.name}.drawn must be between 2 and count, not {self.drawn}.")

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        scale, image = output.given.scale, F.normalize(output.image, dim=-1)
        weights = F.normalize(output.text[:-1], dim=-1)  # [C, b, E]
        centred = weights - weights.mean(1, keepdim=True)
        number = weights.shape[1] + 1
        variance = centred.square().sum(1) / number  # D_jj [C, E]
        squares = image.square()
        own = squares @ variance.T  # [B, C]
        crossed = torch.einsum("be,bke,cke->bc", squares, centred[labels], centred) / number
        spread = own.gather(1, labels[:, None]) + own - 2 * crossed
        loss = F.cross_entropy(output.logits + scale**2 / 2 * spread, labels)
        nameless = F.normalize(output.text[-1], dim=-1)  # [b, E]
        cosines = (nameless @ nameless.T).abs()
        others = (cosines.sum() - cosines.diagonal().sum()) / (len(cosines) * (len(cosines) - 1))
        return loss + self.weight * others + output.auxiliary
