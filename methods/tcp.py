"""TCP: textual-based class-aware prompt tuning."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    Edit,
    HarnessError,
    Method,
    Output,
    Site,
    SiteContext,
    published,
)
from harness.methods.coop import Context
from harness.methods.kgcoop import distance

ANCHORS = {  # where they differ from the dataset's template
    "dtd": "a photo of a {}, a type of texture.",
    "fgvc_aircraft": "a photo of an aircraft {}.",
    "food101": "a photo of a {}, a type of food.",
}
CARRIERS = {  # the first four tokens are replaced by the context
    "oxford_pets": "X X X X {}, a type of pet.",
    "oxford_flowers": "X X X X {}, a type of flower.",
    "fgvc_aircraft": "X X X X {}, a type of aircraft.",
    "food101": "X X X X {}, a type of food.",
    "dtd": "X X X X {} texture.",
    "stanford_cars": "X X X X {}, a type of car",
    "ucf101": "a photo of a person doing {}.",
    "imagenet": "a photo of a {}.",
}
TOKENS = 4  # context vectors, and class tokens


class ClassTokens(Context):
    """Replaces the context positions by tokens made from each class's frozen text feature."""

    def __init__(self, embedding: int, width: int) -> None:
        nn.Module.__init__(self)
        self.down = nn.Linear(embedding, embedding // 4)
        self.up = nn.Linear(embedding // 4, TOKENS * width)

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        inner = self.down(F.normalize(at.reference("anchor")[:, 0], dim=-1))
        tokens = self.up(inner * torch.sigmoid(1.702 * inner))  # QuickGELU
        return self.replaced(y, tokens.unflatten(1, (TOKENS, -1)))  # [R, 4, D]


@dataclass(frozen=True, kw_only=True)
class TCP(Method):
    """Learned context, and halfway up the text tower tokens that know the class.

        Q_c = W_2 phi(W_1 t0_c + b_1) + b_2 [4, D];  before block 9 the four context positions of
        class c become Q_c;  L = CE + w (1 - 1/C sum_c cos(t_c, t0_c))

    t0_c: the normalised frozen feature of the class's template, for whichever classes are asked
    for; W_1 [E, E/4], W_2 [E/4, 4D]; phi: QuickGELU; w = 8. The text starts with four context
    vectors of N(0, 0.02^2), followed by the rest of a template.

    Source: Yao et al., TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model,
        Eq. 3-7 (https://arxiv.org/abs/2311.18231); code
        htyao89/Textual-based_Class-aware_prompt_tuning, trainers/tcp.py.
    Differs: on SUN397 and ImageNet there are 25 epochs, as the code's train.py sets after its
        configuration. Transfers are not scripted and take the same settings. bfloat16 autocast with
        float32 prompts instead of half precision. Datasets that the code does not know have "X X X
        X {}." as their text.
    """

    epochs: int = published(
        50, "TCP configs/trainers/TCP/vit_b16_ep100_ctxv1.yaml; 25 on two datasets: our reading"
    )
    weight: float = published(8.0, "TCP trainers/tcp.py, forward")
    first_block: int = published(9, "TCP trainers/clip_text/model.py (counted from 1)")
    eps: float = published(1e-3, "TCP README, Adam")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """TCP train.py, setup_cfg."""
        return {"epochs": 25} if dataset in ("sun397", "imagenet") else {}

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(CARRIERS.get(classes.dataset, "X X X X {}."))

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return {"anchor": classes.texts(ANCHORS.get(classes.dataset, classes.template))}

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        width = clip.text.width
        return {
            "text.tokens": Context(0.02 * torch.randn(TOKENS, width)),
            f"text.blocks.{self.first_block - 2}": ClassTokens(clip.embedding, width),
        }

    def check(self) -> None:
        super().check()
        if self.first_block < 2:
            raise HarnessError(f"{self.name}.first_block must be at least 2.")

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay,
            betas=(self.momentum, 0.999),
        )  # fmt: skip

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        return super().loss(output, labels) + self.weight * distance(output)
