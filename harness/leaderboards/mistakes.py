"""What a run got wrong: classes, confused pairs and images of an evaluation, from its predictions.

It never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.leaderboards.metrics import NO_PROBABILITIES
from harness.records import predictions
from harness.records.predictions import Array, Missing, Predicted
from harness.records.record import Record


@dataclass(frozen=True)
class OfClass:
    """The images of a class: how many, how many of them right, and what the others were most often
    taken for (a label) and how often.

    name: None where it was not kept. accuracy: None for a class without images.
    """

    label: int
    name: str | None
    images: int
    right: int
    accuracy: float | None
    taken_for: int | None
    times: int


@dataclass(frozen=True)
class Pair:
    """How many images of a class were taken for another one; share: of the true class's images."""

    true: int
    predicted: int
    count: int
    share: float


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class than its own.

    path: in the dataset, None where it was not kept; number: its place in the list of images, from
    0. confidence: the probability of the predicted class; true_probability: that of the true one.
    """

    number: int
    path: str | None
    true: int
    predicted: int
    confidence: float | None
    true_probability: float | None


@dataclass(frozen=True, eq=False)
class Mistakes:
    """What a run got wrong in one evaluation.

    names: of the classes, or None; units: how many independent things the images show, or None
    where that was not kept.
    """

    evaluation: str
    found: Predicted

    @property
    def images(self) -> int:
        return len(self.found.labels)

    @property
    def right(self) -> int:
        return int((self.found.labels == self.found.classes).sum())

    @property
    def names(self) -> Sequence[str] | None:
        return None if self.found.split is None else self.found.split.names

    @property
    def units(self) -> int | None:
        split = self.found.split
        if split is None:
            return None
        return self.images if split.units is None else len(np.unique(split.units))

    @property
    def missing(self) -> list[str]:
        """Why something is not shown."""
        reasons = []
        if self.found.split is None:
            reasons.append("no names of classes and images: the list of images was not kept")
        if self.found.probabilities is None:
            reasons.append(f"no confidence: {NO_PROBABILITIES}")
        return reasons

    def classes(self) -> list[OfClass]:
        """All classes, the lowest accuracy first, of equal ones that with more images; those
        without images last."""
        labels, number = self.found.labels, self._number()
        totals = np.bincount(labels, minlength=number)
        right = np.bincount(labels[labels == self.found.classes], minlength=number)
        taken = dict[int, Pair]()
        for pair in self.pairs():
            taken.setdefault(pair.true, pair)
        accuracy = np.where(totals > 0, right / np.maximum(totals, 1), np.inf)
        return [
            OfClass(
                label=label,
                name=None if self.names is None else self.names[label],
                images=int(totals[label]),
                right=int(right[label]),
                accuracy=float(accuracy[label]) if totals[label] else None,
                taken_for=taken[label].predicted if label in taken else None,
                times=taken[label].count if label in taken else 0,
            )
            for label in map(int, np.lexsort((-totals, accuracy)))
        ]

    def pairs(self) -> list[Pair]:
        """All pairs of a true and a predicted class, the most frequent first; of equally frequent
        ones the larger share, then in the order of the classes."""
        labels, number = self.found.labels.astype(np.int64), self._number()
        wrong = labels != self.found.classes
        codes, counts = np.unique(
            labels[wrong] * number + self.found.classes[wrong], return_counts=True
        )
        true, predicted = np.divmod(codes, number)
        shares = counts / np.bincount(labels, minlength=number)[true]
        order = np.lexsort((-shares, -counts))
        return [
            Pair(*values)
            for values in zip(*(each[order].tolist() for each in (true, predicted, counts, shares)),
                              strict=True)
        ]  # fmt: skip

    def mistakes(self, most: int | None = None) -> list[Mistake]:
        """The images that are wrong, at most so many: the highest probability first, of equal ones
        that with the lower probability of the true class, then in the order of the list."""
        found = self.found
        wrong = np.flatnonzero(found.labels != found.classes)
        confidence = None if found.probabilities is None else found.probabilities[wrong, 0]
        true = None if found.true is None else found.true[wrong]
        keys = [each for each in (true, _negative(confidence)) if each is not None]
        order = (np.lexsort(keys) if keys else np.arange(len(wrong)))[:most]
        return [
            Mistake(
                number=int(wrong[i]),
                path=None if found.split is None else found.split.paths[wrong[i]],
                true=int(found.labels[wrong[i]]),
                predicted=int(found.classes[wrong[i]]),
                confidence=None if confidence is None else float(confidence[i]),
                true_probability=None if true is None else float(np.exp(np.float64(true[i]))),
            )
            for i in order
        ]

    def _number(self) -> int:
        """How many classes there are, as far as it is known."""
        if self.names is not None:
            return len(self.names)
        return int(max(self.found.labels.max(), self.found.classes.max())) + 1


def _negative(values: Array | None) -> Array | None:
    return None if values is None else -values


def of(record: Record, evaluation: str) -> Mistakes:
    """What a run got wrong in one evaluation.

    Raises:
        Missing: its predictions are not there, or are not those of the record.
    """
    return Mistakes(evaluation, predictions.read(record, evaluation))


def raw(record: Record, evaluations: Sequence[str]) -> dict[str, Any]:
    """All that is known, for JSON; labels are places in the list of class names."""
    about = {name: record.run[name] for name in
             ("method", "task", "dataset", "backbone", "shots", "seed")}  # fmt: skip
    shown: dict[str, Any] = {"key": record.key, "status": record.status, **about}
    shown |= {"reason": record.reason} if record.status != "done" else {}
    return shown | {"evaluations": {name: _raw(record, name) for name in evaluations}}


def _raw(record: Record, evaluation: str) -> dict[str, Any]:
    score = record.scores[evaluation]
    shown: dict[str, Any] = {
        "images": score["total"], "right": score["correct"], "accuracy": score["accuracy"],
    }  # fmt: skip
    try:
        found = of(record, evaluation)
    except Missing as reason:
        return shown | {"missing": [str(reason)]}
    return shown | {
        "units": found.units,
        "names": None if found.names is None else list(found.names),
        "classes": [vars(each) for each in found.classes()],
        "pairs": [vars(each) for each in found.pairs()],
        "mistakes": [vars(each) for each in found.mistakes()],
        "missing": found.missing,
    }
