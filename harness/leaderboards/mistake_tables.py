"""What a run got wrong, as text or csv; text from data is made harmless."""

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence

from tabulate import tabulate

from harness.leaderboards import mistakes
from harness.leaderboards.mistakes import Missing, Mistakes
from harness.records.labels import run_name
from harness.records.record import Record
from harness.records.tables import MISSING, format_table, harmless, percent, plain_table, width

Name = Callable[[int | None], str]


def text(record: Record, evaluations: Sequence[str], classes: int, images: int) -> str:
    """The tables of some evaluations: at most so many classes, pairs and images of each."""
    parts = [harmless(f"{run_name(record.run)} ({record.key})")]
    for evaluation in evaluations:
        score = record.scores[evaluation]
        head = f"{evaluation}: {score['correct']} of {score['total']} images right"
        head += f" ({percent(score['accuracy'])}%)"
        try:
            found = mistakes.of(record, evaluation)
        except Missing as reason:
            parts.append(_filled(f"{head}. Which ones is not known: {reason}."))
            continue
        parts.append(_filled(f"{head}, {_units(found)}"))
        parts += [_filled(f"{MISSING}: {reason}.") for reason in found.missing]
        parts += _tables(found, classes, images)
    return "\n\n".join(parts)


def csv(record: Record, evaluations: Sequence[str]) -> str:
    """All classes of some evaluations, with raw numbers.

    Raises:
        Missing: predictions are not there.
    """
    rows = []
    for evaluation in evaluations:
        found = mistakes.of(record, evaluation)
        name = _names(found)
        for each in found.classes():
            rows.append({
                "evaluation": evaluation, "label": str(each.label), "class": name(each.label),
                "images": str(each.images), "right": str(each.right),
                "accuracy": "" if each.accuracy is None else str(each.accuracy),
                "taken_for": "" if each.taken_for is None else name(each.taken_for),
                "times": str(each.times),
            })  # fmt: skip
    return format_table(rows, "csv", "")


def _units(found: Mistakes) -> str:
    if found.units is None:
        return "units not known."
    if found.units == found.images:
        return f"{found.units} units (each image is one)."
    return f"{found.units} units (images of one unit are not independent of each other)."


def _tables(found: Mistakes, classes: int, images: int) -> list[str]:
    name, every, pairs = _names(found), found.classes(), found.pairs()
    of_classes = [
        {
            "class": name(each.label),
            "n": each.images,
            "right": each.right,
            "accuracy": percent(each.accuracy),
            "most often taken for": f"{name(each.taken_for)} ({each.times})" if each.times else "",
        }
        for each in every[:classes]
    ]
    of_pairs = [
        {
            "true -> predicted": f"{name(pair.true)} -> {name(pair.predicted)}",
            "count": pair.count,
            "share": percent(pair.share),
        }
        for pair in pairs[:classes]
    ]
    parts = []
    if of_classes:
        title = f"Classes, the worst first{_of(of_classes, len(every))}; accuracy in percent:"
        parts.append(f"{title}\n\n{plain_table(of_classes, numbers=True)}")
    if of_pairs:
        title = f"Most confused{_of(of_pairs, len(pairs))}; share of the true class in percent:"
        parts.append(f"{title}\n\n{plain_table(of_pairs, numbers=True)}")
    return parts + _images(found, name, images)


def _images(found: Mistakes, name: Name, most: int) -> list[str]:
    """The mistakes with their paths, which are never wrapped: they are to be copied."""
    shown = found.mistakes(most)
    if not shown:
        return [] if found.right < found.images else ["Every image is right."]
    cells = [
        (percent(each.confidence), name(each.true), name(each.predicted),
         harmless(f"number {each.number}" if each.path is None else each.path))
        for each in shown
    ]  # fmt: skip
    sure = found.found.probabilities is not None
    title = "Most confident mistakes" if sure else "Mistakes, in the order of the images"
    title += _of(shown, found.images - found.right)
    title += "; confidence in percent" if sure else ""
    split = found.found.split
    title += ":" if split is None else f"; paths in {harmless(split.dataset)}:"
    headers = ["confidence", "true", "predicted", "image"]
    align = ("right", "left", "left", "left")
    table = tabulate(cells, headers, "simple", disable_numparse=True, colalign=align)
    return [f"{title}\n\n{table}"]


def _of(shown: Sequence[object], number: int) -> str:
    return f" ({len(shown)} of {number})" if len(shown) < number else ""


def _names(found: Mistakes) -> Name:
    """A class's name by its label, with the label where two classes have the same name."""
    names = found.names
    times = Counter(names)

    def name(label: int | None) -> str:
        if label is None:
            return MISSING
        if names is None:
            return f"class {label}"
        plain = harmless(names[label])
        return f"{plain} (class {label})" if times[names[label]] > 1 else plain

    return name


def _filled(line: str) -> str:
    return textwrap.fill(harmless(line), width())
