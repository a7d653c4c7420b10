"""Methods: what a PEFT method declares. This is all that a method file imports, beside torch.

A method is a frozen dataclass of hyperparameters. What it changes is returned as modules: edits at
sites of the two towers, and a head. The engine derives the rest: what is trained (the parameters of
those modules), counted, saved, frozen, cropped and computed only once.

Shapes: B images, C classes, T texts a class, L tokens, D width, E embedding, R rows (of texts
C * T, or B * C * T where each image has its own; of images B).
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.code import code_hash, version
from harness.dataset import Classes
from harness.errors import HarnessError, blaming, unknown
from harness.randomness import generator
from harness.towers.edit import Edit, SiteContext
from harness.towers.openclip import Clip
from harness.towers.tower import Site, Tower
from harness.towers.wrapped import wrapped_layers

__all__ = [
    "BEST_SEVEN", "IMAGENETS", "TRANSFER", "Classes", "Clip", "CosineHead", "Edit", "Gradients",
    "HarnessError", "HeadContext", "Method", "Output", "Site", "SiteContext", "Step", "Support",
    "Tower", "Views", "adamw", "blaming", "blocks_from", "class_features", "clipped",
    "cosine_decay", "ensembled", "generator", "published", "rescale_gradient", "unknown",
    "wrapped_layers",
]  # fmt: skip


@dataclass(frozen=True)
class HeadContext:
    """What a head and a loss may know beside the features.

    scale: exp(logit_scale). references: frozen features [C, T, E] of `Method.references`. image:
    frozen features [B, E] of the same images, of a method with `frozen_images`. fitted: whether
    these are the classes that the method is fitted on. key: (seed, step) in training, else None.
    transferred: whether the images are of another dataset than those that it is fitted on. numbers:
    which of the fitted classes these are, where all are fitted. Features are not normalised.
    """

    scale: Tensor
    references: Mapping[str, Tensor] = field(default_factory=dict)
    image: Tensor | None = None
    fitted: bool = True
    key: tuple[object, ...] | None = None
    transferred: bool = False
    numbers: list[int] | None = None

    @property
    def rows(self) -> slice | list[int] | None:
        """Of what a head learned for each fitted class: the rows of these classes, or None where
        one is not fitted."""
        return slice(None) if self.fitted else self.numbers


class Output(NamedTuple):
    """A forward pass: logits [B, C], features of images [B, E] and texts [C, T, E] (or
    [B, C, T, E]) before normalisation, the edits' auxiliary loss, what else is given, the head
    that made the logits, and the means of what edits left by `SiteContext.statistic`.

    Images have several features, [B, K, E], where an edit at `image.features` returns them.
    """

    logits: Tensor
    image: Tensor
    text: Tensor
    auxiliary: Tensor | float
    given: HeadContext
    head: nn.Module
    statistics: Mapping[str, Tensor] = MappingProxyType({})


class CosineHead(nn.Module):
    """CLIP's classifier: logit_scale times the cosine of image and class feature.

    A class feature is the mean of its T normalised text features, normalised again if T > 1.
    """

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        """image [B, E], text [C, T, E] or [B, C, T, E] -> logits [B, C]."""
        image, text = F.normalize(image, dim=-1), class_features(text)
        if text.ndim == 3:  # [B, C, E]
            return given.scale * (text @ image[:, :, None]).squeeze(-1)
        return given.scale * image @ text.T


def class_features(text: Tensor) -> Tensor:
    """Normalised class features [..., E] of text features [..., T, E]."""
    text = F.normalize(text, dim=-1)
    if text.shape[-2] > 1:
        text = F.normalize(text.mean(-2, keepdim=True), dim=-1)
    return text.squeeze(-2)


@dataclass(frozen=True)
class Views:
    """What a method trains on of each image.

    crop: `random` (resized crop and flip), `five`: corners and centre, one of them for all images
    of an epoch, or `randaugment`: no crop, two of sixteen operations. scale: the crop's area, None
    for the engine's. drop_last: whether an incomplete last batch is left out, as the field does.
    count: how many random views of each image there are, which the epochs take in turn; 0: a fresh
    one every epoch. one_class: whether each batch is of one class; images that no whole batch of
    their class takes are batched together. second: whether `HeadContext.image` is of another view
    of the same images (not of `five`).
    """

    crop: Literal["random", "five", "randaugment"] = "random"
    scale: tuple[float, float] | None = None
    drop_last: bool = True
    count: int = 0
    one_class: bool = False
    second: bool = False


class Support(Protocol):
    """The few-shot images of a fit, for what is computed before the first and after the last step.

    labels: [N]. text: features [C, T, E] of the prompts. Features are not normalised.
    scale: exp(logit_scale). seed: the run's. edits: what the method inserts, by site. unfrozen: the
    backbone's parameters that the method trains, by name: frozen, and as they are.
    """

    labels: Tensor
    scale: Tensor
    seed: int

    @property
    def text(self) -> Tensor: ...
    @property
    def edits(self) -> Mapping[Site, Edit]: ...
    @property
    def unfrozen(self) -> Mapping[str, tuple[Tensor, nn.Parameter]]: ...

    def inputs(self, sites: Iterable[Site], see: Callable[[Site, Tensor], None]) -> None:
        """Calls see(site, x [tokens, D]) with what enters some sites, part by part, for the first
        pass over the training views and for the prompts (their tokens up to end-of-text)."""

    def view(self, number: int) -> Tensor:
        """Features [N, E] of one pass over the training views (of five crops: the crop)."""

    def test(self) -> Tensor:
        """Features [N, E] under the test transform."""

    def val(self) -> tuple[Tensor, Tensor]:
        """Features [V, E] and labels [V] of the val images, of a method with `uses_val`."""


Gradients = dict[str, Tensor | None]
Loss = Callable[[Output, Tensor], Tensor]


class Step(Protocol):
    """One training step, as a method sees it.

    parameters: what is trained, by name. classes: C. rate: the learning rate. key: (seed, step).
    number: of the step, from 0; total: of all steps.
    """

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]: ...
    @property
    def head(self) -> nn.Module: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def classes(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def key(self) -> tuple[object, ...]: ...
    @property
    def number(self) -> int: ...
    @property
    def total(self) -> int: ...

    def image_features(self) -> Tensor:
        """Features [B, E] of the step's images as the model is now: not normalised, no graph."""

    def gradients(
        self, loss: Loss, classes: Tensor | None = None, mode: str = ""
    ) -> tuple[Tensor, Gradients]:
        """The loss of the step's batch, detached, and its gradients, micro-batched underneath.

        With `classes` (numbers) only their images and texts take part, relabelled in that order.
        `mode` is what edits find in `SiteContext.mode`, of a method whose step passes the towers in
        more than one way.
        """

    def update(self, gradients: Gradients) -> None:
        """One optimiser step."""


