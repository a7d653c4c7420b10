"""ProGrad: prompt-aligned gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.method import (
    Classes,
    Clip,
    CosineHead,
    Edit,
    HarnessError,
    Method,
    Output,
    Site,
    Step,
    published,
)
from harness.methods.coop import Context, embedded, few_shot_epochs

LEAD = {  # the teacher's templates, where they differ from the dataset's
    "oxford_pets": "a type of pet, a photo of a {}.",
    "oxford_flowers": "a type of flower, a photo of a {}.",
    "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
    "food101": "a type of food, a photo of {}.",
    "dtd": "a texture of {}.",
}


@dataclass(frozen=True, kw_only=True)
class ProGrad(Method):
    """CoOp that drops the part of its gradient that contradicts zero-shot CLIP.

        g = g_ce                                                if g_ce . g_kl >= 0
        g = g_ce - lambda (g_ce . g_kl / |g_kl|^2) g_kl         otherwise

    g_ce: gradient of the cross-entropy; g_kl: of -sum_c p0_c log p_c, the cross-entropy with
    zero-shot CLIP's probabilities p0 on the same view. The 16 context vectors start as the words
    before the name in the teacher's template, at the right; those left of them start at zero.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, Eq. 3-5
        (https://arxiv.org/abs/2205.14865); code BeierZhu/Prompt-align.
    Differs: all tokens of the words become context; the code counts words, so that with a comma
        before them the last one stays fixed. bfloat16 autocast instead of half precision (the
        teacher was in single precision). The paper's base-to-new numbers are of RN50 with 4 shots.
    """

    epochs: int = published(100, "ProGrad configs/trainers/ProGrad/rn50_ep100.yaml")
    vectors: int = published(16, "ProGrad configs/trainers/ProGrad, M")
    weight: float = published(1.0, "ProGrad scripts, lambda")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """ProGrad README and scripts."""
        changed: dict[str, Any] = {"epochs": 50} if dataset == "imagenet" else {}
        if task == "few_shot":
            changed["epochs"] = few_shot_epochs(dataset, shots)
        if shots >= 8 and dataset in ("oxford_flowers", "dtd", "eurosat"):
            changed["weight"] = 0.8
        return changed

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(" ".join(["X"] * self.vectors) + " {}.")

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return {"teacher": classes.texts(LEAD.get(classes.dataset, classes.template))}

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        template = LEAD.get(classes.dataset, classes.template)
        words = template.partition("{}")[0].strip()
        given = embedded(clip, words) if words else torch.zeros(0, clip.text.width)
        if len(given) > self.vectors:
            raise HarnessError(
                f"{self.name}.vectors is {self.vectors}, but {words!r} has {len(given)} tokens."
            )
        empty = given.new_zeros(self.vectors - len(given), given.shape[1])
        return {"text.tokens": Context(torch.cat([empty, given]))}

    def distillation(self, output: Output, labels: Tensor) -> Tensor:
        """-sum_c p0_c log p_c, mean over images."""
        teacher = CosineHead()(output.image, output.given.references["teacher"], output.given)
        return -(teacher.softmax(-1) * output.logits.log_softmax(-1)).sum(-1).mean()

    def step(self, step: Step) -> Tensor:
        loss, wanted = step.gradients(self.loss)
        _, kept = step.gradients(self.distillation)
        step.update({name: self.aligned(wanted[name], kept[name]) for name in wanted})
        return loss

    def aligned(self, wanted: Tensor | None, kept: Tensor | None) -> Tensor:
        """The update direction of one parameter."""
        assert wanted is not None
        assert kept is not None
        unit = F.normalize(kept.flatten(), dim=0).view_as(kept)
        return wanted - self.weight * (wanted * unit).sum().clamp(max=0) * unit
