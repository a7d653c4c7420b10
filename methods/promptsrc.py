"""PromptSRC: self-regulating prompts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.method import (
    TRANSFER,
    Classes,
    Clip,
    Edit,
    HarnessError,
    Method,
    Output,
    Site,
    blocks_from,
    class_features,
    published,
)
from harness.methods.coop import Context, embedded
from harness.methods.vpt import Appended, entering

TEACHER = (  # 60 of CLIP's templates for ImageNet, for every dataset
    "a photo of a {}.", "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.",
    "a photo of the hard to see {}.", "a low resolution photo of the {}.", "a rendering of a {}.",
    "graffiti of a {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
    "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.",
    "a dark photo of the {}.", "a drawing of a {}.", "a photo of my {}.", "the plastic {}.",
    "a photo of the cool {}.", "a close-up photo of a {}.", "a black and white photo of the {}.",
    "a painting of the {}.", "a painting of a {}.", "a pixelated photo of the {}.",
    "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.",
    "a rendering of the {}.", "a {} in a video game.", "a photo of one {}.", "a doodle of a {}.",
    "a close-up photo of the {}.", "the origami {}.", "the {} in a video game.",
    "a sketch of a {}.", "a doodle of the {}.", "a origami {}.", "a low resolution photo of a {}.",
    "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.", "a photo of a large {}.",
    "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.",
    "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.",
)  # fmt: skip
LATE = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")  # in few_shot


@dataclass(frozen=True, kw_only=True)
class PromptSRC(Method):
    """Independent prompts in both towers, held to the frozen model and averaged over the epochs.

        L = CE + w_t mean |t - t0| + w_v mean |f - f0| + 1/(B C) sum p0 log(p0 / p)
        theta = sum_e N(e; mu, sigma) theta_e / sum_e N(e; mu, sigma)

    f, t: normalised features with prompts; f0: of the same view without; t0: of the mean of 60
    templates' features without; the means are over all entries; p, p0: probabilities with and
    without prompts; theta_e: the prompts at the end of epoch e = 1, 2, .... M = 4 text and 4 image
    tokens before each of the first J = 9 blocks, new ones before each; the first text tokens start
    as "a photo of a", all others as N(0, 0.02^2). w_t = 25, w_v = 10.

    Source: Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without
        Forgetting, Eq. 3-8 (https://arxiv.org/abs/2307.06948); code muzairkhattak/PromptSRC,
        trainers/promptsrc.py, trainers/imagenet_templates.py and configs/trainers/PromptSRC.
    Differs: the divergence is divided by B C as in the code (PyTorch's `kl_div` over logits' size),
        where Eq. 5 prints no mean. In few_shot, datasets beside the field's eleven take the mean
        and the width of the weights that the configuration has without a comment. The image tokens
        stand after the patch tokens. A fit that is cut to fewer epochs keeps its weights at the
        same shares of the fit. The code's mean runs over the half-precision backbone, too, and
        rounds it; here the backbone stays as it is. bfloat16 autocast with float32 prompts instead
        of half precision.
    """

    frozen_images: ClassVar[bool | Literal["training"]] = "training"

    lr: float = published(0.0025, "PromptSRC configs/trainers/PromptSRC")
    epochs: int = published(20, "PromptSRC configs/trainers/PromptSRC")
    batch_size: int = published(4, "PromptSRC configs/trainers/PromptSRC")
    context: str = published("a photo of a", "PromptSRC configs/trainers/PromptSRC")
    tokens: int = published(4, "PromptSRC configs/trainers/PromptSRC, of the image tower")
    depth: int = published(9, "PromptSRC configs/trainers/PromptSRC, J")
    text_weight: float = published(25.0, "PromptSRC configs/trainers/PromptSRC, w_t")
    image_weight: float = published(10.0, "PromptSRC configs/trainers/PromptSRC, w_v")
    mean_epoch: float = published(15.0, "PromptSRC configs/trainers/PromptSRC, mu")
    spread: float = published(1.0, "PromptSRC configs/trainers/PromptSRC, sigma")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """PromptSRC configs/trainers/PromptSRC/*_cross_datasets.yaml and *_few_shot.yaml."""
        if task in TRANSFER:
            return {"depth": 3, "mean_epoch": 6.0, "spread": 10.0}
        if task == "few_shot":
            mean, spread = (45.0, 5.0) if dataset in LATE else (30.0, 30.0)
            return {"epochs": 50, "mean_epoch": mean, "spread": spread}
        return {}

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(f"{self.context} {{}}.")

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return {"teacher": classes.texts(*TEACHER)}

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        for tower in (clip.text, clip.image):
            blocks_from(tower, 1, self.depth)
        first = embedded(clip, self.context)  # [M, D_t]
        contexts = [first, *(0.02 * torch.randn_like(first) for _ in range(self.depth - 1))]
        edits: dict[Site, Edit] = {
            site: Context(vectors)
            for site, vectors in zip(entering("text", self.depth), contexts, strict=True)
        }
        shape = (self.tokens, clip.image.width)
        return edits | {
            site: Appended(0.02 * torch.randn(shape)) for site in entering("image", self.depth)
        }

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        given = output.given
        assert given.image is not None
        image, frozen = F.normalize(output.image, dim=-1), F.normalize(given.image, dim=-1)
        text = class_features(output.text)
        teacher = F.normalize(given.references["teacher"].mean(1), dim=-1)  # [C, E]
        before = (given.scale * frozen @ teacher.T).log_softmax(-1)
        divergence = F.kl_div(
            output.logits.log_softmax(-1), before, reduction="sum", log_target=True
        )
        return (
            super().loss(output, labels)
            + self.text_weight * F.l1_loss(text, teacher)
            + self.image_weight * F.l1_loss(image, frozen)
            + divergence / output.logits.numel()
        )

    def epoch_weight(self, epoch: int, epochs: int) -> float | None:
        at = (epoch + 1) * self.epochs / epochs  # a capped fit's epochs count for several
        return math.exp(-(((at - self.mean_epoch) / self.spread) ** 2) / 2)

    def check(self) -> None:
        super().check()
        if not self.spread or not self.context.strip():
            raise HarnessError(f"{self.name} needs words in `context` and a `spread` above 0.")
