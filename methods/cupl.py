"""CuPL and DCLIP: zero-shot CLIP with sentences or descriptors of each class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import Classes, Clip, CosineHead, HeadContext, Method, published


class Described(CosineHead):
    """CLIP's classifier on the frozen features of the user's texts; a class may have fewer than
    others, whose places are zero."""

    def __init__(self, average: str) -> None:
        super().__init__()
        self.average = average

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        texts = given.references["texts"]  # [C, T, E]
        if self.average == "features":
            return super().forward(image, texts, given)
        cosines = F.normalize(image, dim=-1) @ F.normalize(texts, dim=-1).sum(1).T  # [B, C]
        return given.scale * cosines / texts.any(-1).sum(1)


@dataclass(frozen=True, kw_only=True)
class CuPL(Method):
    """Zero-shot CLIP whose classes are described by the user's sentences (`--class-texts`).

        logits_c = cos(f, mean_d t^_cd) / tau

    f [E]: image feature; t^_cd [E]: normalised feature of sentence d of class c.

    `dclip` takes descriptors, makes "NAME, which is (has) DESCRIPTOR" of them, and averages the
    cosines: logits_c = 1/tau mean_d cos(f, t_cd).

    Source: Pratt et al., What does a platypus look like? Generating customized prompts for
        zero-shot image classification (https://arxiv.org/abs/2209.03320); Menon and Vondrick,
        Visual Classification via Description from Large Language Models, Eq. 1
        (https://arxiv.org/abs/2210.07183), code sachit-menon/classify_by_description_release,
        descriptor_strings.py.
    Differs: the texts are the user's: none are shipped, because their repositories state no
        licence.
    """

    class_texts: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dclip": {"average": "cosines", "descriptors": True}
    }

    epochs: int = published(0, "nothing is trained")
    average: Literal["features", "cosines"] = published("features", "CuPL; DCLIP Eq. 1: cosines")
    descriptors: bool = published(False, "whether the texts are descriptors, as DCLIP's are")

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        texts = classes.described()
        if not self.descriptors:
            return {"texts": texts}
        names = [name.replace("_", " ") for name in classes.names]
        return {
            "texts": [
                [f"{name}, {sentence(each)}" for each in descriptors]
                for name, descriptors in zip(names, texts, strict=True)
            ]
        }

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Described(self.average)


def sentence(descriptor: str) -> str:
    """The descriptor as a relative clause, by its first letters as the published code has it."""
    if descriptor.startswith(("has", "often", "typically", "may", "can")):
        return f"which {descriptor}"
    verb = "is" if descriptor.startswith(("a", "used")) else "has"
    return f"which {verb} {descriptor}"
