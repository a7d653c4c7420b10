"""The one training loop: schedule, precision, micro-batches, and what it reports of itself."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.fitting.inputs import FewShotSupport, Images, chosen
from harness.fitting.model import Model
from harness.fitting.progress import progress
from harness.fitting.recorded import recorder
from harness.fitting.step import AdaptiveChunks, Batch, Chunks, TrainingStep
from harness.fitting.texts import Texts
from harness.images.pixels import epoch_order, steps_per_epoch
from harness.method import Method


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


class WeightedMean:
    """The parameters at the ends of epochs, averaged by `Method.epoch_weight`."""

    def __init__(self) -> None:
        self.total, self.sums = 0.0, list[Tensor]()

    @torch.no_grad()
    def add(self, parameters: list[nn.Parameter], weight: float | None) -> None:
        if weight is None:
            return
        self.sums = self.sums or [torch.zeros_like(p) for p in parameters]
        self.total += weight
        for each, parameter in zip(self.sums, parameters, strict=True):
            each.add_(parameter, alpha=weight)

    @torch.no_grad()
    def load(self, parameters: list[nn.Parameter]) -> None:
        """Puts the mean in the place of the parameters, if there is one."""
        if self.sums and self.total <= 0:
            raise HarnessError("no epoch has a weight in the mean of the parameters: see the "
                               "method's fields for it.")  # fmt: skip
        for each, parameter in zip(self.sums, parameters, strict=bool(self.sums)):
            parameter.copy_(each / self.total)


@dataclass(frozen=True)
class FitReport:
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
    graphs: bool = True,
    label: str = "",
) -> FitReport:
    """Trains `model.trained` in place on the few-shot images; the last epoch counts.

    Raises:
        HarnessError: the loss is not finite, with the epoch.
    """
    method = model.method
    total = schedule.total if model.parameters() else 0
    views = method.views()
    before = [p.detach().clone() for p in model.parameters()]
    support = FewShotSupport(images, texts, val, seed)
    support.alone(method.prepare)
    if total:  # it is the steps that must move them
        before = [p.detach().clone() for p in model.parameters()]
    alike = support.labels.cpu() if views.one_class else None
    optimiser, mean = model.optimiser(), WeightedMean()
    frozen = images.frozen() if method.frozen_images else None
    losses, seen, done = [], 0, 0
    room, recorded = AdaptiveChunks(chunks), recorder(support.labels.device, graphs)
    with progress(total, label) as bar:
        for epoch in range(math.ceil(total / schedule.steps)):
            shuffled = (len(support.labels), method.batch_size, seed, epoch, views.drop_last, alike)
            order = epoch_order(*shuffled)[: total - done]
            view = images.augmentation.view(seed, epoch)
            passes = (
                images.train(view, order),
                frozen.train((*view, 1) if views.second else view, order)
                if frozen
                else itertools.repeat(None),
            )
            epoch_losses = []
            shown = chosen(support.labels, order)  # one transfer an epoch
            for labels, x, features in zip(shown, *passes, strict=False):
                rate = method.learning_rate(done, schedule.steps, schedule.total)
                now = done / total
                data = Batch(model, x, texts, labels, (seed, done), chunks, features, now)
                step = TrainingStep(data, optimiser, rate, done, total, room, recorded)
                epoch_losses.append(step.taken())
                seen, done = seen + len(labels), done + 1
                bar.update()
            losses.append(float(torch.stack(epoch_losses).mean()))
            mean.add(model.parameters(), method.epoch_weight(epoch, schedule.epochs))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if not math.isfinite(losses[-1]):
                raise HarnessError(f"the loss of {method.name} is not finite in epoch {epoch + 1}")
    mean.load(model.parameters())
    support.alone(method.finish)
    for name, value in model.trained.state_dict().items():
        if not value.isfinite().all():
            raise HarnessError(
                f"{method.name}: after the fit {name} holds numbers that are not finite."
            )
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return FitReport(losses, done, seen, moved or not before, room.chunks, room.shrunk)
