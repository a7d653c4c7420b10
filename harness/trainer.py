"""The one training loop: schedule, precision, micro-batches, and what it reports of itself."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from harness.data import epoch_order, steps_per_epoch
from harness.errors import HarnessError
from harness.graft import Model
from harness.inputs import Images, Texts
from harness.method import Method, Output, Rows


@dataclass(frozen=True)
class Schedule:
    """How long a method trains on `count` images, under the caps of a profile.

    The number of epochs is the method's, but never more than `max_epochs` or than `max_steps`
    allow; the learning-rate schedule runs over the epochs that are left.
    """

    epochs: int
    steps: int  # an epoch

    @classmethod
    def of(
        cls, method: Method, count: int, max_epochs: int | None, max_steps: int | None
    ) -> "Schedule":
        steps = steps_per_epoch(count, method.batch_size)
        epochs = min(method.epochs, max_epochs or method.epochs)
        if max_steps:
            epochs = min(epochs, max(1, max_steps // steps))
        return cls(epochs, steps)


def learning_rate(method: Method, epochs: int, epoch: int) -> float:
    """The learning rate of an epoch (from 0): constant warm-up, then cosine counted after it.

    Source: Dassl optim/lr_scheduler.py with WARMUP_RECOUNT, as CoOp and its successors use it.
    """
    if epoch < method.warmup_epochs:
        return method.warmup_lr
    return method.lr / 2 * (1 + math.cos(math.pi * (epoch - method.warmup_epochs) / epochs))


@dataclass(frozen=True)
class Report:
    """What a fit says of itself: mean loss of each epoch, optimiser steps, images seen."""

    losses: list[float]
    steps: int
    images: int
    moved: bool


@dataclass(frozen=True)
class Chunks:
    """Micro-batch sizes: images and text rows at once; 0 takes all."""

    images: int = 0
    texts: int = 0


def fit(
    model: Model,
    images: Images,
    texts: Texts,
    schedule: Schedule,
    seed: int,
    *,
    chunks: Chunks = Chunks(),
    label: str = "",
) -> Report:
    """Trains `model.trained` in place on the few-shot images; the last epoch counts.

    Raises:
        HarnessError: the loss is not finite, with the epoch.
    """
    method, device = model.method, model.clip.device
    parameters = model.parameters()
    before = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.SGD(
        parameters, lr=method.lr, momentum=method.momentum, weight_decay=method.weight_decay
    )
    labels = torch.tensor([item.label for item in images.split.items], device=device)
    losses, seen = [], 0
    total = schedule.epochs * schedule.steps
    with tqdm(total=total, desc=label, unit="step", leave=False, disable=None) as bar:
        for epoch in range(schedule.epochs):
            optimiser.param_groups[0]["lr"] = learning_rate(method, schedule.epochs, epoch)
            order = epoch_order(len(labels), method.batch_size, seed, epoch)
            batches = zip(order, images.train(seed, epoch, order), strict=True)
            epoch_losses = []
            for step, (batch, x) in enumerate(batches, start=epoch * schedule.steps):
                optimiser.zero_grad(set_to_none=True)
                key = (seed, step)
                epoch_losses.append(gradients(model, x, texts, labels[batch], key, chunks))
                optimiser.step()
                seen += len(batch)
                bar.update()
            losses.append(float(torch.stack(epoch_losses).mean()))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if not math.isfinite(losses[-1]):
                raise HarnessError(f"the loss of {method.name} is not finite in epoch {epoch + 1}")
    moved = any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    return Report(losses, total, seen, moved)


def gradients(
    model: Model,
    x: Tensor,
    texts: Texts,
    labels: Tensor,
    key: tuple[object, ...],
    chunks: Chunks = Chunks(),
) -> Tensor:
    """Adds the loss's gradient to the trained parameters; returns the detached loss.

    x: what `Images` gives of a batch. With micro-batches, features are first computed without a
    graph, then the loss's gradient with respect to them, and then each micro-batch once more with a
    graph: the same gradient as the whole batch, to rounding.
    """
    image_chunks = _chunks(len(x), chunks.images)
    text_chunks = _chunks(len(texts.ids), chunks.texts)
    if len(image_chunks) == len(text_chunks) == 1:
        image, text, rows = _encode(model, x, texts, key, image_chunks[0], text_chunks[0])
        auxiliary = sum((each.auxiliary() for each in rows), start=0.0)
        loss = model.method.loss(_output(model, image, text, texts.per_class, auxiliary), labels)
        loss.backward()
        return loss.detach()

    parts = [("image", c) for c in image_chunks] + [("text", c) for c in text_chunks]
    with torch.no_grad():
        pairs = [_part(model, x, texts, key, kind, chunk) for kind, chunk in parts]
    leaves = [features.requires_grad_() for features, _ in pairs]
    parts_auxiliary = sum((rows.auxiliary() for _, rows in pairs), start=0.0)
    auxiliary = torch.as_tensor(parts_auxiliary, device=labels.device).requires_grad_()
    image, text = torch.cat(leaves[: len(image_chunks)]), torch.cat(leaves[len(image_chunks) :])
    loss = model.method.loss(_output(model, image, text, texts.per_class, auxiliary), labels)
    loss.backward()
    weight = 0.0 if auxiliary.grad is None else auxiliary.grad
    for (kind, chunk), leaf in zip(parts, leaves, strict=True):
        features, part_rows = _part(model, x, texts, key, kind, chunk)
        surrogate = torch.as_tensor(part_rows.auxiliary() * weight)
        if leaf.grad is not None:
            surrogate = surrogate + (features * leaf.grad).sum()
        if surrogate.requires_grad:
            surrogate.backward()
    return loss.detach()


def _encode(
    model: Model, x: Tensor, texts: Texts, key: tuple[object, ...], images: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, list[Rows]]:
    image, image_rows = _part(model, x, texts, key, "image", images)
    text, text_rows = _part(model, x, texts, key, "text", rows)
    return image, text, [image_rows, text_rows]


def _part(
    model: Model, x: Tensor, texts: Texts, key: tuple[object, ...], kind: str, numbers: Tensor
) -> tuple[Tensor, Rows]:
    """Features of some of the step's images or text rows."""
    numbers = numbers.to(x.device)
    if kind == "image":
        rows = Rows(numbers, len(x), True, key)
        return model.finish(model.clip.image, x[numbers], x[numbers], rows), rows
    ids = texts.ids[numbers]
    rows = Rows(numbers, len(texts.ids), True, key, ids=ids)
    return model.finish(model.clip.text, texts.x[numbers], ids, rows), rows


def _output(
    model: Model, image: Tensor, text: Tensor, per_class: int, auxiliary: Tensor | float
) -> Output:
    text = text.unflatten(0, (-1, per_class))  # [C, T, E]
    return Output(model.logits(image, text), image, text, auxiliary)


def _chunks(count: int, size: int) -> list[Tensor]:
    return list(torch.arange(count).split(size or count))