PHOTO = "a photo of a {}."


def published(value: Any, source: str) -> Any:
    """A hyperparameter's default and where it was published (`show NAME` prints both)."""
    return field(default=value, metadata={"source": source})


TRANSFER = ("cross_dataset", "domain_generalization")  # tasks that fit on a source dataset
CORE = "Dassl defaults, config/defaults.py"
IMAGENETS = ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
BEST_SEVEN = (  # of CLIP's 80 for ImageNet: openai/CLIP notebooks/Prompt_Engineering_for_ImageNet
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)  # fmt: skip


def adamw(method: "Method", parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a method's rate and decay; its `momentum` is beta_1."""
    return torch.optim.AdamW(
        parameters, lr=method.lr, betas=(method.momentum, 0.999), weight_decay=method.weight_decay
    )


def clipped(gradients: Gradients, most: float) -> Gradients:
    """The gradients, made smaller together where the norm of all of them exceeds `most`."""
    norms = [each.norm() for each in gradients.values() if each is not None]
    factor = (most / (torch.stack(norms).norm() + 1e-6)).clamp(max=1)
    return {name: None if each is None else factor * each for name, each in gradients.items()}


def ensembled(classes: Classes, *templates: str) -> list[list[str]]:
    """Texts of several templates on ImageNet and its variants, elsewhere of the dataset's one."""
    return classes.texts(*(templates if classes.dataset in IMAGENETS else [classes.template]))


def cosine_decay(rate: float, step: int, total: int, floor: float = 0.0) -> float:
    """`rate` at step 0, along half a cosine to `floor` at step `total`."""
    return floor + (rate - floor) / 2 * (1 + math.cos(math.pi * step / total))


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

    text_per_image: ClassVar[bool] = (
        False  # each image has texts of its own; see `SiteContext.image`
    )
    # it reads `HeadContext.image`, "training": in the loss alone
    frozen_images: ClassVar[bool | Literal["training"]] = False
    uses_val: ClassVar[bool] = False  # it reads `Support.val`
    only_fitted_classes: ClassVar[bool] = False  # it has no answer for other classes
    class_texts: ClassVar[bool] = False  # it reads `Classes.described`
    # kinds of sites that it cannot do without, as `image.blocks.*.q`, beside those that it edits on
    # a CLIP: a backbone that lacks one is refused
    needs: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[str] = ""  # a package that it needs beside the usual ones, and its extra
    by_name_only: ClassVar[bool] = False  # `*` does not select it; `NAME*` does
    may_be_zero: ClassVar[tuple[str, ...]] = ("epochs", "batch_size", "warmup_epochs")

    lr: float = published(0.002, "CoOp configs/trainers/CoOp/vit_b16_ctxv1.yaml")
    epochs: int = published(50, "CoOp configs/trainers/CoOp/vit_b16_ep50_ctxv1.yaml")
    batch_size: int = published(32, "CoOp configs/trainers/CoOp/vit_b16_ctxv1.yaml")  # 0: all
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
        """The T texts of each of the C classes. Rows after the C-th are encoded, too, and reach the
        head and the loss.

        "a photo of a {}.", or the first template of a dataset that is given by its path or name.
        """
        return classes.texts(PHOTO if not classes.own else classes.template.partition("\n")[0])

    def texts_of_step(self, rows: int, seed: object, step: int) -> Tensor | None:
        """Which texts a training step takes: numbers [rows of the step, T of the step], counted
        through the T texts of each of the `rows` that `prompts` gives. None: all."""
        return None

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        """Texts of each class whose frozen features the method needs, by a name of its own."""
        return {}

    def views(self) -> Views:
        """What is trained on of each image."""
        return Views()

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        """What is inserted, by site. Random initialisation may use torch's global generator."""
        return {}

    def unfrozen(self, clip: Clip) -> Iterable[str]:
        """Which of the backbone's own parameters are trained, of those in `clip.parameters_by_name`
        (as `image.blocks.3.ln1.weight`). The backbone itself stays as it is: copies are trained,
        and stand in for them while the towers run."""
        return ()

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        """A module (image [B, E], or [B, K, E] of a method that edits `image.features` so; text
        [C, T, E] or [B, C, T, E]; given) -> logits [B, C]."""
        return CosineHead()

    @property
    def frozen_when_scored(self) -> bool:
        """Whether its head reads `HeadContext.image`, and not its loss alone."""
        return self.frozen_images is True

    def check(self) -> None:
        """Raises HarnessError for hyperparameters out of range, before anything is computed:
        numbers that are negative or not finite, counts below 1 (but see `may_be_zero`)."""
        for each in fields(self):
            value, name = getattr(self, each.name), f"{self.name}.{each.name}"
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                raise HarnessError(f"{name} must be a finite number, not {value}.")
            if value < 0:
                raise HarnessError(f"{name} must not be negative: {value}.")
            counts = type(each.default) is int and each.default > 0
            if counts and value < 1 and each.name not in self.may_be_zero:
                raise HarnessError(f"{name} must be at least 1, not {value}.")

    def untrained(self) -> tuple[str, ...]:
        """Name endings of declared parameters that its equations never give a gradient."""
        return ()

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """What updates the parameters; its rate is set anew before each step."""
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def rate_factor(self, name: str) -> float:
        """What the learning rate of a trained parameter is multiplied by; its name is the one in
        `Step.parameters`, as `edits.text/blocks/0/q.b` or `head.weight`."""
        return 1.0

    def epoch_weight(self, epoch: int, epochs: int) -> float | None:
        """How much the parameters at the end of an epoch (from 0) count in the weighted mean that
        the fit ends with. None: it ends with the last ones."""
        return None

    def steps(self, steps_an_epoch: int) -> int:
        """Optimiser steps of a whole fit."""
        return self.epochs * steps_an_epoch

    def learning_rate(self, step: int, steps_an_epoch: int, total: int) -> float:
        """The rate of a step (from 0) of `total`: constant warm-up, then cosine counted after it.

        Source: Dassl optim/lr_scheduler.py with WARMUP_RECOUNT, as CoOp and its successors use it.
        """
        epoch = step // steps_an_epoch
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        return cosine_decay(self.lr, epoch - self.warmup_epochs, math.ceil(total / steps_an_epoch))

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """The training loss: cross-entropy plus the edits' auxiliary losses."""
        return F.cross_entropy(output.logits, labels) + output.auxiliary

    def step(self, step: Step) -> Tensor:
        """One training step; returns the loss that is reported."""
        loss, gradients = step.gradients(self.loss)
        step.update(gradients)
        return loss

    def prepare(self, head: nn.Module, support: Support) -> None:
        """What is computed before the first step, into `head`."""

    def finish(self, head: nn.Module, support: Support) -> None:
        """What is computed after the last step, into `head`."""


def method_code(cls: type[Method]) -> str:
    """Sixteen hex digits of a hash of a method's code: of its file and of the methods that it
    imports. The harness itself is covered by `ENGINE`, a package that it requires by its version.
    """
    code = code_hash(cls, Method, "harness.methods")
    if not cls.requires:
        return code
    said = f"{code} {cls.requires} {version(cls.requires)}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


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
