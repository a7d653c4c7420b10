"""DePT: a second head that takes the classes' own channels away from the prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    CosineHead,
    Edit,
    HarnessError,
    HeadContext,
    Method,
    Output,
    Site,
    published,
)
from harness.methods.cocoop import CoCoOp
from harness.methods.coop import CoOp
from harness.methods.kgcoop import KgCoOp
from harness.methods.maple import MaPLe
from harness.methods.promptsrc import PromptSRC

BASES: Mapping[str, Method] = {
    "cocoop": CoCoOp(), "kgcoop": KgCoOp(weight=2.0), "maple": MaPLe(), "promptsrc": PromptSRC(),
}  # fmt: skip


class Dual(CosineHead):
    """CLIP's classifier, beside a linear one on features whose channels are scaled and shifted.

    In training the logits are CLIP's; when fitted classes are scored, a mixture of both.
    """

    def __init__(self, classes: int, embedding: int, share: float) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.ParameterDict({kind: start(embedding) for kind in ("image", "text")})
            for start in (torch.ones, torch.zeros)
        )
        self.linear = nn.Linear(embedding, classes)
        self.share = share

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        logits = super().forward(image, text, given)
        if given.rows is None or given.key is not None:
            return logits
        return (1 - self.share) * logits + self.share * self.own(image, "image")[:, given.rows]

    def own(self, features: Tensor, kind: str) -> Tensor:
        """Logits [B, C] of the linear classifier for image or text features [B, E]."""
        return self.linear(self.scale[kind] * features + self.shift[kind])


@dataclass(frozen=True, kw_only=True)
class DePT(Method):
    """A prompt method with a second head, a linear classifier on both features, that learns what is
    particular to the fitted classes.

        h(x) = W (gamma_x * x + beta_x) + b
        L = (1 - w) CE + w CE([h(t_y); h(f)], [y; y]) + R
        logits = (1 - w) cos(f, t_c) / tau + w h(f)_c on fitted classes, cos(f, t_c) / tau on others

    f [E]: image feature, t_y [E]: text feature of the image's class, both before normalisation;
    gamma_x, beta_x [E]: learned for images and for texts, one and zero at the start; W [C, E], b:
    learned; w = 0.7; R: what the prompt method's loss has beside the cross-entropy. gamma, beta, W
    and b learn 6.5 times as fast as the prompts.

    `base` is the prompt method with its published settings: CoOp with 16 random vectors, and in the
    variants KgCoOp (with its weight at 2), CoCoOp, MaPLe and PromptSRC.

    Source: Zhang et al., DePT: Decoupled Prompt Tuning, Eq. 3-7 (https://arxiv.org/abs/2309.07439);
        code Koorye/DePT, trainers and configs.
    Differs: rate and epochs are those of the CoOp version for every base; the code's versions for
        MaPLe and PromptSRC keep their own. In the epoch of warm-up gamma, beta, W and b learn 6.5
        times as fast, too, where the code has 1e-5 for all. bfloat16 autocast with float32 prompts
        instead of half precision.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"dept-{name}": {"base": name} for name in BASES
    }
    may_be_zero: ClassVar[tuple[str, ...]] = (*Method.may_be_zero, "random_vectors")

    lr: float = published(0.0035, "DePT configs/trainers")
    epochs: int = published(10, "DePT configs/trainers")
    batch_size: int = published(4, "DePT configs/trainers")
    base: Literal["coop", "cocoop", "kgcoop", "maple", "promptsrc"] = published(
        "coop", "DePT trainers/elp_*.py"
    )
    random_vectors: int = published(16, "DePT train.py, of CoOp; 0: its four words instead")
    share: float = published(0.7, "DePT trainers, w")
    faster: float = published(6.5, "DePT trainers/optim.py, LR_EXP")

    @property
    def prompt(self) -> Method:
        """The prompt method beneath."""
        return BASES.get(self.base, CoOp(random_vectors=self.random_vectors))

    @property
    def text_per_image(self) -> bool:  # type: ignore[override]
        return self.prompt.text_per_image

    @property
    def frozen_images(self) -> bool | Literal["training"]:  # type: ignore[override]
        return self.prompt.frozen_images

    def prompts(self, classes: Classes) -> list[list[str]]:
        return self.prompt.prompts(classes)

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return self.prompt.references(classes)

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        return self.prompt.edits(clip, classes)

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Dual(len(classes.names), clip.embedding, self.share)

    def rate_factor(self, name: str) -> float:
        return self.faster if name.startswith("head.") else 1.0

    def epoch_weight(self, epoch: int, epochs: int) -> float | None:
        return self.prompt.epoch_weight(epoch, epochs)

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        head, text = output.head, output.text[..., 0, :]  # [C, E], or [B, C, E] for each image
        assert isinstance(head, Dual)
        own = text[labels] if text.ndim == 2 else text[torch.arange(len(labels)), labels]
        logits = torch.cat([head.own(own, "text"), head.own(output.image, "image")])
        second = F.cross_entropy(logits, torch.cat([labels, labels]))
        first = super().loss(output, labels)
        return self.prompt.loss(output, labels) + self.share * (second - first)

    def check(self) -> None:
        super().check()
        if self.share > 1:
            raise HarnessError(f"{self.name}.share must be at most 1, not {self.share}.")
