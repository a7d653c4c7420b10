"""MetaPrompt: prompts learned on shifting halves of the classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    BEST_SEVEN,
    IMAGENETS,
    Classes,
    Clip,
    CosineHead,
    Edit,
    Gradients,
    HeadContext,
    Method,
    Output,
    Site,
    Step,
    blocks_from,
    generator,
    published,
)
from harness.methods.coop import Context
from harness.methods.vpt import deep, entering

FOOD = "a photo of a {}, a type of food"


class Average(nn.Module):
    """The mean of two classifiers: prompted images with frozen texts, and the reverse."""

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        one, other = both(image, text, given)
        return (one + other) / 2


def both(image: Tensor, text: Tensor, given: HeadContext) -> tuple[Tensor, Tensor]:
    """Logits [B, C] of prompted images with frozen texts, and of frozen images with prompted
    texts."""
    assert given.image is not None
    head = CosineHead()
    return head(image, given.references["frozen"], given), head(given.image, text, given)


@dataclass(frozen=True, kw_only=True)
class MetaPrompt(Method):
    """Separate prompts in both towers, each classified against the other, frozen tower; the text
    prompts also learn to help classes that they were not adapted to.

        l_i = cos(f_p, t_0) / tau,  l_t = cos(f_0, t_p) / tau,  l = (l_i + l_t) / 2
        L = CE(l) + CE(l_i) + CE(l_t), one step on all prompts; then, for (A, B) and (B, A) of a
        random split of the classes: theta' = theta - eta grad L_A(theta), g += grad L_B(theta')
        theta <- theta - eta m g

    f_p, t_p: features with prompts; f_0, t_0: of frozen CLIP; theta: the text prompts; L_A: CE(l_t)
    on the batch's images and names of half A; eta: the learning rate; m = 0.2. Without images of
    both halves there is no second part, and none for B of one class. Two prompts N(0, 0.02^2) in
    each of the 12 blocks of both towers, in the places of VPT's and CoOp's. Inference uses l.

    Source: Zhao et al., Learning Domain Invariant Prompt for Vision-Language Models
        (https://arxiv.org/abs/2212.04196); code Vill-Lab/2024-TIP-MetaPrompt, trainers/meta.py
        (Meta_B2N) and configs/trainers/Meta_B2N/vit_b16.yaml.
    Differs: the released code departs from the equations, and the default is the code. (1) Its
        inner steps are steps of the optimiser, with momentum and weight decay. theta is restored
        after the first; from then on the saved copy shares its memory with the prompts, so that the
        second restore changes nothing and the second inner step stays. In the first three steps the
        text prompts move two to three times as far. `inner="equations"` takes plain gradient steps
        and restores theta after both. (2) Under PyTorch 1.10, which the authors name, zero_grad
        leaves zeros: in each inner step the image prompts follow their momentum and weight decay,
        and are two to three times as far after three steps. Under PyTorch 2 they rest, as with
        `image_momentum=False`. (3) The frozen texts keep the underscores of class names;
        `underscores=False` reads them as spaces. What L_A is, and when it is left out, is taken
        from the code. Its recipe is that of base-to-new; the other tasks take it, too, which is
        this project's choice. bfloat16 autocast instead of half precision.
    """

    frozen_images: ClassVar[bool] = True

    lr: float = published(0.0015, "MetaPrompt configs/trainers/Meta_B2N/vit_b16.yaml")
    epochs: int = published(8, "MetaPrompt configs/trainers/Meta_B2N/vit_b16.yaml")
    batch_size: int = published(16, "MetaPrompt configs/trainers/Meta_B2N/vit_b16.yaml")
    tokens: int = published(2, "MetaPrompt configs/trainers/Meta_B2N/vit_b16.yaml")
    depth: int = published(12, "MetaPrompt configs/trainers/Meta_B2N/vit_b16.yaml")
    meta_step: float = published(0.2, "MetaPrompt train.py, m")
    inner: Literal["released", "equations"] = published(
        "released", "MetaPrompt trainers/meta.py; `equations`: plain steps, as Zhao et al. print"
    )
    image_momentum: bool = published(
        True, "MetaPrompt docs/INSTALL.md: PyTorch 1.10, where zero_grad leaves zeros"
    )
    underscores: bool = published(True, "MetaPrompt trainers/meta.py: of names in frozen texts")

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(" ".join(["X"] * self.tokens) + " {}.")

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        templates = [FOOD if classes.dataset == "food101" else classes.template.rstrip(".")]
        if classes.dataset in IMAGENETS:
            templates = [template.rstrip(".") for template in (*BEST_SEVEN, "a photo of a {}.")]
        if not self.underscores:
            return {"frozen": classes.texts(*templates)}
        return {"frozen": [[each.replace("{}", name) for each in templates]
                           for name in classes.names]}  # fmt: skip

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        blocks_from(clip.text, 1, self.depth)
        shape = (self.tokens, clip.text.width)
        texts = {s: Context(0.02 * torch.randn(shape)) for s in entering("text", self.depth)}
        return {**texts, **deep(clip, self.tokens, self.depth)}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Average()

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        split = both(output.image, output.text, output.given)
        return super().loss(output, labels) + sum(F.cross_entropy(each, labels) for each in split)

    def text_loss(self, output: Output, labels: Tensor) -> Tensor:
        """CE(l_t)."""
        return F.cross_entropy(both(output.image, output.text, output.given)[1], labels)

    def step(self, step: Step) -> Tensor:
        loss = super().step(step)
        text = {n: p for n, p in step.parameters.items() if n.startswith("edits.text")}
        total: dict[str, Any] = {name: torch.zeros_like(p) for name, p in text.items()}
        for number, (one, other) in enumerate(self.halves(step)):
            before = {name: p.detach().clone() for name, p in text.items()}
            _, gradients = step.gradients(self.text_loss, one)
            self.inner_step(step, text, gradients)
            _, outer = step.gradients(self.text_loss, other)
            for name, p in text.items():
                if self.inner == "equations" or number == 0:
                    p.data.copy_(before[name])
                total[name] = total[name] + outer[name]
        self.move(text, total, step.rate * self.meta_step)
        return loss

    def halves(self, step: Step) -> list[tuple[Tensor, Tensor]]:
        """(A, B) and (B, A), each if both have images and the second has two classes."""
        order = torch.randperm(step.classes, generator=generator("halves", *step.key))
        order = order.to(step.labels.device)
        first, second = order[: (step.classes + 1) // 2], order[(step.classes + 1) // 2 :]
        if not all(bool(torch.isin(step.labels, half).any()) for half in (first, second)):
            return []
        return [(a, b) for a, b in ((second, first), (first, second)) if len(b) > 1]

    def inner_step(self, step: Step, text: Mapping[str, nn.Parameter], given: Gradients) -> None:
        """theta' = theta - eta grad L_A(theta), or a step of the optimiser."""
        if self.inner == "equations":
            return self.move(text, given, step.rate)
        others = {name: p for name, p in step.parameters.items() if name not in text}
        resting = {n: torch.zeros_like(p) if self.image_momentum else None
                   for n, p in others.items()}  # fmt: skip
        return step.update({**given, **resting})

    @staticmethod
    def move(parameters: Mapping[str, nn.Parameter], gradients: Mapping, rate: float) -> None:
        """A plain gradient step."""
        for name, parameter in parameters.items():
            parameter.data.sub_(rate * gradients[name])
