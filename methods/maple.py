"""MaPLe: multi-modal prompt learning, and a light form of it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.method import TRANSFER, Classes, Clip, Edit, Method, Site, blocks_from, published
from harness.methods.coop import Context, embedded
from harness.methods.vpt import Appended, entering


class Coupled(Appended):
    """Image tokens that are a map of the text's context vectors at the same depth."""

    def __init__(self, context: Context, coupling: nn.Module) -> None:
        Edit.__init__(self)
        self.context, self.coupling = context, coupling

    def tokens(self) -> Tensor:
        return self.coupling(self.context.vectors)


@dataclass(frozen=True, kw_only=True)
class MaPLe(Method):
    """Learned prompts in the first blocks of the text tower, mapped into the image tower as well.

        text:  positions 1 .. M before block i are P_i
        image: M tokens beside the patches before block i are F_i(P_i)

    i = 0 .. J-1; P_i [M, D_t]: learned, P_0 from the words "a photo", the others N(0, 0.02^2);
    F_i: linear D_t -> D_v with bias, F_1 .. F_{J-1} equal at the start. What a block makes of the
    tokens is dropped before the next, and kept after block J-1. The fixed rest of the text is
    "of a {name}.".

    `maple-lite` is the same with one coupling for all depths, F(P) = (P W_d) W_u + b with
    W_d [D_t, 32] and W_u [32, D_v], instead of J full matrices: 50,944 trained numbers on ViT-B/16
    instead of 3,555,072. Context vectors, depth and recipe are MaPLe's.

    Source: Khattak et al., MaPLe: Multi-modal Prompt Learning, section 3.2
        (https://arxiv.org/abs/2210.03117); code muzairkhattak/multimodal-prompt-learning,
        trainers/maple.py and configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml.
    Differs: few_shot, for which no settings are published, takes those of base-to-new. bfloat16
        autocast with float32 prompts instead of half precision. `maple-lite` is this project's.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"maple-lite": {"coupling_rank": 32}}

    lr: float = published(0.0035, "MaPLe configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml")
    epochs: int = published(5, "MaPLe configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml")
    batch_size: int = published(4, "MaPLe configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml")
    context: str = published("a photo", "MaPLe trainers/maple.py, the first two words")
    depth: int = published(9, "MaPLe configs/trainers/MaPLe, J")
    coupling_rank: int = published(0, "0: a full matrix for each depth, as published")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """MaPLe configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets.yaml."""
        return {"epochs": 2, "lr": 0.0026, "depth": 3} if task in TRANSFER else {}

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(f"{self.context} of a {{}}.")

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        for tower in (clip.text, clip.image):
            blocks_from(tower, 1, self.depth)
        first = embedded(clip, self.context)  # [M, D_t]
        contexts = [Context(first)]
        contexts += [Context(0.02 * torch.randn_like(first)) for _ in range(self.depth - 1)]
        couplings = self.couplings(clip.text.width, clip.image.width)
        images = [Coupled(p, f) for p, f in zip(contexts, couplings, strict=True)]
        edits: dict[Site, Edit] = dict(zip(entering("text", self.depth), contexts, strict=True))
        return edits | dict(zip(entering("image", self.depth), images, strict=True))

    def couplings(self, text: int, image: int) -> list[nn.Module]:
        """F_0 .. F_{J-1}."""
        if self.coupling_rank:
            low = nn.Linear(text, self.coupling_rank, bias=False)
            return [nn.Sequential(low, nn.Linear(self.coupling_rank, image))] * self.depth
        first, later = nn.Linear(text, image), nn.Linear(text, image)
        return [first, *(copy.deepcopy(later) for _ in range(self.depth - 1))]
