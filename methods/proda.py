"""ProDA: prompt distribution learning."""

from dataclasses import dataclass
from typing import Literal

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
    generator,
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


def parted(text: Tensor, nameless: int) -> tuple[Tensor, Tensor]:
    """Features [C, T, E] of the classes, and [K, E] of prompts without a name: of `nameless` in all
    where that is more than a row."""
    rows = max(1, nameless // text.shape[1])
    return text[:-rows], text[-rows:].flatten(0, 1)


class Mean(nn.Module):
    """Cosine with the mean of the class's normalised text features, not normalised again."""

    def __init__(self, nameless: int) -> None:
        super().__init__()
        self.nameless = nameless

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        named, _ = parted(text, self.nameless)
        weights = F.normalize(named, dim=-1).mean(1)  # [C, E]
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
    label; P_k: prompt k without a name, of all K. A permutation of the prompts is used up b by b,
    then another. Each prompt has 16 vectors N(0, 0.02^2): behind them stands the name in half of
    the prompts, between them in a quarter, before them in a quarter.

    Source: Lu et al., Prompt Distribution Learning, Eq. 4-10 (https://arxiv.org/abs/2205.03340).
    Differs: the authors' code is a zip file on their page; what is said of it here is what three
        ports of it have in common: the covariance, diagonal and over b + 1; orthogonality over all
        K prompts without a name in each step; the permutation. `minibatch="equations"` is this
        project's reading of a minibatch in the paper: b prompts drawn anew in each step,
        orthogonality over them alone. The ports weight orthogonality differently (one by 1, one not
        at all); lambda, the rate and the epochs are the paper's as they are quoted. Two of them
        leave underscores in class names, which are read as spaces here. Batch size, warm-up,
        momentum, weight decay and the schedule by epoch are CoOp's, this project's choice, with one
        step for each batch of images. Two of the ports take b prompts after b until all K have been
        used, so 8 steps for each batch, by plain SGD with neither, and a cosine by step. bfloat16
        autocast with float32 prompts.
    """

    lr: float = published(0.001, "ProDA section 4.1, as quoted")
    epochs: int = published(100, "ProDA section 4.1, as quoted")
    count: int = published(32, "ProDA section 4.1, K")
    drawn: int = published(4, "ProDA section 4.1, b")
    vectors: int = published(16, "ProDA section 4.1, M")
    weight: float = published(0.1, "ProDA section 4.1, lambda")
    minibatch: Literal["released", "equations"] = published(
        "released", "ProDA's code as ported; `equations`: our reading of the paper"
    )

    @property
    def nameless(self) -> int:
        """How many prompts without a name take part in a step, 0: as many as with one."""
        return self.count if self.minibatch == "released" else 0

    def prompts(self, classes: Classes) -> list[list[str]]:
        kinds = torch.arange(self.count)
        before = before_name(self.vectors, kinds, self.count).tolist()
        words = [(["X"] * first, ["X"] * (self.vectors - first)) for first in before]
        templates = [" ".join([*one, "{}", *two]) + "." for one, two in words]
        nameless = " ".join(["X"] * self.vectors) + "."
        return [*classes.texts(*templates), [nameless] * self.count]

    def texts_of_step(self, rows: int, seed: object, step: int) -> Tensor:
        """b prompts, the same for every class, and those without a name in rows of b."""
        several, everyone = self.count // self.drawn, torch.arange(self.count)
        if self.minibatch == "released":
            order = torch.randperm(self.count, generator=generator("texts", seed, step // several))
            kinds = order.view(several, self.drawn)[step % several]
            others = everyone.view(several, self.drawn)
        else:
            order = torch.randperm(self.count, generator=generator("texts", seed, step))
            kinds = order[: self.drawn]
            others = kinds[None]
        named = self.count * torch.arange(rows - 1)[:, None] + kinds  # [C, b]
        return torch.cat([named, self.count * (rows - 1) + others])

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        shape = (self.count, self.vectors, clip.text.width)
        return {"text.tokens": Contexts(0.02 * torch.randn(shape))}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Mean(self.nameless)

    def check(self) -> None:
        super().check()
        if not 2 <= self.drawn <= self.count:
            raise HarnessError(f"{self.name}.drawn must be between 2 and count, not {self.drawn}.")
        if self.minibatch == "released" and self.count % self.drawn:
            raise HarnessError(
                f"{self.name}.count = {self.count} prompts cannot be used up {self.drawn} by "
                f"{self.drawn}. Give a multiple, or {self.name}.minibatch=equations."
            )

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        scale, image = output.given.scale, F.normalize(output.image, dim=-1)
        named, nameless = (F.normalize(each, dim=-1) for each in parted(output.text, self.nameless))
        centred = named - named.mean(1, keepdim=True)
        number = named.shape[1] + 1
        variance = centred.square().sum(1) / number  # D_jj [C, E]
        squares = image.square()
        own = squares @ variance.T  # [B, C]
        crossed = torch.einsum("be,bke,cke->bc", squares, centred[labels], centred) / number
        spread = own.gather(1, labels[:, None]) + own - 2 * crossed
        loss = F.cross_entropy(output.logits + scale**2 / 2 * spread, labels)
        cosines = (nameless @ nameless.T).abs()
        others = (cosines.sum() - cosines.diagonal().sum()) / (len(cosines) * (len(cosines) - 1))
        return loss + self.weight * others + output.auxiliary
