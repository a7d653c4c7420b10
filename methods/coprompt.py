"""CoPrompt: MaPLe with adapters on both features, held to the frozen model on other views."""

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
    HarnessError,
    HeadContext,
    Output,
    Views,
    generator,
    published,
)
from harness.methods.maple import MaPLe

BY_DATASET = {  # learned words, depth, lambda
    "imagenet": (4, 12, 8.0), "caltech101": (4, 12, 4.0), "oxford_pets": (2, 12, 0.1),
    "stanford_cars": (4, 12, 4.0), "oxford_flowers": (4, 9, 8.0), "food101": (4, 9, 0.5),
    "fgvc_aircraft": (4, 9, 2.0), "sun397": (4, 12, 8.0), "dtd": (2, 12, 8.0),
    "eurosat": (2, 12, 0.1), "ucf101": (4, 12, 2.0),
}  # fmt: skip
WORDS = ["a", "photo", "of", "a"]


class Adapters(CosineHead):
    """CLIP's classifier on mixtures of both features and their adapted forms."""

    def __init__(self, embedding: int, image_ratio: float, text_ratio: float) -> None:
        super().__init__()
        self.image, self.text = bottleneck(embedding), bottleneck(embedding)
        self.image_ratio, self.text_ratio = image_ratio, text_ratio

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        return super().forward(*self.adapted(image, text), given)

    def adapted(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """f' [B, E] and t' [C, T, E]."""
        image = self.image_ratio * self.image(image) + (1 - self.image_ratio) * image
        return image, self.text_ratio * self.text(text) + (1 - self.text_ratio) * text


def bottleneck(embedding: int) -> nn.Module:
    """ReLU(W_2 ReLU(W_1 x)), without biases."""
    down = nn.Linear(embedding, embedding // 4, bias=False)
    return nn.Sequential(
        down, nn.ReLU(), nn.Linear(embedding // 4, embedding, bias=False), nn.ReLU()
    )


@dataclass(frozen=True, kw_only=True)
class CoPrompt(MaPLe):
    """MaPLe's prompts and an adapter on each feature, held to what the frozen model makes of
    another view of each image and of the user's sentences.

        f' = a_v A_v(f) + (1 - a_v) f,  t'_c = a_t A_t(t_c) + (1 - a_t) t_c
        logits_c = cos(f', t'_c) / tau
        L = CE + lambda [(1 - mean_c cos(t'_c, g_cr)) + (1 - mean_b cos(f'_b, f0(x'_b)))]

    f, t_c [E]: features with `maple`'s prompts; A(x) = ReLU(W_2 ReLU(W_1 x)), W_1 [E, E/4], W_2
    [E/4, E], without biases; a_v = 0.1, a_t = 0.2; f0(x'_b): the frozen feature of a second
    augmentation of image b; g_cr: the frozen feature of sentence r of class c (`--class-texts`), r
    drawn anew in each step, the same for all classes; lambda = 1. Both views are by RandAugment.
    On the eleven datasets of the paper the words, the depth and lambda are each dataset's own.

    Source: Roy and Etemad, Consistency-guided Prompt Learning for Vision-Language Models, Eq. 3-6
        (https://arxiv.org/abs/2306.01195); code ShuvenduRoy/CoPrompt, trainers/coprompt.py,
        trainers/constants.py and configs/trainers.
    Differs: r counts the sentences that every class has, as the code's stacked features ask for
        lists of one length. The transfers have ImageNet's settings; no others are published.
        bfloat16 autocast with float32 prompts and adapters instead of half precision.
    """

    class_texts: ClassVar[bool] = True
    frozen_images: ClassVar[bool | Literal["training"]] = "training"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    epochs: int = published(8, "CoPrompt configs/trainers/*_randaug.yaml")
    image_ratio: float = published(0.1, "CoPrompt trainers/coprompt.py, a_v")
    text_ratio: float = published(0.2, "CoPrompt trainers/coprompt.py, a_t")
    weight: float = published(1.0, "CoPrompt configs/trainers/*_randaug.yaml, lambda")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """CoPrompt trainers/constants.py."""
        if dataset not in BY_DATASET:
            return {}
        words, depth, weight = BY_DATASET[dataset]
        changed = {"context": " ".join(WORDS[:words]), "depth": depth, "weight": weight}
        return changed | ({"epochs": 5} if dataset == "food101" else {})

    def prompts(self, classes: Classes) -> list[list[str]]:
        if self.context == " ".join(WORDS):
            return classes.texts(f"{self.context} {{}}.")
        return super().prompts(classes)

    def views(self) -> Views:
        return Views(crop="randaugment", second=True)

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        sentences = classes.described()
        return {"sentences": [each[: min(map(len, sentences))] for each in sentences]}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Adapters(clip.embedding, self.image_ratio, self.text_ratio)

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        head, given = output.head, output.given
        assert isinstance(head, Adapters)
        assert given.image is not None
        image, text = head.adapted(output.image, output.text)
        sentences = given.references["sentences"]  # [C, R, E]
        chosen = 0
        if given.key is not None:
            draw = generator("sentence", *given.key)
            chosen = int(torch.randint(sentences.shape[1], (), generator=draw))
        texts = F.cosine_similarity(text[:, 0], sentences[:, chosen], dim=-1).mean()
        images = F.cosine_similarity(image, given.image, dim=-1).mean()
        return super().loss(output, labels) + self.weight * ((1 - texts) + (1 - images))

    def check(self) -> None:
        super().check()
        if self.image_ratio > 1 or self.text_ratio > 1:
            raise HarnessError(f"{self.name} needs image_ratio and text_ratio of at most 1.")
