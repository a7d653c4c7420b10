"""What is said of each dataset: its worst classes and sample mistakes of one method."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.certainty.intervals import ZERO_SHOT
from harness.leaderboards import mistakes
from harness.leaderboards.mistakes import Mistake, Mistakes
from harness.records.entry import Entry
from harness.records.predictions import Missing
from harness.records.summary import Row, Table

MOST_PICTURES = 60  # of a report
WORST, SAMPLES, FEWEST = 8, 8, 3  # classes and images of a section


@dataclass
class Pictures:
    """Pictures of images, as long as there are few."""

    picture: Callable[[str, str], str | None]
    number: int = 0

    def of(self, dataset: str, path: str | None) -> str | None:
        """A data: address, or nothing."""
        if path is None or self.number >= MOST_PICTURES:
            return None
        found = self.picture(dataset, path)
        self.number += found is not None
        return found


def sections(
    table: Table, ranking: Mapping[str, Sequence[str]], pictures: Pictures
) -> list[dict[str, Any]]:
    """One a dataset, in the order of the table: of the best method whose predictions were kept.

    Args:
        ranking: the labels of each dataset, the best first.
    """
    rows = {row.label: row for row in table.rows}
    most = max(FEWEST, min(SAMPLES, MOST_PICTURES // max(1, len(table.datasets))))
    found = []
    for name in table.datasets:
        ordered = [rows[label] for label in ranking[name]]
        found.append({"dataset": name, **_section(table, ordered, name, pictures, most)})
    return found


def _section(
    table: Table, rows: Sequence[Row], dataset: str, pictures: Pictures, most: int
) -> dict[str, Any]:
    reasons = list[str]()
    for row in rows:
        entries = [each for each in row.members if each.dataset == dataset and each.counts]
        if not entries:
            continue
        try:
            found = _read(table, entries)
        except Missing as reason:
            reasons.append(str(reason))
            continue
        zero = next((each for each in rows if each.label == ZERO_SHOT and each is not row), None)
        beside = _beside(table, zero, dataset) if zero is not None else {}
        result = _of(row.label, entries, found, beside)
        result["samples"] = [
            {**each, "picture": pictures.of(dataset, each["path"])}
            for each in result["samples"][:most]
        ]
        return result
    return {"why": reasons[0] if reasons else "no run of it has finished"}


Found = Mapping[str, Sequence[Mistakes]]  # by evaluation, one a seed


def _read(table: Table, entries: Sequence[Entry]) -> Found:
    """Of the seeds with the classes of the first."""
    names = [name for name in table.evaluations if name in entries[0].record.scores]
    found = {name: [mistakes.of(each.record, name) for each in entries] for name in names}
    return {name: [each for each in of if each.names == of[0].names] for name, of in found.items()}


Classes = dict[tuple[str, int, str], float]  # accuracies by evaluation, label and name


def _beside(table: Table, row: Row, dataset: str) -> Classes:
    """Zero-shot's, as far as they are known."""
    entries = [each for each in row.members if each.dataset == dataset and each.counts][:1]
    try:
        found = _read(table, entries) if entries else {}
    except Missing:
        return {}
    return {(name, each.label, each.name): each.accuracy for name, (first, *_) in found.items()
            for each in first.classes() if each.name is not None
            and each.accuracy is not None}  # fmt: skip


def _of(
    label: str,
    entries: Sequence[Entry],
    found: Found,
    beside: Classes,
) -> dict[str, Any]:
    first = [each[0] for each in found.values()]
    worst = [cell for name, each in found.items() for cell in _classes(name, each, beside)]
    worst.sort(key=lambda cell: (cell["accuracy"], -cell["images"]))
    named = all(each.names is not None for each in first)
    units = [each.units for each in first]
    result: dict[str, Any] = {
        "label": label, "seeds": min(map(len, found.values()), default=0), "seed": entries[0].seed,
        "evaluations": list(found), "images": sum(each.images for each in first),
        "units": sum(u for u in units if u is not None) if None not in units else None,
        "classes": len(worst), "perfect": sum(cell["accuracy"] == 1 for cell in worst),
        "worst": [cell for cell in worst[:WORST] if cell["accuracy"] < 1] if named else [],
        "missing": list(dict.fromkeys(why for each in first for why in each.missing)),
        "zero_shot": bool(beside),
    }  # fmt: skip
    samples = [(name, each, of) for name, (of, *_) in found.items() for each in _distinct(of)]
    if all(each.confidence is not None for _, each, _ in samples):
        samples.sort(key=lambda sample: -(sample[1].confidence or 0))
    result["wrong"] = sum(each.images - each.right for each in first)
    result["samples"] = [
        {
            "evaluation": name, "path": each.path, "confidence": each.confidence,
            "true": of.names[each.true], "predicted": of.names[each.predicted],
        }
        for name, each, of in samples
        if of.names is not None
    ]  # fmt: skip
    return result


def _distinct(found: Mistakes) -> list[Mistake]:
    """The most confident mistake of each pair of classes."""
    first = dict[tuple[int, int], Mistake]()
    for each in found.mistakes():
        first.setdefault((each.true, each.predicted), each)
        if len(first) == SAMPLES:
            break
    return list(first.values())


def _classes(evaluation: str, seeds: Sequence[Mistakes], beside: Classes) -> list[dict[str, Any]]:
    """Over seeds: images of one seed, accuracy in all of them."""
    totals, right = Counter[int](), Counter[int]()
    taken = dict[int, Counter[int]]()
    for each in seeds:
        for one in each.classes():
            totals[one.label] += one.images
            right[one.label] += one.right
        for pair in each.pairs():
            taken.setdefault(pair.true, Counter())[pair.predicted] += pair.count
    names = seeds[0].names
    found = []
    for label, total in totals.items():
        name = names[label] if names is not None else None
        other, times = next(iter(taken.get(label, Counter()).most_common(1)), (None, 0))
        if total:
            found.append({
                "evaluation": evaluation, "name": name, "images": total // len(seeds),
                "accuracy": right[label] / total,
                "zero_shot": beside.get((evaluation, label, name)) if name is not None else None,
                "taken": names[other] if names is not None and other is not None else None,
                "share": times / total,
            })  # fmt: skip
    return found
