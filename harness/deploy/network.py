"""A fitted model as one PyTorch module that can be traced with any number of images."""

import builtins
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.fitting.fitted import FittedModel
from harness.fitting.inputs import image_features
from harness.fitting.model import Model
from harness.fitting.texts import MicroBatch
from harness.method import HeadContext


class Network(nn.Module):
    """What the image tower takes [B, 3, S, S] -> logits [B, C] over the fitted classes.

    Texts are encoded once and kept as features, unless each image has texts of its own: then the
    text tower is part of it.
    """

    def __init__(self, fitted: FittedModel) -> None:
        super().__init__()
        self.scale: Tensor
        self.features: Tensor | None
        self.ids: Tensor
        self.entered: Tensor
        model = fitted.model
        self._model = (model,)  # in a tuple: what is not needed is no part of it
        self.image, self.trained = model.clip.image, model.trained
        prompts, text = fitted.encoded(model.classes)
        # no shared beginnings: each image's texts pass by themselves
        self._prompts = replace(prompts, shared=0)
        self.register_buffer("scale", model.clip.logit_scale.exp())
        self.register_buffer("features", text)
        for name, features in prompts.references.items():
            self.register_buffer(f"reference_{name}", features)
        if text is None:
            self.text = model.clip.text
            self.register_buffer("ids", prompts.ids)
            self.register_buffer("entered", prompts.x)

    def forward(self, pixels: Tensor) -> Tensor:
        (model,) = self._model
        image = image_features(model, model.prefix(self.image, pixels))
        references = {name: getattr(self, f"reference_{name}") for name in self._prompts.references}
        seen = self.image(pixels) if model.method.frozen_when_scored else None
        text = self._texts(model, image) if self.features is None else self.features
        return model.output(image, text, HeadContext(self.scale, references, seen)).logits

    def _texts(self, model: Model, image: Tensor) -> Tensor:
        """Features [B, C, T, E] of the texts of each image [B, E]."""
        count, images = self.ids.shape[0], image.shape[0]
        prompts = replace(self._prompts, ids=self.ids, x=self.entered)
        numbers = torch.arange(images * count, device=image.device)
        x, ids, rows = prompts.rows(MicroBatch(numbers, self.ids.shape[1], 1), image)
        features = model.rest(self.text, x, ids, rows)  # [B * C * T, E]
        return features.reshape(images, -1, prompts.per_class, features.shape[-1])


@contextlib.contextmanager
def open_lengths(network: Network) -> Iterator[None]:
    """Meanwhile `len(tensor)` is its traced size in this harness and in the modules that define
    what a method inserts. Python's own gives a plain number, which would fix the number of images
    that an exported model takes."""
    (model,) = network._model
    kinds = {kind for each in (*model.trained.modules(), model.method) for kind in type(each).mro()}
    names = {kind.__module__ for kind in kinds if not kind.__module__.startswith("torch.")}
    names |= {name for name in sys.modules if name.startswith("harness.")}
    found = [sys.modules[name] for name in names - {"builtins"} if name in sys.modules]
    modules = [module for module in found if "len" not in vars(module)]
    try:
        for module in modules:
            vars(module)["len"] = _length
        yield
    finally:
        for module in modules:
            del vars(module)["len"]


def _length(thing: Any) -> Any:
    return thing.shape[0] if isinstance(thing, Tensor) else builtins.len(thing)


def traced(network: Network, pixels: Tensor) -> torch.export.ExportedProgram:
    """The network as torch.export writes it down, for any number of images.

    Args:
        pixels: at least two images; a size of one would be taken for a constant.
    """
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), open_lengths(network):
        made = torch.export.export(network, (pixels,), dynamic_shapes=({0: batch},), strict=False)
    for module in made.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:  # where on this machine the code of each step lies
                node.meta.pop("stack_trace", None)
    return made
