"""A training step of one method, by the engine and as the published loops do it."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.bench.naive import naively
from harness.dataset import Classes
from harness.fitting.inputs import image_features
from harness.fitting.memory import choose
from harness.fitting.model import Model
from harness.fitting.recorded import Recorder, recorder
from harness.fitting.step import AdaptiveChunks, Batch, Chunks, TrainingStep
from harness.fitting.texts import Texts, text_features, texts
from harness.images import pixels as data
from harness.images.cache import Cache
from harness.measure import operations
from harness.method import HeadContext, Method
from harness.randomness import generator
from harness.towers.backbone import IMAGENET
from harness.towers.openclip import Clip

SCORED = 32  # images of an evaluation


def names(count: int) -> tuple[str, ...]:
    """Class names of ImageNet, evenly spaced among its thousand, which come again above that."""
    whole = len(IMAGENET)
    return tuple(IMAGENET[i * whole // count if count < whole else i % whole] for i in range(count))


class StepBenchmark:
    """A method on a backbone with some classes, and one step of it, either way."""

    def __init__(
        self, clip: Clip, method: Method, count: int, memory: int, scored: int = SCORED
    ) -> None:
        self.clip, self.method = clip, method
        self.classes = Classes("bench", names(count), "a photo of a {}.")
        self.model = Model(clip, method, self.classes, seed=1)
        self.model.trained.to(clip.logit_scale.dtype)
        size = (max(method.batch_size, scored), *clip.pixels.shape)
        self.pixels = torch.randint(0, 256, size, generator=generator("pixels"), dtype=torch.uint8)
        self.labels = (torch.arange(method.batch_size) % count).to(clip.device)
        # PyTorch refuses an optimiser of nothing
        trained = self.model.parameters() or [torch.nn.Parameter(torch.zeros(()))]
        self.optimiser = method.optimiser(trained)
        self.recorder = recorder(clip.device)
        self.cache = Cache()
        self.prompts = self.encode()
        self.chunks = choose(self.model, method.batch_size, self.prompts, memory)
        self.memory, self.number = memory, 0
        self.scored = scored if not method.text_per_image else max(1, scored // 8)

    @functools.cached_property
    def fits_naively(self) -> bool:
        """Whether a naive step may be done at once."""
        with naively():
            chosen = choose(self.model, self.method.batch_size, self.whole, self.memory)
        return chosen == Chunks()

    def encode(self) -> Texts:
        """What reaches the changed part of the text tower."""
        return texts(self.model, self.classes, training=True, cache=self.cache)

    def rows(self, prompts: Texts) -> int:
        """Text rows of a step."""
        return len(prompts.ids) * (self.method.batch_size if self.method.text_per_image else 1)

    def start(self, images: int | None = None) -> Tensor:
        """What reaches the changed part of the image tower, of the first images of a batch."""
        pixels = self.pixels[: images or self.method.batch_size]
        return self.model.prefix(self.clip.image, self.normalised(pixels))

    def normalised(self, pixels: Tensor) -> Tensor:
        clip = self.clip
        if clip.device.type == "cuda":  # as the engine does it
            pixels = pixels.pin_memory()
        moved = pixels.to(clip.device, non_blocking=True)
        images = data.normalise(moved, clip.pixels.mean, clip.pixels.std)
        return images.to(clip.logit_scale.dtype)

    def engine(self, chunks: Chunks | None = None) -> None:
        """A step as the trainer does it, images encoded anew."""
        self._step(self.start(), self.prompts, chunks or self.chunks, recorder=self.recorder)

    def cached(self, recorded: bool = True) -> None:
        """A step whose images another run has encoded."""
        recorder = self.recorder if recorded else None
        self._step(self.kept, self.prompts, self.chunks, recorder=recorder)

    def ready(self) -> None:
        """Steps until the engine replays them, if it does."""
        if self.recorder:
            self.recorder.ready(self.engine)

    @functools.cached_property
    def kept(self) -> Tensor:
        """What `start` gives, computed once."""
        return self.start()

    def naive(self) -> None:
        """A step as the published loops do it."""
        with naively():
            prompts = self.whole
            self._step(self.start(), prompts, Chunks(texts=self.rows(prompts)))

    @functools.cached_property
    def whole(self) -> Texts:
        """The token ids, which the published loops too make once."""
        with naively():
            return self.encode()

    def evaluate(self) -> Callable[[], object]:
        """Scores a batch of decoded images, the texts being there unless each image has its own."""
        prompts, shared = self.evaluation_texts()
        given = HeadContext(self.clip.logit_scale.exp(), prompts.references)

        @torch.no_grad()
        def once() -> None:
            x = self.model.prefix(self.clip.image, self.normalised(self.pixels[: self.scored]))
            image = image_features(self.model, x)
            own = text_features(self.model, prompts, image) if shared is None else shared
            self.model.output(image, own, given).logits.argmax(-1)

        return once

    @torch.no_grad()
    def evaluation_texts(self) -> tuple[Texts, Tensor | None]:
        """The texts of an evaluation, and their features unless each image has its own."""
        prompts = texts(self.model, self.classes, training=False, cache=self.cache)
        own = self.method.text_per_image
        return prompts, None if own else text_features(self.model, prompts)

    @torch.no_grad()
    def bare(self, images: Tensor) -> None:
        """The image tower alone, on images that are in memory as it takes them."""
        self.clip.image(images)

    def flops(self, prompts: Texts, parts: str) -> float:
        """Operations of a step with these texts, which pass `whole`, in `halves`, or in halves
        whose blocks are `recomputed`.

        They are counted with few images and few texts of each length; the rest is proportional.
        """
        own, per_class = self.method.text_per_image, prompts.per_class
        batch = self.method.batch_size
        images = 1 if own else min(batch, 2)

        def counted(texts: Texts, length: int, classes: int, images: int = images) -> int:
            """Of so many classes with the texts of one that has this length."""
            one = int((texts.lengths == length).nonzero()[0]) // per_class
            few = texts.of_classes(torch.full((classes,), one, device=texts.ids.device))
            at_once = classes * per_class
            chunks = Chunks(0, at_once if parts == "whole" else at_once // 2, parts == "recomputed")
            return operations(lambda: self._step(self.start(images), few, chunks, first=True))

        if self.model.cut(self.clip.text) is None:
            return operations(lambda: self._step(self.start(), prompts, Chunks()))
        plain, any_length = replace(prompts, shared=0), int(prompts.lengths[0])
        two, four = (counted(plain, any_length, classes) for classes in (2, 4))
        of_images, total = 2 * two - four, 0.0
        if images > 1:
            total += (two - counted(plain, any_length, 2, 1)) * (batch - images)
        for rows, length, _ in prompts.groups(batch if own else 1):
            two, four = (counted(prompts, length, classes) for classes in (2, 4))
            shared, each = 2 * two - four - of_images, (four - two) / 2 / per_class
            total += shared + len(rows) * each
        return (of_images + total) * (batch if own else 1)

    def _step(
        self, x: Tensor, prompts: Texts, chunks: Chunks, first: bool = False,
        recorder: Recorder | None = None,
    ) -> None:  # fmt: skip
        """first: whether all images are of the first class."""
        labels = self.labels[: len(x)] * (not first)
        batch = Batch(self.model, x, prompts, labels, (1, self.number), chunks)
        room = AdaptiveChunks(chunks)
        TrainingStep(batch, self.optimiser, 1e-5, 0, 10**6, room, recorder).taken()
        self.number += 1
