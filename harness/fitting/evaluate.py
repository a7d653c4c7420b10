"""A fitted model over a split: predictions and accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from harness.fitting.inputs import Images, image_features
from harness.fitting.model import Model
from harness.fitting.texts import text_features, texts
from harness.method import Classes, HarnessError, HeadContext, Method, Output

BEST = 5  # classes of each image whose probabilities are kept


@dataclass(frozen=True)
class Scores:
    """What a model says of N images, in the split's order, beside their true labels [N].

    predictions: the most probable class [N]; best: the classes of the highest probabilities
    [N, min(BEST, C)], with these; true: log-probability of the true class [N]. Probabilities are
    the softmax of the method's logits.
    """

    predictions: Tensor
    labels: Tensor
    best: Tensor
    probabilities: Tensor
    true: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Scores":
        """The first of equal logits [N, C] wins. All of it stays on their device."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        likely = logits.log_softmax(-1)
        best = logits.sort(descending=True, stable=True).indices[:, :BEST]
        true = likely.gather(1, labels[:, None])[:, 0]
        return cls(logits.argmax(-1), labels, best, likely.gather(1, best).exp(), true)

    @classmethod
    def join(cls, batches: "Sequence[Scores]") -> "Scores":
        """Of all batches, one after the other, on the CPU."""
        parts = ([getattr(each, f.name) for each in batches] for f in fields(cls))
        return cls(*(torch.cat(part).cpu() for part in parts))

    def kept(self) -> dict[str, Tensor]:
        """What lies beside a record: 38 bytes an image at most."""
        return {
            "class": self.predictions.to(torch.int32),
            "best": self.best.to(torch.int32),
            "probabilities": self.probabilities.to(torch.float16),
            "true": self.true.to(torch.float32),
        }

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
        clip.logit_scale.exp(), prompts.references, fitted=fitted, transferred=transferred,
        numbers=model.classes.numbers(classes),
    )  # fmt: skip
    frozen = torch.cat([*images.frozen().test()]) if method.frozen_when_scored else None
    batches, wrong, labels = list[Scores](), list[Tensor](), images.labels
    for x in images.test():
        done = sum(len(each.labels) for each in batches)
        seen = None if frozen is None else frozen[done : done + len(x)]
        image = image_features(model, x)
        own = text_features(model, prompts, image) if text is None else text
        output = model.output(image, own, replace(given, image=seen))
        wrong.append(_wrong(output))
        logits = output.logits[:, columns]
        batches.append(Scores.of(logits, labels[done : done + len(logits)]))
    _check_numbers(model, images, torch.stack(wrong).any(0).tolist())
    return Scores.join(batches)


def _wrong(output: Output) -> Tensor:
    """What argmax would turn into the first class without a word [3]: a logit that is not finite,
    image and text features that are zero and so have no direction. On the device: a batch waits for
    no answer."""
    zero = [(each == 0).all(-1).any() for each in (output.image, output.text)]
    return torch.stack([~output.logits.isfinite().all(), *zero])


def _check_numbers(model: Model, images: Images, wrong: Sequence[bool]) -> None:
    """Raises HarnessError for what `_wrong` found in a batch."""
    scored = f"{model.method.name} on {images.split.classes.dataset} with {model.clip.name}"
    logits, *features = wrong
    if logits:
        raise HarnessError(f"{scored}: logits are not finite, so that nothing can be predicted.")
    for what, zero in zip(("image", "text"), features, strict=True):
        if zero:
            raise HarnessError(f"{scored}: {what} features are zero, so that they have no cosine.")


class _Frozen(Method):
    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(classes.template)


def zero_shot(images: Images) -> Scores:
    """The same images on the frozen backbone with the dataset's template: what a fit must beat."""
    frozen = Model(images.model.clip, _Frozen(), images.split.classes, seed=0)
    return evaluate(frozen, replace(images, model=frozen))
