"""ArGue: prompts from attributes of the classes, and LayerNorms of the image tower."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
    Step,
    clipped,
    generator,
    published,
)
from harness.methods.coop import Context, embedded

ANCHORS = (  # 35, one of them twice
    "a photo of a {}, a type of flower.", "a photo of a person doing {}.",
    "a centered satellite photo of {}.", "a photo of a {}, a type of aircraft.", "{} texture.",
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.", "a photo of a {}.",
    "a photo of many {}.", "a photo of the hard to see {}.", "a low resolution photo of the {}.",
    "a rendering of a {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
    "a pixelated photo of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.",
    "a close-up photo of the {}.", "a low resolution photo of a {}.", "a rendition of the {}.",
    "a photo of the clean {}.", "a photo of a large {}.", "a blurry photo of a {}.",
    "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
)  # fmt: skip
NOISE = 0.05


class Attributed(CosineHead):
    """The mean of a class's cosines with its attributes; a learned vector is added to every text.

    Of the T texts of a class the first `attributes` are those, then comes the plain name, then
    perhaps a background.
    """

    def __init__(self, embedding: int, attributes: int) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.zeros(embedding))
        self.attributes = attributes

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        return self.cosines(image, text[:, : self.attributes], given)

    def cosines(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        """Logits [B, C], the means over texts [C, T, E]."""
        cosines = torch.einsum("be,cte->bct", F.normalize(image, dim=-1), self.corrected(text))
        return given.scale * cosines.mean(-1)

    def corrected(self, text: Tensor) -> Tensor:
        """Normalised texts [C, T, E]."""
        return F.normalize(text + self.correction, dim=-1)


@dataclass(frozen=True, kw_only=True)
class ArGue(Method):
    """Learned context before the user's attributes of each class, held to hand-written prompts,
    with the LayerNorms of the image tower's blocks.

        t_ca = [SOS] v_1 .. v_4 [attribute a of c] "." [EOS],  t^_ca = normalised g(t_ca) + w
        logits_c = 1/(A tau) sum_a cos(f, t_ca)
        L = CE + lambda L_reg + mu L_neg
        L_reg = mean over templates k and classes c of -log softmax_c'(t^_c' . a_kc / tau)_c
        L_neg = mean over images and classes of p log p,  p = softmax_c(cos(f, b_c) / tau)

    v_m [D]: learned, "a photo of a" at the start; w [E]: learned, zero at the start; t_c': the same
    context before the plain name; a_kc: normalised frozen features of 35 templates, with noise
    N(0, 0.05^2) in half of the steps; b_c: the context before "a background of NAME"; A = 3,
    lambda = 5; mu = 0, in `argue_n` 3. Also trained, at a tenth of the rate: both LayerNorms of
    every image block. Gradients are clipped to the norm 1.

    The attributes come with `--class-texts`; the first three of each class count.

    Source: Tian et al., ArGue: Attribute-Guided Prompt Tuning for Vision-Language Models, Eq. 3-9
        (https://arxiv.org/abs/2311.16494); code xytian1008/ArGue, trainers/argue.py,
        trainers/losses.py and configs/trainers/ARGUE/*ep25_batch32*_g1_b0.yaml and *_b1.yaml.
    Differs: in the code L_reg runs over the names of new classes, too; here over the fitted ones.
        The published attributes were chosen with labelled images of all classes, new ones included
        (select_attr.sh): with them the new classes are not unseen. During the three warm-up epochs
        the LayerNorms have a tenth of the rate, too, where the code has the whole. Which of the
        code's files belongs to which dataset is not said: 25 epochs everywhere, though its test
        script reads epoch 300. On CUDA bfloat16 autocast, in the code half precision with loss
        scaling.
    """

    class_texts: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"argue_n": {"negative": 3.0}}

    lr: float = published(0.032, "ArGue configs/trainers/ARGUE")
    epochs: int = published(25, "ArGue configs/trainers/ARGUE")
    batch_size: int = published(32, "ArGue configs/trainers/ARGUE")
    warmup_epochs: int = published(3, "ArGue configs/trainers/ARGUE")
    context: str = published("a photo of a", "ArGue configs/trainers/ARGUE")
    attributes: int = published(3, "ArGue configs/datasets, A")
    weight: float = published(5.0, "ArGue configs/trainers/ARGUE, lambda")
    negative: float = published(0.0, "ArGue configs/trainers/ARGUE, mu; 3 in ArGue-N")
    slower: float = published(0.1, "ArGue trainers/argue.py, of the LayerNorms' rate")
    norm: float = published(1.0, "ArGue trainers/argue.py, of the clipped gradient")

    def prompts(self, classes: Classes) -> list[list[str]]:
        rows = []
        for name, texts in zip(classes.names, classes.described(), strict=True):
            if len(texts) < self.attributes:
                raise HarnessError(
                    f"{self.name} needs {self.attributes} attributes of each class, and "
                    f"{name!r} has {len(texts)}."
                )
            name = name.replace("_", " ")
            background = [f"a background of {name}"] * bool(self.negative)
            kept = [text.rstrip(".") for text in texts[: self.attributes]]
            rows.append([f"{self.context} {each}." for each in (*kept, name, *background)])
        return rows

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return {"anchors": classes.texts(*ANCHORS)}

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        return {"text.tokens": Context(embedded(clip, self.context))}

    def unfrozen(self, clip: Clip) -> Iterable[str]:
        return [
            f"image.blocks.{i}.{norm}.{part}"
            for i in range(len(clip.image.blocks))
            for norm in ("ln1", "ln2")
            for part in ("weight", "bias")
        ]

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Attributed(clip.embedding, self.attributes)

    def rate_factor(self, name: str) -> float:
        return self.slower if name.startswith("unfrozen.") else 1.0

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        loss = super().loss(output, labels) + self.weight * self.regulariser(output)
        if not self.negative:
            return loss
        head, given = output.head, output.given
        assert isinstance(head, Attributed)
        likely = head.cosines(output.image, output.text[:, -1:], given).log_softmax(-1)
        return loss + self.negative * (likely.exp() * likely).mean()

    def regulariser(self, output: Output) -> Tensor:
        """L_reg: each anchor is told apart by the learned prompts of the plain names."""
        head, given = output.head, output.given
        assert isinstance(head, Attributed)
        learned = head.corrected(output.text[:, self.attributes])  # [C, E]
        anchors = F.normalize(given.references["anchors"], dim=-1)  # [C, K, E]
        if given.key is not None:
            draw = generator("anchors", *given.key)
            if torch.rand((), generator=draw) < 0.5:
                anchors = anchors + NOISE * torch.randn(anchors.shape, generator=draw).to(anchors)
        logits = given.scale * torch.einsum("cke,de->ckd", anchors, learned)  # [C, K, C]
        labels = torch.arange(len(learned), device=logits.device)
        return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(anchors.shape[1]))

    def step(self, step: Step) -> Tensor:
        loss, gradients = step.gradients(self.loss)
        step.update(clipped(gradients, self.norm))
        return loss
