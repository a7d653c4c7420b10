"""The one training loop: schedule, precision, micro-batches, and what it reports of itself."""

import gc
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from harness.data import epoch_order, steps_per_epoch
from harness.errors import HarnessError
from harness.graft import Model
from harness.inputs import FewShot, Images
from harness.method import Given, Gradients, Loss, Method, Rows
from harness.randomness import generator
from harness.texts import CHUNK_TEXTS, Piece, Texts, in_order


@dataclass(frozen=True)
class Schedule:
    """How long a method trains on `count` images, under the caps of a profile.

    The number of steps is the method's, but never more than `max_epochs` or than `max_steps` allow,
    in whole epochs if it allows one; the learning-rate schedule runs over the steps that are left.
    """

    steps: int  # an epoch
    total: int

    @classmethod
    def of(
        cls, method: Method, count: int, max_epochs: int | None, max_steps: int | None
    ) -> "Schedule":
        steps = steps_per_epoch(count, method.batch_size, method.views().drop_last)
        total = method.steps(steps)
        if max_epochs:
            total = min(total, max_epochs * steps)
        if max_steps:
            total = min(total, max_steps // steps * steps or max_steps)
        return cls(steps, total)

    @property
    def epochs(self) -> int:
        return math.ceil(self.total / self.steps)


@dataclass(frozen=True)
class Chunks:
    """Micro-batch sizes: images and text rows at once; 0 takes all (of texts per image at most
    CHUNK_TEXTS). checkpointing: whether each block recomputes its activations."""

    images: int = 0
    texts: int = 0
    checkpointing: bool = False


def halved(chunks: Chunks, images: int, texts: int) -> Chunks | None:
    """Half as much at once; None if there is nothing left to halve."""
    now = (chunks.images or images, chunks.texts or texts)
    if max(now) == 1:
        return None if chunks.checkpointing else Chunks(1, 1, True)
    return Chunks(max(1, now[0] // 2), max(1, now[1] // 2), chunks.checkpointing)


@dataclass(frozen=True)
class Report:
    """What a fit says of itself: mean loss of each epoch, optimiser steps, images seen, whether a
    parameter moved, how much was held at once, and how often that had to be made smaller."""

    losses: list[float]
    steps: int
    images: int
    moved: bool
    chunks: Chunks
    shrunk: int


def fit(
    model: Model,
    images: Images,
    texts: Texts,
    schedule: Schedule,
    seed: int,
    *,
    val: Images | None = None,
    chunks: Chunks = Chunks(),
    label: str = "",
) -> Report:
    """Trains `model.trained` in place on the few-shot images; the last epoch counts.

    Raises:
        HarnessError: the loss is not finite, with the epoch.
    """
    method = model.method
    before = [p.detach().clone() for p in model.parameters()]
    support = FewShot(images, texts, val, seed)
    method.prepare(model.head, support)
    # PyTorch refuses an optimiser of nothing
    optimiser = method.optimiser(model.parameters() or [nn.Parameter(torch.zeros(()))])
    frozen = images.frozen() if method.frozen_images else None
    losses, seen, done = [], 0, 0
    room = Room(chunks)
    total = schedule.total if model.parameters() else 0
    with tqdm(total=total, desc=label, unit="step", leave=False, disable=None) as bar:
        for epoch in range(math.ceil(total / schedule.steps)):
            count, drop_last = len(support.labels), method.views().drop_last
            order = epoch_order(count, method.batch_size, seed, epoch, drop_last)[: total - done]
            view = images.augmentation.view(seed, epoch)
            passes = (
                images.train(view, order),
                frozen.train(view, order) if frozen else itertools.repeat(None),
            )
            epoch_losses = []
            for batch, x, features in zip(order, *passes, strict=False):
                rate = method.learning_rate(done, schedule.steps, schedule.total)
                labels = support.labels[batch]
                data = Batch(model, x, texts, labels, (seed, done), chunks, features)
                step = TrainingStep(data, optimiser, rate, done, total, room)
                epoch_losses.append(method.step(step))
                seen, done = seen + len(batch), done + 1
                bar.update()
            losses.append(float(torch.stack(epoch_losses).mean()))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if not math.isfinite(losses[-1]):
                raise HarnessError(f"the loss of {method.name} is not finite in epoch {epoch + 1}")
    method.finish(model.head, support)
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return Report(losses, done, seen, moved or not before, room.chunks, room.shrunk)


@dataclass
class Room:
    """How much of a step is held at once, made smaller when the device runs out of memory."""

    chunks: Chunks = Chunks()
    shrunk: int = 0


@dataclass(frozen=True)
class Batch:
    """One step's data for a model: what `Images` gives of its images, the texts, labels [B].

    frozen: the images' frozen features [B, E], of a method that asks for them.
    """

    model: Model
    x: Tensor
    texts: Texts
    labels: Tensor
    key: tuple[object, ...]
    chunks: Chunks = Chunks()
    frozen: Tensor | None = None

    def rows(self, kind: str) -> tuple[int, int]:
        """How many images or text rows the step has, and how many of them are held at most."""
        images, texts = len(self.x), len(self.texts.ids)
        if kind == "image":
            return images, self.chunks.images or images
        if not self.model.method.text_per_image:
            return texts, self.chunks.texts or texts
        return images * texts, self.chunks.texts or CHUNK_TEXTS

    def drawn(self) -> "Batch":
        """The batch with the texts that the method draws for this step."""
        count = self.model.method.texts_a_step()
        if count is None:
            return self
        order = torch.randperm(self.texts.per_class, generator=generator("texts", *self.key))
        return replace(self, texts=self.texts.of_kinds(order[:count]))

    def of_classes(self, classes: Tensor) -> "Batch":
        """The images and texts of some classes, relabelled in that order."""
        same = self.labels[:, None] == classes  # [B, C]
        kept = same.any(1)
        frozen = None if self.frozen is None else self.frozen[kept]
        labels = same[kept].int().argmax(1)
        chosen = self.texts.of_classes(classes)
        return replace(self, x=self.x[kept], texts=chosen, labels=labels, frozen=frozen)


@dataclass(frozen=True)
class TrainingStep:
    """What a method may do in one step (see `method.Step`)."""

    batch: Batch
    optimiser: torch.optim.Optimizer
    rate: float
    number: int = 0
    total: int = 1
    room: Room = field(default_factory=Room)

    def __post_init__(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.batch.model.trained.named_parameters())

    @property
    def head(self) -> nn.Module:
        return self.batch.model.head

    @property
    def labels(self) -> Tensor:
        return self.batch.labels

    @property
    def classes(self) -> int:
        return len(self.batch.model.classes.names)

    @property
    def key(self) -> tuple[object, ...]:
        return self.batch.key

    def gradients(self, loss: Loss, classes: Tensor | None = None) -> tuple[Tensor, Gradients]:
        batch = self.batch if classes is None else self.batch.of_classes(classes)
        while True:
            self.optimiser.zero_grad(set_to_none=True)
            try:
                value = gradients(replace(batch, chunks=self.room.chunks), loss)
                return value, {name: each.grad for name, each in self.parameters.items()}
            except torch.OutOfMemoryError:
                smaller = halved(self.room.chunks, len(batch.x), len(batch.texts.ids))
                if smaller is None:
                    raise
                self.room.chunks, self.room.shrunk = smaller, self.room.shrunk + 1
            gc.collect()
            if batch.x.is_cuda:
                torch.cuda.empty_cache()

    def update(self, gradients: Gradients) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        self.optimiser.step()


def gradients(batch: Batch, loss: Loss | None = None) -> Tensor:
    """Adds the gradient of `loss` (the method's own) to the trained parameters; returns the loss.

    With micro-batches, features are first computed without a graph, then the loss's gradient with
    respect to them, and then each micro-batch once more with a graph: the same gradient as the
    whole batch, to rounding.
    """
    batch = batch.drawn()
    model, device = batch.model, batch.labels.device
    model.checkpointing = batch.chunks.checkpointing
    loss = loss or model.method.loss
    parts = [(kind, piece) for kind in ("image", "text") for piece in pieces(batch, kind)]
    if all(most >= rows for rows, most in map(batch.rows, ("image", "text"))):
        pairs = [part(batch, *each) for each in parts]
        auxiliary = sum((rows.auxiliary() for _, rows in pairs), start=0.0)
        value = _loss(batch, loss, [f for f, _ in pairs], parts, auxiliary)
        value.backward()
        return value.detach()

    with torch.no_grad():
        pairs = [part(batch, *each) for each in parts]
    leaves = [features.requires_grad_() for features, _ in pairs]
    parts_auxiliary = sum((rows.auxiliary() for _, rows in pairs), start=0.0)
    auxiliary = torch.as_tensor(parts_auxiliary, device=device).requires_grad_()
    value = _loss(batch, loss, leaves, parts, auxiliary)
    value.backward()
    weight = 0.0 if auxiliary.grad is None else auxiliary.grad
    for each, leaf in zip(parts, leaves, strict=True):
        features, rows = part(batch, *each)
        surrogate = torch.as_tensor(rows.auxiliary() * weight)
        if leaf.grad is not None:
            surrogate = surrogate + (features * leaf.grad).sum()
        if surrogate.requires_grad:
            surrogate.backward()
    return value.detach()


def pieces(batch: Batch, kind: str) -> list[Piece]:
    """The images or text rows of a step, in micro-batches; texts of similar lengths together."""
    rows, most = batch.rows(kind)
    if kind == "text":
        return batch.texts.pieces(most, rows // len(batch.texts.ids))
    return [Piece(each) for each in torch.arange(rows, device=batch.labels.device).split(most)]


def part(batch: Batch, kind: str, piece: Piece) -> tuple[Tensor, Rows]:
    """Features of some of the step's images or text rows."""
    model, numbers = batch.model, piece.numbers
    if kind == "image":
        rows = Rows(numbers, len(batch.x), True, batch.key)
        x = batch.x[numbers]
        return model.finish(model.clip.image, x, x, rows), rows
    images = batch.x if model.method.text_per_image else None
    x, ids, rows = batch.texts.rows(piece, images, True, batch.key)
    return model.finish(model.clip.text, x, ids, rows), rows


def _loss(
    batch: Batch,
    loss: Loss,
    features: list[Tensor],
    parts: list[tuple[str, Piece]],
    auxiliary: Tensor | float,
) -> Tensor:
    model, texts = batch.model, batch.texts
    by_kind = dict[str, Tensor]()
    for kind in ("image", "text"):
        mine = [(f, piece) for f, (of, piece) in zip(features, parts, strict=True) if of == kind]
        by_kind[kind] = in_order(*zip(*mine, strict=True))
    lead = (len(batch.x), -1) if model.method.text_per_image else (-1,)
    text = by_kind["text"].unflatten(0, (*lead, texts.per_class))  # [C, T, E] or [B, C, T, E]
    scale = model.clip.logit_scale.exp()
    given = Given(scale, texts.references, batch.frozen, fitted=True, key=batch.key)
    output = model.output(by_kind["image"], text, given, auxiliary)
    with torch.autocast(batch.labels.device.type, enabled=False):
        return loss(output, batch.labels)
