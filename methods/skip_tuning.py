"""Skip Tuning: the last blocks of both towers, trained on the classes that are hard to tell."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    TRANSFER,
    Classes,
    Clip,
    CosineHead,
    HarnessError,
    Method,
    Step,
    Support,
    Views,
    blocks_from,
    class_features,
    generator,
    published,
)

CONFIGS = "SkipTuning configs/trainers/SkipTuning/vit_b16_bs4.yaml"
DEFAULTS = "SkipTuning train.py"
FEWER_EPOCHS = ("imagenet", "sun397", "food101")


class Prototypes(CosineHead):
    """A cosine classifier that remembers the frozen towers' class features while it is fitted."""

    prototypes: Tensor

    def __init__(self, classes: int, embedding: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(classes, embedding), persistent=False)


@dataclass(frozen=True, kw_only=True)
class SkipTuning(Method):
    """Fine-tuning of both towers from block 7 on, in which each step takes the classes alone that
    its images may be taken for.

        L = CE(cos(f, t_c) / tau) over the classes c of the step
        class of rank i takes part:  always for i <= n, else with probability p_i
        p_i = (q_i - q_C) / (q_{n+1} - q_C),  q_i = exp(-5 (i - n - 1) / (lambda (C - n - 1)))

    n = min(ceil(0.5 C), 50) of C classes, which are ranked by the largest cosine that an image of
    the batch has with their frozen text features; the images' own classes come first. Which ranks
    take part is drawn once for the fit. lambda = 0.3. Trained: blocks 7 to 12, the last LayerNorms
    and the projections. Batches are of 4 images of one class, with fewer than 4 shots of any.

    Source: Wu et al., Skip Tuning: Pre-trained Vision-Language Models are Effective and Efficient
        Adapters Themselves (https://arxiv.org/abs/2412.11509); code Koorye/SkipTuning,
        trainers/skip_tuning.py, trainers/feature_loader.py and configs/trainers/SkipTuning.
    Differs: the class of an image takes part even where a batch has more classes than n; the code
        would give it a wrong label. Images that are left over in their classes make up batches
        together; the code leaves them out. Batches come in a random order; the code draws the class
        of each. In the epoch of warm-up the image tower's rate is as much lower than the text
        tower's as later; the code has one for both. The templates are CoOp's; some versions of the
        code have others for a few datasets. bfloat16 autocast with float32 weights; the code trains
        in half precision without loss scaling.
    """

    lr: float = published(2e-5, CONFIGS)
    image_lr: float = published(5e-6, f"{CONFIGS}, NEW_LR: of the image tower")
    epochs: int = published(20, CONFIGS)
    batch_size: int = published(4, CONFIGS)
    warmup_lr: float = published(1e-6, CONFIGS)
    warmup_epochs: int = published(1, CONFIGS)
    first_block: int = published(7, f"{DEFAULTS}, START_LAYER, there counted from 0")
    share: float = published(0.5, f"{DEFAULTS}, TOP_RATIO: of the classes, always taken")
    most: int = published(50, f"{DEFAULTS}, MAX_TOP: classes that are always taken")
    decay: float = published(0.3, f"{DEFAULTS}, LAMBDA")
    one_class: bool = published(True, "SkipTuning trainers/skip_tuning.py, of 4 shots and more")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """SkipTuning configs/trainers/SkipTuning and trainers/skip_tuning.py."""
        changed: dict[str, Any] = {"one_class": shots >= 4}
        if task == "few_shot":
            changed |= {"lr": 1e-5, "image_lr": 1e-5, "epochs": 40, "warmup_epochs": 0}
        if task in TRANSFER:
            changed |= {"lr": 1e-5, "image_lr": 1e-6, "warmup_lr": 1e-8}
        if dataset in FEWER_EPOCHS:
            changed["epochs"] = changed.get("epochs", 20) // 4
        return changed

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(classes.template)

    def views(self) -> Views:
        return Views(one_class=self.one_class)

    def unfrozen(self, clip: Clip) -> Iterable[str]:
        parts = [
            f"{tower.name}.{part}."
            for tower in (clip.image, clip.text)
            for part in ("head", *(f"blocks.{i}" for i in blocks_from(tower, self.first_block)))
        ]
        return [name for name in clip.parameters_by_name() if name.startswith(tuple(parts))]

    def rate_factor(self, name: str) -> float:
        return self.image_lr / self.lr if name.startswith("unfrozen.image/") else 1.0

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Prototypes(len(classes.names), clip.embedding)

    def prepare(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Prototypes)
        head.prototypes.copy_(class_features(support.text))

    def step(self, step: Step) -> Tensor:
        head = step.head
        assert isinstance(head, Prototypes)
        similar = F.normalize(step.image_features(), dim=-1) @ head.prototypes.T  # [B, C]
        loss, gradients = step.gradients(self.loss, self.taken(similar, step.labels, step.key[0]))
        step.update(gradients)
        return loss

    def taken(self, similar: Tensor, labels: Tensor, seed: object) -> Tensor:
        """The numbers of the classes that take part, by cosines [B, C] and labels [B]."""
        classes = similar.shape[1]
        always = min(math.ceil(self.share * classes), self.most)
        chances = torch.ones(classes)
        falling = torch.exp(-torch.linspace(0, 5, classes - always) / self.decay)
        if len(falling):
            spread = (falling[0] - falling[-1]).clamp_min(1e-9)  # of a single one: never
            chances[always:] = (falling - falling[-1]) / spread
        drawn = torch.rand(classes, generator=generator("skipped classes", seed)) < chances
        own = torch.zeros_like(similar, dtype=torch.bool).scatter(1, labels[:, None], True).any(0)
        ranked = similar.amax(0).masked_fill(own, torch.inf).argsort(descending=True, stable=True)
        own[ranked[drawn.to(ranked.device)]] = True
        return own.nonzero().flatten()

    def check(self) -> None:
        super().check()
        if not (0 < self.share <= 1 and self.decay and self.lr):
            raise HarnessError(
                f"{self.name} needs a share in (0, 1], and a decay and a rate above 0, not {self}."
            )
