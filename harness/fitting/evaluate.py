"""A fitted model over a split: predictions and accuracy."""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.fitting.inputs import Images, image_features
from harness.fitting.model import Model
from harness.fitting.texts import text_features, texts
from harness.method import Classes, HarnessError, HeadContext, Method, Output


@dataclass(frozen=True)
class Scores:
    """Predicted and true labels [N], in the split's order."""

    predictions: Tensor
    labels: Tensor

    @property
    def correct(self) -> int:
        return int((self.predictions == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Top-1 over images (micro), a fraction."""
        return self.correct / len(self.labels)


@torch.no_grad()
def evaluate(model: Model, images: Images) -> Scores:
    """Closed-set over the split's own class names; the first of equal logits wins.

    A method that knows only the fitted classes is asked for all of them; the split's count.
    """
    classes, method, clip = images.split.classes, model.method, model.clip
    columns: list[int] | slice = slice(None)
    if method.only_fitted_classes:
        columns = model.classes.numbers(classes) or []
        classes = model.classes
    prompts = texts(model, classes, training=False, cache=images.cache)
    text = None if method.text_per_image else text_features(model, prompts)
    fitted = classes.names == model.classes.names
    transferred = images.split.classes.dataset != model.classes.dataset
    given = HeadContext(
        clip.logit_scale.exp(), prompts.references, fitted=fitted, transferred=transferred
    )
    frozen = images.frozen().test() if method.frozen_images else itertools.repeat(None)
    predictions = []
    for x, seen in zip(images.test(), frozen, strict=False):
        image = image_features(model, x)
        own = text_features(model, prompts, image) if text is None else text
        output = model.output(image, own, replace(given, image=seen))
        _check_numbers(model, images, output)
        predictions.append(output.logits[:, columns].argmax(-1).cpu())
    return Scores(torch.cat(predictions), images.labels.cpu())


def _check_numbers(model: Model, images: Images, output: Output) -> None:
    """Raises HarnessError for what argmax would turn into the first class without a word: a logit
    that is not finite, and features that are zero and so have no direction."""
    scored = f"{model.method.name} on {images.split.classes.dataset} with {model.clip.name}"
    if not output.logits.isfinite().all():
        raise HarnessError(f"{scored}: logits are not finite, so that nothing can be predicted.")
    for what, features in (("image", output.image), ("text", output.text)):
        if (features == 0).all(-1).any():
            raise HarnessError(f"{scored}: {what} features are zero, so that they have no cosine.")


class _Frozen(Method):
    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(classes.template)


def zero_shot(images: Images) -> Scores:
    """The same images on the frozen backbone with the dataset's template: what a fit must beat."""
    frozen = Model(images.model.clip, _Frozen(), images.split.classes, seed=0)
    return evaluate(frozen, replace(images, model=frozen))
