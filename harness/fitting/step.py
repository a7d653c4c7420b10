"""One training step: whole-batch gradients, micro-batched underneath."""

import contextlib
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.fitting.model import Model, at_least_float32, surrounding
from harness.fitting.texts import CHUNK_TEXTS, MicroBatch, Texts, in_order
from harness.method import Gradients, HeadContext, Loss, Method
from harness.towers.edit import Rows, added


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


@dataclass
class AdaptiveChunks:
    """How much of a step is held at once, made smaller when the device runs out of memory."""

    chunks: Chunks = Chunks()
    shrunk: int = 0


@dataclass(frozen=True)
class Batch:
    """One step's data for a model: what `Images` gives of its images, the texts, labels [B].

    key: (seed, step). frozen: the images' frozen features [B, E], of a method that asks for them.
    mode: which of several ways through the towers this is (see `SiteContext.mode`).
    progress: the share of the fit's steps that are done. draws: see `Rows`. numbers: which of the
    fitted classes these are, where they are not all.
    """

    model: Model
    x: Tensor
    texts: Texts
    labels: Tensor
    key: tuple[object, int]
    chunks: Chunks = Chunks()
    frozen: Tensor | None = None
    progress: float = 0.0
    mode: str = ""
    draws: Any = None
    numbers: list[int] | None = None

    def rows(self, kind: str) -> tuple[int, int]:
        """How many images or text rows the step has, and how many of them are held at most."""
        images, texts = len(self.x), len(self.texts.ids)
        if kind == "image":
            return images, self.chunks.images or images
        if not self.model.method.text_per_image:
            return texts, self.chunks.texts or texts
        return images * texts, self.chunks.texts or CHUNK_TEXTS

    def drawn(self) -> "Batch":
        """The batch with the texts that the method takes in this step."""
        if type(self.model.method).texts_of_step is Method.texts_of_step:
            return self
        rows = len(self.texts.ids) // self.texts.per_class
        numbers = self.model.method.texts_of_step(rows, *self.key)
        return self if numbers is None else replace(self, texts=self.texts.chosen(numbers))

    def of_classes(self, classes: Tensor) -> "Batch":
        """The images and texts of some classes, relabelled in that order."""
        same = self.labels[:, None] == classes  # [B, C]
        kept = same.any(1)
        frozen = None if self.frozen is None else self.frozen[kept]
        labels = same[kept].int().argmax(1)
        chosen = self.texts.of_classes(classes)
        return replace(
            self, x=self.x[kept], texts=chosen, labels=labels, frozen=frozen,
            numbers=classes.tolist(),
        )  # fmt: skip


