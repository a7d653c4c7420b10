"""Which methods of a table are told apart, as the report shows it."""

from collections.abc import Sequence
from typing import Any

from harness.certainty.intervals import Certainty


def _why(certain: Certainty) -> str:
    if certain.sample is None:
        return certain.sampled.why
    if len(certain.sample.labels) < 2:
        return "only one method has intervals"
    return "all images of some dataset are one unit"


def places(labels: Sequence[str], certain: Certainty) -> dict[str, Any]:
    """Between which places each method stands, or why that is not known."""
    if not certain.ranks:
        return {"why": _why(certain)}
    rows = [{"label": label, "first": certain.ranks[label][0], "last": certain.ranks[label][1]}
            for label in labels if label in certain.ranks]  # fmt: skip
    return {"rows": rows, "number": len(rows)}


def pairs(labels: Sequence[str], certain: Certainty) -> dict[str, Any]:
    """Of every pair whether it is told apart, or why that is not known; in the order of labels.

    marks: [M][M] 1 where the row is better, -1 where it is worse, else 0, and None on the diagonal;
    p: [M][<M] adjusted.
    """
    sample, found = certain.sample, certain.pairs
    if sample is None or found is None:
        return {"why": _why(certain)}
    order = [sample.labels.index(label) for label in labels if label in sample.labels]
    beats = found.beats()
    p = {}
    for a, b, value in zip(found.first, found.second, found.adjusted, strict=True):
        p[int(a), int(b)] = p[int(b), int(a)] = float(value)
    return {
        "labels": [sample.labels[i] for i in order],
        "values": [float(sample.values[i]) for i in order],
        "marks": [[int(beats[i, j]) - int(beats[j, i]) if i != j else None for j in order]
                  for i in order],
        "p": [[p[i, j] for j in order[:place]] for place, i in enumerate(order)],
        "told": int(found.told_apart.sum()), "number": len(found.first), "needed": found.needed,
    }  # fmt: skip
