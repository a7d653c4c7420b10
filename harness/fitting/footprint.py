"""What a training step holds in memory, counted as it is taken, without computing it.

The towers and all that is computed with them are PyTorch's fake tensors, which have shapes and
storages and no numbers: neither weights nor a card are needed. The engine's own step runs on them,
twice, and every storage that an operation makes is counted until it is let go. Not counted are
what a kernel takes for itself, what an allocator loses between tensors, and what PyTorch and CUDA
take whatever is computed.
"""

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from harness.dataset import Classes
from harness.fitting.memory import choose
from harness.fitting.model import Model
from harness.fitting.step import AdaptiveChunks, Batch, Chunks, TrainingStep
from harness.fitting.storages import Storages
from harness.fitting.texts import CHUNK_TEXTS, Texts, texts
from harness.method import Method
from harness.randomness import generator
from harness.towers.openclip import Clip, cast_once

STEPS = 2  # the optimiser's state is there from the second on
PARTS = 2  # micro-batches of a kind that are counted: all others are alike


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step at its fullest moment, by what they hold.

    weights: of the frozen towers, and their copies in bfloat16; trained: parameters and what else
    the method keeps; gradients: of the parameters; optimiser: its state; activations: what the
    graph keeps for the backward pass; workspace: inputs, features, and what passes between
    operations. chunks: how much of the step is held at once.
    """

    weights: int
    trained: int
    gradients: int
    optimiser: int
    activations: int
    workspace: int
    chunks: Chunks

    @property
    def resident(self) -> int:
        """What is there between steps, too."""
        return self.weights + self.trained + self.optimiser

    @property
    def peak(self) -> int:
        return self.resident + self.gradients + self.activations + self.workspace


@dataclass(frozen=True)
class Undrawn:
    """What edits draw at random, without numbers; as `fitting.recorded.Draws`.

    kept: by name, what stays there for the next step, because a card may record it; or None.
    """

    mode: FakeTensorMode
    kept: dict[Any, Tensor] | None

    def get(self, name: tuple[Any, tuple[str, tuple[int, ...]]], *_: object) -> Tensor:
        if self.kept is not None and name in self.kept:
            return self.kept[name]
        with self.mode:
            made = torch.empty(name[1][1])
        if self.kept is not None:
            self.kept[name] = made
        return made


def without_numbers(clip: Clip, kind: str = "") -> Clip:
    """A copy of a backbone of fake tensors, or itself if it is one; for a plan on another kind of
    device."""
    if not isinstance(clip.logit_scale, FakeTensor):
        with FakeCopyMode(FakeTensorMode(allow_non_fake_inputs=True)):
            clip = copy.deepcopy(clip)
    clip.planned_for = kind
    return clip


def footprint(
    clip: Clip, method: Method, classes: Classes, images: int, chunks: Chunks | int
) -> Footprint:
    """Of a step on so many images, in some micro-batches or in those for so many bytes; in the
    precision of the surrounding autocast.

    clip: of fake tensors.
    """
    storages = Storages()
    for each in (*clip.parameters(), *clip.buffers()):
        storages.count(each, "weights")
    model = _model(clip, method, classes)  # as in a run, of whole matrices
    with _lower(clip, storages):
        prompts = _texts(clip, method, classes)
        if isinstance(chunks, int):
            chunks = choose(model, images, prompts, chunks)
        few, some = _few(model, prompts, images, chunks)
    part, texts_of_part = model, prompts
    if few is not None:
        part = _model(clip, method, _chosen(classes, few))
        texts_of_part = prompts.of_classes(torch.tensor(few))
    with _lower(clip, storages):
        found = _counted(storages, part, texts_of_part, some, chunks)
    held = _bytes(model.trained.state_dict().values())
    share = held / max(1, _bytes(part.trained.state_dict().values()))
    for kind in ("trained", "gradients", "optimiser"):  # a class may have parameters of its own
        found[kind] = round(found[kind] * share)
    found["workspace"] += (images - some) * _row(model, clip)
    found["workspace"] += sum(
        _bytes([each.x, *each.references.values()]) * sign
        for each, sign in ((prompts, 1), (texts_of_part, -1))
    )
    return Footprint(
        found["weights"], found["trained"], found["gradients"], found["optimiser"],
        found["activations"], found["workspace"], chunks,
    )  # fmt: skip


def _counted(
    storages: Storages, model: Model, prompts: Texts, images: int, chunks: Chunks
) -> Counter[str]:
    """The bytes of the fullest moment of the last step, by kind."""
    clip, method = model.clip, model.method
    for each in model.trained.state_dict().values():
        storages.count(each, "trained")
    for each in (prompts.x, *prompts.references.values()):
        if isinstance(each, FakeTensor):
            storages.count(each)
    for each in model.parameters():
        each.register_post_accumulate_grad_hook(lambda p: storages.count(p.grad, "gradients"))
    optimiser = model.optimiser()
    labels = torch.arange(images) % len(model.classes.names)
    draws = Undrawn(_mode(clip), {} if clip.kind == "cuda" and chunks == Chunks() else None)
    with storages, saved_tensors_hooks(storages.saved, lambda tensor: tensor):
        for number in range(STEPS):
            storages.restart()
            pixels = _images(clip, images)
            frozen = clip.image(pixels).detach() if method.frozen_images else None
            x = model.prefix(clip.image, pixels)
            batch = Batch(model, x, prompts, labels, (1, number), chunks, frozen, draws=draws)
            del pixels, x
            step = TrainingStep(batch, optimiser, 0.0, number, STEPS, AdaptiveChunks(chunks))
            step.taken()
            for state in optimiser.state.values():
                for each in state.values():
                    if isinstance(each, FakeTensor):
                        storages.count(each, "optimiser")
            del batch, step, frozen
    return storages.peak


@contextlib.contextmanager
def _lower(clip: Clip, storages: Storages) -> Iterator[None]:
    """The frozen matrices in bfloat16, if the surrounding autocast asks for it, as a run does it:
    whole ones stay beside them."""
    if not torch.is_autocast_enabled(clip.device.type):
        yield
        return
    with contextlib.ExitStack() as ways:
        storages.made = "weights"
        with storages:
            ways.enter_context(cast_once(clip, torch.get_autocast_dtype(clip.device.type)))
        storages.made = "workspace"
        yield


def _images(clip: Clip, number: int) -> Tensor:
    with _mode(clip):
        return torch.empty(number, *clip.pixels.shape, dtype=clip.logit_scale.dtype)


def _row(model: Model, clip: Clip) -> int:
    """Bytes of what enters the changed part of the image tower, of one image."""
    return _bytes([model.prefix(clip.image, _images(clip, 1))])


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({id(each.untyped_storage()): each.nbytes for each in tensors}.values())


def _mode(clip: Clip) -> FakeTensorMode:
    assert isinstance(clip.logit_scale, FakeTensor)
    return clip.logit_scale.fake_mode


def _model(clip: Clip, method: Method, classes: Classes) -> Model:
    """The method on the backbone, its own parameters without numbers, too."""
    model, made = Model(clip, method, classes, seed=1), dict[int, Tensor]()
    for module in model.trained.modules():
        for kept in (module._parameters, module._buffers):
            for name, each in kept.items():
                if each is not None and not isinstance(each, FakeTensor):
                    made.setdefault(id(each), _mode(clip).from_tensor(each))
                    kept[name] = made[id(each)]  # type: ignore[assignment]
    return model


def _texts(clip: Clip, method: Method, classes: Classes) -> Texts:
    """The texts as they enter the text tower; which positions they share is seen in numbers, so
    that the tower begins with random ones meanwhile."""
    begins = [
        (module, name, each)
        for prefix, module in clip.text.text.named_modules()
        for name, each in module.named_parameters(recurse=False)
        if f"{prefix}.{name}".lstrip(".").startswith(clip.text.stem_names)
    ]
    try:
        for module, name, each in begins:
            real = torch.rand(each.shape, dtype=each.dtype, generator=generator("beginnings"))
            module._parameters[name] = nn.Parameter(real, requires_grad=False)
        prompts = texts(Model(clip, method, classes, seed=1), classes, training=True)
    finally:
        for module, name, each in begins:
            module._parameters[name] = each
    mode = _mode(clip)
    x = mode.from_tensor(prompts.x) if prompts.x.is_floating_point() else prompts.x
    references = {name: mode.from_tensor(each) for name, each in prompts.references.items()}
    return replace(prompts, x=x, references=references)


def _few(model: Model, prompts: Texts, images: int, chunks: Chunks) -> tuple[list[int] | None, int]:
    """Classes and images of the largest micro-batches, which are all that must be looked at; None
    where there are no more classes."""
    own, rows = model.method.text_per_image, len(prompts.ids)
    if rows != len(model.classes.names) * prompts.per_class or _draws_texts(model.method):
        return None, images
    some = min(images, PARTS * chunks.images) if chunks.images and not own else images
    most = chunks.texts or (CHUNK_TEXTS if own else rows)
    if own:
        some = min(images, PARTS * math.ceil(most / rows))
    parts = sorted(
        prompts.micro_batches(most, some if own else 1),
        key=lambda each: len(each.numbers) * each.length, reverse=True,
    )  # fmt: skip
    if len(parts) <= PARTS:
        return None, some
    numbers = torch.cat([each.numbers for each in parts[:PARTS]]) % rows
    return (numbers // prompts.per_class).unique().tolist(), some


def _draws_texts(method: Method) -> bool:
    return type(method).texts_of_step is not Method.texts_of_step


def _chosen(classes: Classes, numbers: Sequence[int]) -> Classes:
    """Some of the classes."""
    parts: dict[str, Any] = {
        part: tuple(getattr(classes, part)[i] for i in numbers)
        for part in ("names", "ids", "descriptions")
        if getattr(classes, part)
    }
    return replace(classes, **parts)
