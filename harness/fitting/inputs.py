"""What reaches the changed part of each tower: computed once where that is exact, else live.

Before the cut a tower is frozen, so what leaves it depends only on the weights, the image or text,
and (in training) the view, which is a function of (seed, epoch, position). Methods, seeds and tasks
that need the same values share them, under a size budget.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.fitting.model import Model, at_least_float32, surrounding
from harness.fitting.sites import See, show_inputs
from harness.fitting.texts import Texts, arithmetic_key, text_features
from harness.images.cache import Cache
from harness.images.pixels import Augmentation, FiveCrop, View, normalise
from harness.images.source import ImageSource, test_batches, train_batches
from harness.method import Method
from harness.splits import Split
from harness.towers.edit import Edit, Rows
from harness.towers.tower import Site

CHUNK = 100  # images a forward pass while nothing is trained: Dassl's test batch


@dataclass(frozen=True)
class Images:
    """The images of a split for one model: where they come from and where they may be kept."""

    model: Model
    source: ImageSource
    split: Split
    cache: Cache
    augmentation: Augmentation | FiveCrop

    @property
    def labels(self) -> Tensor:
        """[N], on the model's device."""
        labels = [item.label for item in self.split.items]
        return torch.tensor(labels, device=self.model.clip.device)

    def frozen(self) -> "Images":
        """The same images for the frozen towers: what leaves is their features."""
        return replace(self, model=Model(self.model.clip, Method(), self.split.classes, seed=0))

    def test(self) -> Iterator[Tensor]:
        """`start` of every image in order under the test transform, in chunks."""

        def live() -> Iterator[Tensor]:
            taken = self.model.clip.pixels
            for pixels in test_batches(self.source, self.split, taken, CHUNK):
                yield self._start(pixels)

        if not self._fits():
            return live()
        return iter(self._kept(live).split(CHUNK))

    def train(self, view: View, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """`start` of one pass over the views, in the batches of `order` (indices)."""

        def live(order: Sequence[Tensor] = self._in_order()) -> Iterator[Tensor]:
            arguments = (self.source, self.split, self.model.clip.pixels, self.augmentation)
            for pixels in train_batches(*arguments, view, order):
                yield self._start(pixels)

        if not self._fits():
            return live(order)
        views = self._kept(live, self.augmentation, view, self.split.positions)
        return chosen(views, order)

    def _kept(self, live: Callable[[], Iterator[Tensor]], *view: Hashable) -> Tensor:
        """What `live` gives, from memory; features of the whole tower also from disk."""
        clip = self.model.clip
        cut = self.model.cut(clip.image)
        key = (*arithmetic_key(clip), clip.pixels, *view)

        def all_of_them() -> dict[str, Tensor]:
            return {"x": torch.cat(list(live()))}

        def compute() -> Tensor:
            if cut is not None:
                return all_of_them()["x"]
            split = self.split
            kept = self.source.kept("features", split, split.items, all_of_them, *key)
            return kept["x"].to(clip.device)

        return self.cache.get((*key, self.split.fingerprint, cut), compute)

    def _in_order(self) -> Sequence[Tensor]:
        return torch.arange(len(self.split.items)).split(CHUNK)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8, as the image tower takes them, on its device."""
        clip = self.model.clip
        if clip.device.type == "cuda":  # pinned, the transfer waits for nothing
            pixels = pixels.pin_memory()
        pixels = pixels.to(clip.device, non_blocking=True)
        return normalise(pixels, clip.pixels.mean, clip.pixels.std).to(clip.logit_scale.dtype)

    def _start(self, pixels: Tensor) -> Tensor:
        return self.model.prefix(self.model.clip.image, self.normalised(pixels))

    def _fits(self) -> bool:
        """Whether one pass over the split may be kept: a quarter of the budget, in float32."""
        clip = self.model.clip
        cut = self.model.cut(clip.image)
        floats = clip.image.length * clip.image.width
        if cut is None:
            floats = clip.embedding
        elif cut < 0:
            floats = math.prod(clip.pixels.shape)
        return len(self.split.items) * floats * 4 <= self.cache.budget // 4


class FewShotSupport:
    """The few-shot images of a fit, with the features that the model gives them: what
    `Method.prepare` and `Method.finish` may use (see `method.Support`).

    The towers run in the precision that was on when it was made; what a method computes of their
    features in `prepare` and `finish` is in single precision, see `alone`.
    """

    def __init__(self, images: Images, prompts: Texts, val: Images | None, seed: int) -> None:
        self._images, self._prompts, self._val, self.seed = images, prompts, val, seed
        self.labels, self.scale = images.labels, images.model.clip.logit_scale.exp()
        self._towers = surrounding(images.model.clip.device)

    def alone(self, computed: Callable[[nn.Module, "FewShotSupport"], None]) -> None:
        """`Method.prepare` or `Method.finish`, without autocast."""
        model = self._images.model
        with torch.autocast(model.clip.device.type, enabled=False):
            computed(model.head, self)

    @property
    def unfrozen(self) -> Mapping[str, tuple[Tensor, nn.Parameter]]:
        """The backbone's parameters that the method trains, by name: frozen, and as they are."""
        model = self._images.model
        frozen, whole = model.clip.parameters_by_name(), model.clip.whole
        return {
            name: (whole.get(id(frozen[name]), frozen[name]), copy)
            for name, copy in model.unfrozen.items()
        }

    @property
    def text(self) -> Tensor:
        """Features [C, T, E] of the prompts."""
        with self._towers():
            return at_least_float32(text_features(self._images.model, self._prompts))

    def view(self, number: int) -> Tensor:
        """Features [N, E] of one pass over the training views (of five crops: the crop)."""
        augmentation = self._images.augmentation
        five = isinstance(augmentation, FiveCrop)
        view = (number,) if five else augmentation.view(self.seed, number)
        with self._towers():
            return self._features(self._images, self._images.train(view, self._images._in_order()))

    @property
    def edits(self) -> Mapping[Site, Edit]:
        """What the method inserts, by site."""
        return self._images.model.edits

    def inputs(self, sites: Iterable[Site], see: See) -> None:
        """Calls see(site, x [tokens, D]) with what enters some sites, part by part, for the first
        pass over the training views and for the prompts."""
        view = self._images.augmentation.view(self.seed, 0)

        def first_view(model: Model) -> Iterator[Tensor]:
            images = replace(self._images, model=model)
            return images.train(view, images._in_order())

        with self._towers():
            show_inputs(self._images.model, sites, see, first_view, self._prompts)

    def test(self) -> Tensor:
        """Features [N, E] under the test transform."""
        with self._towers():
            return self._features(self._images, self._images.test())

    def val(self) -> tuple[Tensor, Tensor]:
        """Features [V, E] and labels [V] of the val images.

        Raises:
            HarnessError: the method does not say that it uses them.
        """
        if self._val is None:
            raise HarnessError(f"{self._images.model.method.name} lacks `uses_val = True`.")
        with self._towers():
            return self._features(self._val, self._val.test()), self._val.labels

    def _features(self, images: Images, batches: Iterator[Tensor]) -> Tensor:
        return at_least_float32(torch.cat([image_features(images.model, x) for x in batches]))


def chosen(rows: Tensor, order: Sequence[Tensor]) -> Iterator[Tensor]:
    """Some of `rows` for each batch of indices, which are moved to their device all at once."""
    moved = torch.cat(list(order)).to(rows.device).split([len(batch) for batch in order])
    return (rows[batch] for batch in moved)


@torch.no_grad()
def image_features(model: Model, x: Tensor) -> Tensor:
    """Features [B, E] of what `start` made of images, before normalisation; [B, K, E] where the
    method gives an image several."""
    rows = Rows(torch.arange(len(x), device=x.device), len(x), False, ())
    return model.rest(model.clip.image, x, x, rows)