@dataclass(frozen=True)
class TrainingStep:
    """What a method may do in one step (see `method.Step`).

    recorder: does what `gradients` does with the method's own loss (see `fitting.recorded`), once
    in a step: a second time it would write into the gradients that the step was given before.
    replayed: what it gave. towers: what the towers run in.
    """

    batch: Batch
    optimiser: torch.optim.Optimizer
    rate: float
    number: int = 0
    total: int = 1
    room: AdaptiveChunks = field(default_factory=AdaptiveChunks)
    recorder: Callable[[Batch], Tensor] | None = None
    replayed: list[Tensor] = field(default_factory=list, repr=False)
    towers: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def taken(self) -> Tensor:
        """`Method.step`, which computes in single precision; the towers run in the precision that
        is on now."""
        device = self.labels.device
        step = replace(self, towers=surrounding(device))
        with torch.autocast(device.type, enabled=False):
            return self.batch.model.method.step(step)

    def __post_init__(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * group.get("factor", 1.0)

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

    @torch.no_grad()
    def image_features(self) -> Tensor:
        batch = replace(self.batch, chunks=self.room.chunks)
        parts = micro_batches(batch, "image")
        with self.towers():
            features = [tower_features(batch, "image", part)[0] for part in parts]
        return at_least_float32(in_order(features, parts))

    def gradients(
        self, loss: Loss, classes: Tensor | None = None, mode: str = ""
    ) -> tuple[Tensor, Gradients]:
        batch = self.batch if classes is None else self.batch.of_classes(classes)
        batch = replace(batch, mode=mode)
        own = classes is None and not mode and loss == batch.model.method.loss
        recorder = self.recorder if own and not self.replayed else None
        while True:
            self.optimiser.zero_grad(set_to_none=True)
            try:
                now = replace(batch, chunks=self.room.chunks)
                with self.towers():
                    value = gradients(now, loss) if recorder is None else recorder(now)
                if recorder is not None:
                    self.replayed.append(value)
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
    parts = [
        (kind, micro_batch)
        for kind in ("image", "text")
        for micro_batch in micro_batches(batch, kind)
    ]
    if all(most >= rows for rows, most in map(batch.rows, ("image", "text"))):
        pairs = [tower_features(batch, *each) for each in parts]
        auxiliary = sum((rows.auxiliary() for _, rows in pairs), start=0.0)
        totals = added(each for _, rows in pairs for each in rows.totals().items())
        value = _loss(batch, loss, [f for f, _ in pairs], parts, auxiliary, totals)
        value.backward()
        return value.detach()

    with torch.no_grad():
        pairs = [tower_features(batch, *each) for each in parts]
    leaves = [features.requires_grad_() for features, _ in pairs]
    parts_auxiliary = sum((rows.auxiliary() for _, rows in pairs), start=0.0)
    auxiliary = torch.as_tensor(parts_auxiliary, device=device).requires_grad_()
    totals = added(each for _, rows in pairs for each in rows.totals().items())
    for total, _ in totals.values():
        total.requires_grad_()
    value = _loss(batch, loss, leaves, parts, auxiliary, totals)
    value.backward()
    weight = 0.0 if auxiliary.grad is None else auxiliary.grad
    for each, leaf in zip(parts, leaves, strict=True):
        features, rows = tower_features(batch, *each)
        surrogate = torch.as_tensor(rows.auxiliary() * weight)
        for name, (part, _) in rows.totals().items():
            slope = totals[name][0].grad
            surrogate = surrogate if slope is None else surrogate + part * slope
        if leaf.grad is not None:
            surrogate = surrogate + (features * leaf.grad).sum()
        if surrogate.requires_grad:
            surrogate.backward()
    return value.detach()


def micro_batches(batch: Batch, kind: str) -> list[MicroBatch]:
    """The images or text rows of a step, in micro-batches; texts of similar lengths together."""
    rows, most = batch.rows(kind)
    if kind == "text":
        return batch.texts.micro_batches(most, rows // len(batch.texts.ids))
    return [MicroBatch(each) for each in torch.arange(rows, device=batch.labels.device).split(most)]


def tower_features(batch: Batch, kind: str, micro_batch: MicroBatch) -> tuple[Tensor, Rows]:
    """Features of some of the step's images or text rows."""
    model, numbers = batch.model, micro_batch.numbers
    if kind == "image":
        rows = Rows(numbers, len(batch.x), True, batch.key)
        _know(rows, batch)
        x = batch.x[numbers]
        return model.rest(model.clip.image, x, x, rows), rows
    images = batch.x if model.method.text_per_image else None
    x, ids, rows = batch.texts.rows(micro_batch, images, True, batch.key)
    _know(rows, batch)
    return model.rest(model.clip.text, x, ids, rows), rows


def _know(rows: Rows, batch: Batch) -> None:
    """What the edits may know of the step."""
    rows.mode, rows.progress, rows.draws = batch.mode, batch.progress, batch.draws


def _loss(
    batch: Batch,
    loss: Loss,
    features: list[Tensor],
    parts: list[tuple[str, MicroBatch]],
    auxiliary: Tensor | float,
    totals: Mapping[str, tuple[Tensor, int]],
) -> Tensor:
    model, texts = batch.model, batch.texts
    by_kind = dict[str, Tensor]()
    for kind in ("image", "text"):
        mine = [
            (f, micro_batch)
            for f, (of, micro_batch) in zip(features, parts, strict=True)
            if of == kind
        ]
        by_kind[kind] = in_order(*zip(*mine, strict=True))
    lead = (len(batch.x), -1) if model.method.text_per_image else (-1,)
    text = by_kind["text"].unflatten(0, (*lead, texts.per_class))  # [C, T, E] or [B, C, T, E]
    scale = model.clip.logit_scale.exp()
    given = HeadContext(
        scale, texts.references, batch.frozen, fitted=batch.numbers is None, key=batch.key,
        numbers=batch.numbers,
    )  # fmt: skip
    means = {name: total / count for name, (total, count) in totals.items()}
    output = model.output(by_kind["image"], text, given, auxiliary, means)
    with torch.autocast(batch.labels.device.type, enabled=False):
        return loss(output, batch.labels)
