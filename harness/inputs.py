"""What reaches the changed part of each tower: computed once where that is exact, else live.

Before the cut a tower is frozen, so what leaves it depends only on the weights, the image or text,
and (in training) the view, which is a function of (seed, epoch, position). Methods, seeds and tasks
that need the same values share them, under a size budget.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness import data
from harness.clip import crop
from harness.data import Augmentation, Source
from harness.dataset import Classes, Split
from harness.graft import Model

CHUNK = 100  # images a forward pass while nothing is trained: Dassl's test batch


@dataclass
class Cache:
    """Tensors by key, the least recently used dropped first when `budget` bytes are exceeded.

    `seconds` is the time spent on computing them.
    """

    budget: int = 2 * 2**30
    seconds: float = 0.0
    kept: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor under `key`, computed if it is not there."""
        if key not in self.kept:
            started = time.perf_counter()
            self.kept[key] = compute()
            self.seconds += time.perf_counter() - started
        self.kept.move_to_end(key)
        while sum(t.nbytes for t in self.kept.values()) > self.budget and len(self.kept) > 1:
            self.kept.popitem(last=False)
        return self.kept[key]


@dataclass(frozen=True)
class Texts:
    """The texts of some classes: token ids [R, L], what `start` made of them, and T."""

    ids: Tensor
    x: Tensor
    per_class: int


def texts(model: Model, classes: Classes, training: bool) -> Texts:
    """The prompts of `classes`, cropped to the longest where that is exact."""
    prompts = model.method.prompts(classes)
    ids = model.clip.tokenize([text for each in prompts for text in each])
    if not (training and model.mixes_text()):
        ids = crop(ids)
    return Texts(ids, model.start(model.clip.text, ids), len(prompts[0]))


@dataclass(frozen=True)
class Images:
    """The images of a split for one model: where they come from and where they may be kept."""

    model: Model
    source: Source
    split: Split
    cache: Cache
    augmentation: Augmentation

    def test(self) -> Iterator[Tensor]:
        """`start` of every image in order under the test transform, in chunks."""

        def live() -> Iterator[Tensor]:
            size = self.model.clip.size
            for pixels in data.test_batches(self.source, self.split, size, CHUNK):
                yield self._start(pixels)

        if not self._fits():
            yield from live()
            return
        yield from self.cache.get(self._key(), lambda: torch.cat(list(live()))).split(CHUNK)

    def train(self, seed: int, epoch: int, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """`start` of the epoch's views, in the batches of `order` (indices into the split)."""

        def live(order: Sequence[Tensor]) -> Iterator[Tensor]:
            arguments = (self.source, self.split, self.model.clip.size, self.augmentation)
            for pixels in data.train_batches(*arguments, seed, epoch, order):
                yield self._start(pixels)

        if not self._fits():
            yield from live(order)
            return
        in_order = torch.arange(len(self.split.items)).split(CHUNK)
        key = (*self._key(), self.augmentation, seed, epoch)
        views = self.cache.get(key, lambda: torch.cat(list(live(in_order))))
        for batch in order:
            yield views[batch.to(views.device)]

    def _start(self, pixels: Tensor) -> Tensor:
        clip = self.model.clip
        images = data.normalise(pixels.to(clip.device), clip.mean, clip.std)
        return self.model.start(clip.image, images)

    def _key(self) -> tuple[Hashable, ...]:
        clip = self.model.clip
        precision = (
            torch.get_autocast_dtype(clip.device.type)
            if torch.is_autocast_enabled(clip.device.type)
            else None
        )
        cut = self.model.cut(clip.image)
        return (clip.fingerprint, str(clip.device), precision, self.split.fingerprint, cut)

    def _fits(self) -> bool:
        """Whether one pass over the split may be kept: a quarter of the budget, in float32."""
        clip = self.model.clip
        cut = self.model.cut(clip.image)
        floats = clip.image.length * clip.image.width
        if cut is None:
            floats = clip.embedding
        elif cut < 0:
            floats = 3 * clip.size**2
        return len(self.split.items) * floats * 4 <= self.cache.budget // 4
