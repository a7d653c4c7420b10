"""ProGrad: prompt-aligned gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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


def teacher_template(classes: Classes) -> str:
    """The template of zero-shot CLIP's texts."""
    return LEAD.get(classes.dataset, classes.template)


def lead(classes: Classes) -> list[str]:
    """The words before the name in the teacher's template."""
    return teacher_template(classes).partition("{}")[0].split()


@dataclass(frozen=True, kw_only=True)
class ProGrad(Method):
    """CoOp that drops the part of its gradient that contradicts zero-shot CLIP.

        g = g_ce                                                if g_ce . g_kl >= 0
        g = g_ce - lambda (g_ce . g_kl / |g_kl|^2) g_kl         otherwise

    g_ce: gradient of the cross-entropy; g_kl: of -sum_c p0_c log p_c, the cross-entropy with
    zero-shot CLIP's probabilities p0 on the same view. The 16 context vectors start as the words
    before the name in the teacher's template, at the right; those left of them start at zero.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, Eq. 3-5
        (https://arxiv.org/abs/2205.14865); code BeierZhu/Prompt-align, trainers/prograd.py.
    Differs: the released code counts the words before the name, and the default does, too. With a
        comma (Pets, Flowers, Aircraft, Food101) there is one token more than words: the last one
        ("a", on Food101 "of") stays fixed between context and name, and the vectors that start as
        words stand one place further right. Another tokenizer may make more tokens of a word: the
        last ones stay fixed. `counted="tokens"` makes all of them context. bfloat16 autocast
        instead of half precision (the teacher was in single precision). The paper's base-to-new
        numbers are of RN50 with 4 shots.
    """

    epochs: int = published(100, "ProGrad configs/trainers/ProGrad/rn50_ep100.yaml")
    vectors: int = published(16, "ProGrad configs/trainers/ProGrad, M")
    weight: float = published(1.0, "ProGrad scripts, lambda; README: 0.8 in some of few_shot")
    counted: Literal["words", "tokens"] = published(
        "words", "ProGrad trainers/prograd.py: of the template, that are context"
    )

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """ProGrad README (few-shot) and scripts/base2new_train_prograd.sh (lambda 1 everywhere)."""
        changed: dict[str, Any] = {"epochs": 50} if dataset == "imagenet" else {}
        if task == "few_shot":
            changed["epochs"] = few_shot_epochs(dataset, shots)
            if shots >= 8 and dataset in ("oxford_flowers", "dtd", "eurosat"):
                changed["weight"] = 0.8
        return changed

    def prompts(self, classes: Classes) -> list[list[str]]:
        words = lead(classes) if self.counted == "words" else []
        self.check_room(words, len(words))
        unused = ["X"] * (self.vectors - len(words))
        return classes.texts(" ".join([*unused, *words, "{}."]))

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return {"teacher": classes.texts(teacher_template(classes))}

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        words = lead(classes)
        given = embedded(clip, " ".join(words)) if words else torch.zeros(0, clip.text.width)
        if self.counted == "words":
            given = given[: len(words)]
        self.check_room(words, len(given))
        empty = given.new_zeros(self.vectors - len(given), given.shape[1])
        return {"text.tokens": Context(torch.cat([empty, given]))}

    def check_room(self, words: Sequence[str], count: int) -> None:
        """Raises HarnessError for words that do not fit into the context."""
        if count > self.vectors:
            raise HarnessError(
                f"{self.name}.vectors is {self.vectors}, but {' '.join(words)!r} has {count} "
                f"{self.counted}. Give {self.name}.vectors={count} or more."
            )

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
