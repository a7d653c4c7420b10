"""What reaches the changed part of each tower: computed once where that is exact, else live.

Before the cut a tower is frozen, so what leaves it depends only on the weights, the image or text,
and (in training) the view, which is a function of (seed, epoch, position). Methods, seeds and tasks
that need the same values share them, under a size budget.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from harness import data
from harness.cache import Cache, code_of
from harness.clip import Clip, needed
from harness.data import Augmentation, FiveCrop, Source, View
from harness.dataset import Classes, Split
from harness.errors import HarnessError
from harness.graft import Model, wide
from harness.method import Method, Rows

CHUNK = 100  # images a forward pass while nothing is trained: Dassl's test batch
CHUNK_TEXTS = 1024  # texts a forward pass while nothing is trained
PASS = {"cuda": 4096, "cpu": 256}  # tokens that take as long as a pass through a tower by itself


class Piece(NamedTuple):
    """What passes a tower together: numbers [r] of images or text rows; positions of each text, and
    to how many images the texts belong, in order."""

    numbers: Tensor
    length: int = 0
    images: int = 1


@dataclass(frozen=True)
class Texts:
    """The texts of some classes.

    ids [R, L]: token ids; x: what `start` made of them; lengths [R], on the CPU: the positions that
    each needs; shared: how many at the beginning are the same in all rows (of an image) and pass
    once; per_class: T; kinds [R]: which of its class's T texts each row is; references: frozen
    features [C, T, E] of the classes, by name.
    """

    ids: Tensor
    x: Tensor
    lengths: Tensor
    shared: int
    per_class: int
    kinds: Tensor
    references: Mapping[str, Tensor]

    def groups(self, copies: int = 1) -> list[Piece]:
        """The rows in groups of similar lengths, each to be cut to its longest: those with which
        the fewest tokens pass, of so many copies of the rows, counting a `PASS` for each group."""
        order = self.lengths.argsort(stable=True)
        sizes, counts = self.lengths.unique(return_counts=True)
        ends = [0, *counts.cumsum(0).tolist()]
        fixed = PASS.get(self.ids.device.type, 0)
        best = [(0, 0)]  # of the rows up to each end: tokens, and where their last group begins
        for j, size in enumerate(sizes.tolist(), 1):
            own = copies * (size - self.shared)
            tokens = [best[i][0] + own * (ends[j] - ends[i]) + fixed for i in range(j)]
            best.append(min(zip(tokens, range(j), strict=True)))
        groups, end = list[Piece](), len(sizes)
        while end:
            start = best[end][1]
            rows = order[ends[start] : ends[end]].sort().values
            groups.append(Piece(rows.to(self.ids.device), int(sizes[end - 1])))
            end = start
        return groups

    def pieces(self, most: int, images: int = 1) -> list[Piece]:
        """All rows, of each of `images`, in parts of at most `most` and of similar lengths: of
        several images whole groups, or a part of one image's."""
        found = list[Piece]()
        for rows, length, _ in self.groups(images):
            for some in torch.arange(images).split(max(1, most // len(rows))):
                of = len(self.ids) * some.to(rows.device)[:, None]
                parts = (of + rows).flatten().split(most)
                found += [Piece(each, length, len(some)) for each in parts]
        return found

    def of_classes(self, classes: Tensor) -> "Texts":
        """The texts of some of the classes, in that order."""
        rows = self._rows(classes, torch.arange(self.per_class, device=classes.device))
        references = {name: each[classes] for name, each in self.references.items()}
        return replace(self._of(rows), references=references)

    def of_kinds(self, kinds: Tensor) -> "Texts":
        """Some of each class's texts."""
        count = len(self.ids) // self.per_class
        rows = self._rows(torch.arange(count, device=kinds.device), kinds)
        return replace(self._of(rows), per_class=len(kinds))

    def _of(self, rows: Tensor) -> "Texts":
        return replace(self, ids=self.ids[rows], x=self.x[rows], kinds=self.kinds[rows],
                       lengths=self.lengths[rows.cpu()])  # fmt: skip

    def rows(
        self,
        piece: Piece,
        images: Tensor | None = None,
        training: bool = False,
        key: tuple[object, ...] = (),
    ) -> tuple[Tensor, Tensor, Rows]:
        """Inputs, token ids and description of some text rows; with `images` [B, E] row r is text
        r % R of image r // R."""
        numbers, length, of_images = piece
        count = len(self.ids)
        of = numbers % count
        references = {  # [r, T, E]
            name: each[(of // self.per_class).clamp(max=len(each) - 1)]
            for name, each in self.references.items()
        }
        total = count if images is None else count * len(images)
        image = None if images is None else images[numbers // count]
        ids, kinds, x = self.ids[of, :length], self.kinds[of], self.x[of]
        rows = Rows(
            numbers, total, training, key, ids, kinds, references, image, self.shared, of_images
        )
        features = x.ndim == 2 and x.is_floating_point()  # of a tower that is never changed
        return (x if features else x[:, :length]), ids, rows

    def _rows(self, classes: Tensor, kinds: Tensor) -> Tensor:
        return (classes[:, None] * self.per_class + kinds).flatten()


def texts(model: Model, classes: Classes, training: bool, cache: Cache | None = None) -> Texts:
    """The prompts of `classes`, cropped to the longest where that is exact, and the frozen features
    of the method's references."""
    prompts, clip = model.method.prompts(classes), model.clip
    ids = clip.tokenize([text for each in prompts for text in each])
    lengths = needed(ids)
    if training and model.mixes_text():
        lengths = torch.full_like(lengths, ids.shape[1])
    ids = ids[:, : int(lengths.max())]
    x = torch.cat([model.start(clip.text, part) for part in ids.split(CHUNK_TEXTS)])
    shared = beginning(ids, lengths) if model.texts_begin_alike() else 0
    kinds = torch.arange(len(prompts[0]), device=ids.device).repeat(len(prompts))
    references = {
        name: frozen_texts(model.clip, each, cache or Cache())
        for name, each in model.method.references(classes).items()
    }
    return Texts(ids, x, lengths, shared, len(prompts[0]), kinds, references)


def beginning(ids: Tensor, lengths: Tensor) -> int:
    """At how many positions from the first all rows [R, L] have the same tokens, less than the
    shortest has; 0 if that spares too few tokens."""
    same = (ids == ids[:1]).all(0).int().cumprod(0)
    count = min(int(same.sum()), int(lengths.min()) - 1)
    return count if (len(ids) - 1) * count > PASS.get(ids.device.type, 0) else 0


@torch.no_grad()
def frozen_texts(clip: Clip, prompts: Sequence[Sequence[str]], cache: Cache) -> Tensor:
    """Features [C, T, E] of texts on the frozen tower, not normalised."""
    flat = [text for each in prompts for text in each]
    key = ("texts", *arithmetic(clip), tuple(flat))

    def live() -> dict[str, Tensor]:
        ids = clip.tokenize(flat)
        ids = ids[:, : int(needed(ids).max())]
        return {"x": torch.cat([clip.text(part) for part in ids.split(CHUNK_TEXTS)])}

    def compute() -> Tensor:
        kept = cache.disk.get("texts", key, live) if cache.disk else live()
        return kept["x"].to(clip.device)

    return cache.get(key, compute).unflatten(0, (len(prompts), -1))


def arithmetic(clip: Clip) -> tuple[Hashable, ...]:
    """What the bits of a frozen feature depend on, beside its input: weights, precision, code,
    device and threads."""
    kind = clip.device.type
    computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    code = code_of("clip", "graft", "inputs", "data")
    name = torch.cuda.get_device_name(clip.device) if kind == "cuda" else torch.get_num_threads()
    how = (computed, clip.image.compiled)
    return (clip.fingerprint, clip.logit_scale.dtype, *how, code, str(clip.device), name)


@dataclass(frozen=True)
class Images:
    """The images of a split for one model: where they come from and where they may be kept."""

    model: Model
    source: Source
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
            size = self.model.clip.size
            for pixels in data.test_batches(self.source, self.split, size, CHUNK):
                yield self._start(pixels)

        if not self._fits():
            return live()
        return iter(self._kept(live).split(CHUNK))

    def train(self, view: View, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """`start` of one pass over the views, in the batches of `order` (indices)."""

        def live(order: Sequence[Tensor] = self._in_order()) -> Iterator[Tensor]:
            arguments = (self.source, self.split, self.model.clip.size, self.augmentation)
            for pixels in data.train_batches(*arguments, view, order):
                yield self._start(pixels)

        if not self._fits():
            return live(order)
        views = self._kept(live, self.augmentation, view, self.split.positions)
        return (views[batch.to(views.device)] for batch in order)

    def _kept(self, live: Callable[[], Iterator[Tensor]], *view: Hashable) -> Tensor:
        """What `live` gives, from memory; features of the whole tower also from disk."""
        clip = self.model.clip
        cut = self.model.cut(clip.image)
        key = (*arithmetic(clip), clip.size, *view)

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
        return data.normalise(pixels, clip.mean, clip.std)

    def _start(self, pixels: Tensor) -> Tensor:
        return self.model.start(self.model.clip.image, self.normalised(pixels))

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


class FewShot:
    """The few-shot images of a fit, with the features that the model gives them: what
    `Method.prepare` and `Method.finish` may use (see `method.Support`)."""

    def __init__(self, images: Images, prompts: Texts, val: Images | None, seed: int) -> None:
        self._images, self._prompts, self._val, self.seed = images, prompts, val, seed
        self.labels, self.scale = images.labels, images.model.clip.logit_scale.exp()

    @property
    def text(self) -> Tensor:
        """Features [C, T, E] of the prompts."""
        return text_features(self._images.model, self._prompts)

    def view(self, number: int) -> Tensor:
        """Features [N, E] of one pass over the training views (of five crops: the crop)."""
        augmentation = self._images.augmentation
        five = isinstance(augmentation, FiveCrop)
        view = (number,) if five else augmentation.view(self.seed, number)
        return self._features(self._images, self._images.train(view, self._images._in_order()))

    def test(self) -> Tensor:
        """Features [N, E] under the test transform."""
        return self._features(self._images, self._images.test())

    def val(self) -> tuple[Tensor, Tensor]:
        """Features [V, E] and labels [V] of the val images.

        Raises:
            HarnessError: the method does not say that it uses them.
        """
        if self._val is None:
            raise HarnessError(f"{self._images.model.method.name} lacks `uses_val = True`.")
        return self._features(self._val, self._val.test()), self._val.labels

    def _features(self, images: Images, batches: Iterator[Tensor]) -> Tensor:
        return wide(torch.cat([image_features(images.model, x) for x in batches]))


@torch.no_grad()
def image_features(model: Model, x: Tensor) -> Tensor:
    """Features [B, E] of what `start` made of images, before normalisation."""
    rows = Rows(torch.arange(len(x), device=x.device), len(x), False, ())
    return model.finish(model.clip.image, x, x, rows)


@torch.no_grad()
def text_features(model: Model, prompts: Texts, images: Tensor | None = None) -> Tensor:
    """Features of every prompt, before normalisation: [C, T, E], or [B, C, T, E] for each of
    `images` [B, E]. At most CHUNK_TEXTS prompts are held at once."""
    pieces, features = prompts.pieces(CHUNK_TEXTS, 1 if images is None else len(images)), []
    for piece in pieces:
        x, ids, rows = prompts.rows(piece, images)
        features.append(model.finish(model.clip.text, x, ids, rows))
    shape = (-1, prompts.per_class) if images is None else (len(images), -1, prompts.per_class)
    return in_order(features, pieces).unflatten(0, shape)


def in_order(features: Sequence[Tensor], pieces: Sequence[Piece]) -> Tensor:
    """Features [r, E] of each piece as those of all rows [R, E]."""
    if len(pieces) == 1:
        return features[0]
    numbers = torch.cat([piece.numbers for piece in pieces])
    return torch.cat(list(features))[numbers.argsort()]
