"""Methods: what a PEFT method declares. This is all that a method file imports, beside torch.

A method is a frozen dataclass of hyperparameters. What it changes is returned as modules: edits at
sites of the two towers, and a head. The engine derives the rest: what is trained (the parameters of
those modules), counted, saved, frozen, cropped and computed only once.

Shapes: B images, C classes, T texts a class, L tokens, D width, E embedding, R rows (B or C * T).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.clip import Clip, Site, Tower
from harness.dataset import Classes
from harness.errors import HarnessError
from harness.randomness import uniform

__all__ = [
    "TRANSFER",
    "At",
    "Classes",
    "Clip",
    "CosineHead",
    "Edit",
    "HarnessError",
    "Method",
    "Output",
    "Site",
    "Tower",
    "blocks_from",
    "published",
    "rescale_gradient",
]  # fmt: skip


@dataclass
class Rows:
    """The rows that go through a tower in one pass, and what the edits leave behind.

    A micro-batch is a part of a step's rows: `numbers` [R] says which of its `total` rows.
    """

    numbers: Tensor
    total: int
    training: bool
    key: tuple[object, ...]  # (seed, step): what noise is drawn from
    ids: Tensor | None = None  # token ids [R, L] of text rows
    losses: dict[tuple[Site, str], Tensor] = field(default_factory=dict)

    def auxiliary(self) -> Tensor | float:
        """The edits' auxiliary losses: mean over all rows of the step (this part's share), summed
        over sites and names."""
        return sum((loss.sum() / self.total for loss in self.losses.values()), start=0.0)


@dataclass
class At:
    """What an edit may know about where it runs: the site, the frozen module there, its rows."""

    site: Site
    op: nn.Module
    rows: Rows

    @property
    def training(self) -> bool:
        return self.rows.training

    @property
    def ids(self) -> Tensor:
        """Token ids [R, L] of the text rows.

        Raises:
            ValueError: at a site of the image tower.
        """
        if self.rows.ids is None:
            raise ValueError(f"{self.site} has no token ids: it is not in the text tower")
        return self.rows.ids

    def noise(self, purpose: str, *shape: int) -> Tensor:
        """Uniform draws in (0, 1), float32 [R, *shape]: a function of (seed, step, site, purpose).

        They are drawn for all rows of the step and then taken for these, so that they do not depend
        on micro-batching or recomputation.
        """
        drawn = uniform((self.rows.total, *shape), *self.rows.key, self.site, purpose)
        return drawn[self.rows.numbers.cpu()].to(self.rows.numbers.device)

    def loss(self, name: str, per_row: Tensor) -> None:
        """Adds an auxiliary loss [R]; the total is its mean over the step's rows, over all sites.

        Assigned by (site, name), so that recomputation does not count it twice.
        """
        self.rows.losses[self.site, name] = per_row


class Edit(nn.Module):
    """What is inserted at a site: sees what entered and what left the frozen module there."""

    # in training it looks across positions, so that the text may not be cropped; evaluation is
    # always token-wise or causal
    mixes_tokens: ClassVar[bool] = False

    def forward(self, x: Tensor, y: Tensor, at: At) -> Tensor:
        """x entered, y left; returns what leaves instead. Tokens are [R, L, D]. Never in place."""
        raise NotImplementedError


class Output(NamedTuple):
    """A forward pass: logits [B, C], features of images [B, E] and texts [C, T, E] before
    normalisation, and the edits' auxiliary loss."""

    logits: Tensor
    image: Tensor
    text: Tensor
    auxiliary: Tensor | float


class CosineHead(nn.Module):
    """CLIP's classifier: logit_scale times the cosine of image and class feature.

    A class feature is the mean of its T normalised text features, normalised again if T > 1.
    """

    scale: Tensor

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.register_buffer("scale", clip.logit_scale.exp().clone(), persistent=False)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """image [B, E], text [C, T, E] -> logits [B, C]."""
        text = F.normalize(text, dim=-1)
        if text.shape[1] > 1:
            text = F.normalize(text.mean(1, keepdim=True), dim=-1)
        return self.scale * F.normalize(image, dim=-1) @ text.squeeze(1).T


def published(value: Any, source: str) -> Any:
    """A hyperparameter's default and where it was published (`show NAME` prints both)."""
    return field(default=value, metadata={"source": source})


TRANSFER = ("cross_dataset", "domain_generalization")  # tasks that fit on a source dataset
CORE = "Dassl defaults, config/defaults.py"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A PEFT method: its hyperparameters, and what it inserts.

    Subclasses override what differs. A class docstring says in one sentence what the method is,
    then the equation with its symbols, `Source:`, and `Differs:` (every deviation, or "nothing
    known").

    The optimiser is SGD; its learning rate is stepped once an epoch: `warmup_epochs` epochs at
    `warmup_lr`, then for epoch e = 0, 1, ... after them lr / 2 * (1 + cos(pi * e / epochs)).
    """

    name: ClassVar[str] = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    lr: float = published(0.002, "CoOp configs/trainers/CoOp/vit_b16_ctxv1.yaml")
    epochs: int = published(50, "CoOp configs/trainers/CoOp/vit_b16_ep50_ctxv1.yaml")
    batch_size: int = published(32, "CoOp configs/trainers/CoOp/vit_b16_ctxv1.yaml")
    momentum: float = published(0.9, CORE)
    weight_decay: float = published(5e-4, CORE)
    warmup_epochs: int = published(1, "CoOp configs/trainers/CoOp/vit_b16_ctxv1.yaml")
    warmup_lr: float = published(1e-5, "CoOp configs/trainers/CoOp/vit_b16_ctxv1.yaml")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """The published settings that differ from the defaults on a task, when it is fitted on
        `dataset` with `shots` images a class. The user's own settings win over them."""
        return {}

    def prompts(self, classes: Classes) -> list[list[str]]:
        """The T texts of each of the C classes."""
        return classes.texts("a photo of a {}.")

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        """What is inserted, by site. Random initialisation may use torch's global generator."""
        return {}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        """A module (image [B, E], text [C, T, E]) -> logits [B, C]."""
        return CosineHead(clip)

    def check(self) -> None:
        """Raises HarnessError for hyperparameters out of range, before anything is computed."""
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                raise HarnessError(f"{self.name}.{each.name} must not be negative: {value}.")
        if self.batch_size < 1:
            raise HarnessError(f"{self.name}.batch_size must be at least 1, not {self.batch_size}.")

    def untrained(self) -> tuple[str, ...]:
        """Name endings of declared parameters that its equations never give a gradient."""
        return ()

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """The training loss: cross-entropy plus the edits' auxiliary losses."""
        return F.cross_entropy(output.logits, labels) + output.auxiliary


def blocks_from(tower: Tower, first: int, last: int | None = None) -> list[int]:
    """Block indices (from 0) of a paper's 1-based, inclusive range of layers.

    Raises:
        HarnessError: the tower has no such blocks.
    """
    count = len(tower.blocks)
    last = count if last is None else last
    if not 1 <= first <= last <= count:
        raise HarnessError(
            f"blocks {first} to {last} (counted from 1) were asked for, but the {tower.name} tower "
            f"has {count}. Set the method's block fields to what the backbone has."
        )
    return list(range(first - 1, last))


class _RescaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


rescale_gradient: Callable[[Tensor, float], Tensor] = _RescaleGradient.apply
