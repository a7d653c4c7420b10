"""Probabilities that mean what they say: one temperature, fitted on validation images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import config, registry
from harness.errors import HarnessError
from harness.fitting.fitted import FittedModel
from harness.images.pixels import normalise
from harness.leaderboards.metrics import calibration_error
from harness.runs.plan import Request, plan
from harness.runs.prepared import Part, PreparedRun

LEAST, MOST = 1e-2, 1e2  # of the temperature


@dataclass(frozen=True)
class Calibration:
    """A temperature that logits are divided by, and what it does to N validation images.

    before, after: expected calibration error without and with it, fractions. Each half of the
    images is judged with the temperature of the other half, so that `after` is no self-praise.
    """

    temperature: float
    images: int
    before: float
    after: float

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Calibration":
        """Of logits [N, C] and labels [N].

        Raises:
            HarnessError: no image is named wrongly.
        """
        correct = int((logits.argmax(-1) == labels).sum())
        if correct == len(labels) or len(labels) < 2:
            raise HarnessError(
                f"{correct} of {len(labels)} validation images are named correctly. A temperature "
                "is learned from mistakes: there are none to learn from, and the probabilities "
                "would only be driven to 1. Leave --calibrate out."
            )
        logits = logits.double()
        halves = [torch.arange(len(labels)) % 2 == half for half in (0, 1)]
        scaled = logits.clone()
        for judged, fitted in (halves, halves[::-1]):
            scaled[judged] /= temperature(logits[fitted], labels[fitted])
        return cls(temperature(logits, labels), len(labels), _error(logits, labels),
                   _error(scaled, labels))  # fmt: skip


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [0.01, 100] for which softmax(logits / T) gives the labels the highest likelihood.

    Source: Guo et al., On Calibration of Modern Neural Networks, section 4.2
        (https://arxiv.org/abs/1706.04599).
    """
    low, high = np.log(LEAST), np.log(MOST)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(60):  # golden section: the likelihood has one maximum in 1/T
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _loss(logits, labels, left) <= _loss(logits, labels, right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def _loss(logits: Tensor, labels: Tensor, log_temperature: float) -> float:
    return float(F.cross_entropy(logits / np.exp(log_temperature), labels))


def _error(logits: Tensor, labels: Tensor) -> float:
    confidence, predicted = logits.softmax(-1).max(-1)
    return calibration_error(confidence.numpy(), (predicted == labels).numpy())


def calibrated(
    fitted: FittedModel, dataset: str | None, root: Path | None, plugins: registry.Registry
) -> Calibration:
    """The temperature of a fit, from the validation images of the classes that it was fitted on; of
    a method that chose its settings on them, from others.

    Args:
        dataset: what it was fitted on, as `run` takes it; None: by the name in the fit.

    Raises:
        HarnessError: the dataset is not there, has no validation images, or other training images.
    """
    clip = fitted.model.clip
    prepared = prepared_of(fitted, dataset, root, plugins)
    if prepared.train.fingerprint != fitted.run["fingerprints"]["train"]:
        raise HarnessError(
            f"{dataset or fitted.run['dataset']} has other training images, class names or "
            "templates than this fit had, so that its validation images may be among those that it "
            "was fitted on. Calibrate with the data that it was fitted on."
        )
    part: Part = "further" if fitted.model.method.uses_val else "validation"
    split = prepared.context.split(prepared.run, prepared.fit.dataset, prepared.fit.subset, part)
    logits = [
        fitted.logits(normalise(pixels, clip.pixels.mean, clip.pixels.std)).float().cpu()
        for pixels in prepared.source(split).test(split, clip.pixels)
    ]
    labels = torch.tensor([item.label for item in split.items])
    return Calibration.of(torch.cat(logits), labels)


def prepared_of(
    fitted: FittedModel, dataset: str | None, root: Path | None, plugins: registry.Registry
) -> PreparedRun:
    """A run of zero-shot on the images of a fit, under its templates where the dataset has none.

    Raises:
        HarnessError: the dataset is not there.
    """
    run, name = fitted.run, dataset or fitted.run["dataset"]
    given = run.get("templates") or fitted.model.classes.template.split("\n")
    templates = given if ":" in name else None
    bindings = config.of_own_images(templates, None)
    # the list of a fit that left some out is found again, and every other list is as it was
    bindings.append(config.bind("engine.on_bad_image", "skip", "--on-bad-image"))
    request = Request(
        methods="zero_shot", tasks=run["task"], datasets=name,
        backbone=run["backbone"], shots=[run["shots"]], seeds=[run["seed"]], root=root,
        device=fitted.model.clip.device.type, bindings=bindings,
    )  # fmt: skip
    return plan(request, plugins)[0]
