"""A fitted model over a split: predictions and accuracy."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.graft import Model
from harness.inputs import Images, Texts, texts
from harness.method import Classes, Method, Rows


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
    """Closed-set over the split's own class names; the first of equal logits wins."""
    prompts = texts(model, images.split.classes, training=False)
    features = text_features(model, prompts)
    predictions = []
    for x in images.test():
        rows = Rows(torch.arange(len(x), device=x.device), len(x), False, ())
        image = model.finish(model.clip.image, x, x, rows)
        predictions.append(model.logits(image, features).argmax(-1).cpu())
    labels = torch.tensor([item.label for item in images.split.items])
    return Scores(torch.cat(predictions), labels)


@torch.no_grad()
def text_features(model: Model, prompts: Texts) -> Tensor:
    """Features of every prompt [C, T, E], before normalisation."""
    count = len(prompts.ids)
    rows = Rows(torch.arange(count, device=prompts.ids.device), count, False, (), ids=prompts.ids)
    features = model.finish(model.clip.text, prompts.x, prompts.ids, rows)
    return features.unflatten(0, (-1, prompts.per_class))


class _Frozen(Method):
    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(classes.template)


def zero_shot(images: Images) -> Scores:
    """The same images on the frozen backbone with the dataset's template: what a fit must beat."""
    frozen = Model(images.model.clip, _Frozen(), images.split.classes, seed=0)
    return evaluate(frozen, replace(images, model=frozen))
