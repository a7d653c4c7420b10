"""Contact sheets: some test images of each class of a dataset, as far as they may be shown."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from harness.records import predictions
from harness.records.predictions import Missing
from harness.records.record import Record

IMAGES = 3  # of a class
MOST = 55_000  # characters of a dataset's pictures
WHOLE = 600_000  # of all datasets'

Strip = Callable[[str, Sequence[str]], str | None]  # of a dataset and paths: a data: address


def sheets(records: Sequence[Record], strip: Strip) -> list[dict[str, Any]]:
    """One a dataset, in the order of their names: its classes, each with a strip of images, as many
    as there is room for; `of` is the number of all classes.

    Args:
        strip: images of a dataset beside each other as one picture, or nothing.
    """
    found = {name: paths for name, paths in sorted(_paths(records).items()) if paths}
    room = min(MOST, WHOLE // max(1, len(found)))
    return [_sheet(name, paths, strip, room) for name, paths in found.items()]


def _sheet(dataset: str, paths: dict[str, list[str]], strip: Strip, room: int) -> dict[str, Any]:
    classes, used = list[dict[str, str]](), 0
    for name, each in paths.items():
        picture = strip(dataset, each)
        if picture is None:
            continue
        used += len(picture)
        if used > room:
            break
        classes.append({"name": name, "picture": picture})
    return {"dataset": dataset, "of": len(paths), "classes": classes}


def _paths(records: Sequence[Record]) -> dict[str, dict[str, list[str]]]:
    """By dataset and class, in the order of labels, some test images as far apart as they lie."""
    found = dict[str, dict[str, list[str]]]()
    for record in records:
        for evaluation in record.scores:
            with suppress(Missing):
                split = predictions.read_split(record, evaluation)
                classes = found.setdefault(split.dataset, {})
                if split.names and split.names[0] in classes:
                    continue
                of = dict[int, list[str]]()
                for path, label in zip(split.paths, split.labels.tolist(), strict=True):
                    of.setdefault(label, []).append(path)
                for label in sorted(of):
                    every = of[label]
                    step = max(1, len(every) // IMAGES)
                    classes.setdefault(split.names[label], every[::step][:IMAGES])
    return found
