"""What predictions are worth beside top-1: top-5, per-class accuracy, calibration, likelihood.

It never imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.errors import HarnessError, unknown
from harness.records import predictions
from harness.records.predictions import Missing, Predicted
from harness.records.record import Record
from harness.records.tables import decimal, percent

BINS = 15
TOP = 5
NO_PROBABILITIES = "older versions kept no probabilities"


def top5(found: Predicted) -> float:
    """Fraction of the images whose true class is one of the five most probable.

    The first of equal logits wins. It is 1 where there are fewer than six classes.

    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, section 4.1
        (https://arxiv.org/abs/1409.0575).
    """
    if found.best is None:
        raise Missing(NO_PROBABILITIES)
    return float((found.best[:, :TOP] == found.labels[:, None]).any(1).mean())


def per_class(found: Predicted) -> float:
    """Mean over classes of the accuracy on a class's images; classes without images do not count.

    Source: Kornblith et al., Do Better ImageNet Models Transfer Better?, the "mean per-class"
        accuracy of table 1 (https://arxiv.org/abs/1805.08974).
    """
    totals = np.bincount(found.labels)
    right = np.bincount(found.labels[found.classes == found.labels], minlength=len(totals))
    return float((right[totals > 0] / totals[totals > 0]).mean())


def ece(found: Predicted) -> float:
    """Expected calibration error: sum over bins B of |B| / N |acc(B) - conf(B)|.

    conf is the probability of the predicted class, at the temperature that the run has. The 15 bins
    are (k/15, (k + 1)/15]. Probabilities are kept as float16: one above 0.99975 counts as 1.

    Source: Guo et al., On Calibration of Modern Neural Networks, equation 3
        (https://arxiv.org/abs/1706.04599).
    """
    if found.probabilities is None:
        raise Missing(NO_PROBABILITIES)
    # fifteen times a float16 is exact in float64, and so is the bin
    confidence = found.probabilities[:, 0].astype(np.float64)
    return calibration_error(confidence, found.classes == found.labels)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """`ece` of the predicted classes' probabilities [N] and whether they were right [N]."""
    bins = np.maximum(np.ceil(confidence * BINS).astype(np.int64) - 1, 0)
    gaps = np.bincount(bins, weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def nll(found: Predicted) -> float:
    """Negative log-likelihood: mean of -log p(true class), in nats.

    Source: Guo et al., On Calibration of Modern Neural Networks, section 2
        (https://arxiv.org/abs/1706.04599).
    """
    if found.true is None:
        raise Missing(NO_PROBABILITIES)
    return float(-found.true.astype(np.float64).mean())


@dataclass(frozen=True)
class Metric:
    """A metric: its title, its value, how a mean and a deviation are shown, and what it is."""

    title: str
    of: Callable[[Predicted], float]
    shown: Callable[[float | None, float | None], str]
    what: str


METRICS = {
    "top5": Metric("top-5", top5, percent, "Top-5: the true class is among the five most probable, "
                   "in percent."),
    "per-class": Metric("per-class", per_class, percent, "Per-class: mean of the classes' "
                        "accuracies, in percent."),
    "ece": Metric("ECE", ece, percent, f"ECE: expected calibration error, {BINS} equal bins of the "
                  "predicted class's probability, in percent; lower is better."),
    "nll": Metric("NLL", nll, decimal, "NLL: mean of -log p(true class), in nats; lower is "
                  "better."),
}  # fmt: skip


def chosen(names: str) -> list[str]:
    """The metrics of a comma list, in their own order; all of them for an empty list.

    Raises:
        HarnessError: one is unknown.
    """
    known = {_plain(name): name for name in METRICS}
    parts = [part.strip() for part in names.split(",") if part.strip()]
    for part in parts:
        if _plain(part) not in known:
            raise HarnessError(f"--metrics: {unknown('metric', part, METRICS)}")
    asked = {known[_plain(part)] for part in parts} or {*METRICS}
    return [name for name in METRICS if name in asked]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class Measured:
    """The metrics of one run in one evaluation.

    values: by metric; why: the reasons of those that are missing; few: whether there are so few
    classes that top-5 is always 1.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)
    few: bool = False


def measured(record: Record, evaluation: str, names: Sequence[str]) -> Measured:
    """Some metrics of a run; what its predictions do not tell is missing, with the reason."""
    try:
        found = predictions.read(record, evaluation)
    except Missing as reason:
        return Measured(why=dict.fromkeys(names, str(reason)))
    values, why = dict[str, float](), dict[str, str]()
    for name in names:
        try:
            values[name] = METRICS[name].of(found)
        except Missing as reason:
            why[name] = str(reason)
    few = found.split is not None and len(found.split.names) <= TOP
    return Measured(values, why, few)
