"""What a run said of every image, read from beside its record; and the list of these images.

Tensors of the side file, by evaluation E: `E.class` int32 [N]; `E.best` int32 [N, K], the K <= 5
classes of the highest probabilities, with `E.probabilities` float16 [N, K]; `E.true` float32 [N],
the log-probability of the true class. Older files hold `E.predictions` and `E.labels` int16 [N].
It never imports torch.
"""

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from harness.files import shown, stamp
from harness.records.record import Record
from harness.records.store import PREDICTIONS, SPLIT

Array = np.ndarray[Any, Any]


class Missing(Exception):
    """Why something that is asked of the predictions is not there, as the end of a sentence."""


@dataclass(frozen=True, eq=False)
class KeptSplit:
    """The images that a run was scored on.

    names: of the classes; paths and labels [N]; units: the number of each image's unit, or None
    where each image is one.
    """

    dataset: str
    template: str
    names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Array
    units: Array | None


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a run said of the images of one evaluation; see the module.

    labels: the true ones; split: None for records of older versions, whose images have no names.
    """

    classes: Array
    labels: Array
    best: Array | None
    probabilities: Array | None
    true: Array | None
    split: KeptSplit | None


def read(record: Record, evaluation: str, whole: bool = True) -> Predicted:
    """What a run said of the images of an evaluation.

    Args:
        whole: also probabilities; else the class alone, which intervals need.

    Raises:
        Missing: there are no predictions, they are damaged, or they are not of this record.
    """
    path = _beside(record)
    try:
        with safe_open(str(path), "np") as file:
            there, key = set(file.keys()), (file.metadata() or {}).get("key", record.key)
            parts = ["class", "predictions", "labels"]
            parts += ["best", "probabilities", "true"] if whole else []
            found = {
                part: file.get_tensor(f"{evaluation}.{part}")
                for part in parts
                if f"{evaluation}.{part}" in there
            }
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise Missing(f"the predictions in {shown(path)} cannot be read: {error}") from error
    if key != record.key:
        raise Missing(f"the predictions in {shown(path)} are those of another run")
    classes = found.get("class", found.get("predictions"))
    if classes is None:
        raise Missing(f"{shown(path)} has no predictions of {evaluation}")
    try:
        split = read_split(record, evaluation)
    except Missing:
        if "labels" not in found:
            raise
        split = None
    labels = split.labels if split is not None else found["labels"]
    result = Predicted(
        classes=classes, labels=labels, split=split, best=found.get("best"),
        probabilities=found.get("probabilities"), true=found.get("true"),
    )  # fmt: skip
    _check(record, evaluation, result, path)
    return result


def files(records: Sequence[Record], evaluation: str) -> list[Path]:
    """Where the predictions and the lists of images are that `read` would read, as far as they are
    there."""
    found = [each.file.with_suffix(PREDICTIONS) for each in records if each.file is not None]
    lists = [_split_file(each, evaluation) for each in one_a_list(records, evaluation)]
    return [*found, *(path for path in lists if path is not None)]


def one_a_list(records: Iterable[Record], evaluation: str) -> list[Record]:
    """Of some records one for each list of images that they name, where they lie."""
    found = {
        (os.path.dirname(each.file or ""), _fingerprint(each, evaluation)): each  # noqa: PTH120
        for each in records
    }
    return list(found.values())


def read_split(record: Record, evaluation: str) -> KeptSplit:
    """The images of an evaluation, from the folder that the record was read from.

    Raises:
        Missing: they were not kept, or the file is damaged.
    """
    path = _split_file(record, evaluation)
    if path is None:
        raise Missing("the list of images was not kept")
    return _split(path, stamp(path))


def _split_file(record: Record, evaluation: str) -> Path | None:
    fingerprint = _fingerprint(record, evaluation)
    if record.file is None or fingerprint is None or Path(fingerprint).name != fingerprint:
        return None
    places = [each / "splits" / f"{fingerprint}{SPLIT}" for each in list(record.file.parents)[:4]]
    return next((path for path in places if path.is_file()), None)


def _fingerprint(record: Record, evaluation: str) -> str | None:
    return (record.run["fingerprints"].get("evaluated") or {}).get(evaluation)


@functools.lru_cache(maxsize=256)
def _split(path: Path, mark: str) -> KeptSplit:
    """The list in a file, parsed again once the file has another stamp: units may be added."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return _parsed(given)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Missing(f"{shown(path)} cannot be read: {error!r}") from error


def _parsed(given: Mapping[str, Any]) -> KeptSplit:
    names, paths, labels = given["names"], given["paths"], given["labels"]
    for texts in (names, paths, [given["dataset"], given["template"]]):
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise ValueError("names and paths are texts")
    numbers = [labels, *([given["units"]] if given["units"] is not None else [])]
    for each in numbers:
        if len(each) != len(paths) or not all(type(number) is int for number in each):
            raise ValueError("labels and units are whole numbers, one an image")
    if not paths or not all(0 <= label < len(names) for label in labels):
        raise ValueError("a label is the place of a name")
    units = None if given["units"] is None else np.asarray(given["units"], dtype=np.int64)
    return KeptSplit(
        given["dataset"], given["template"], tuple(names), tuple(paths),
        np.asarray(labels, dtype=np.int64), units,
    )  # fmt: skip


def _beside(record: Record) -> Path:
    if record.file is None:
        raise Missing("the record was read from no file")
    path = record.file.with_suffix(PREDICTIONS)
    if not path.is_file():
        raise Missing("the predictions were not kept")
    return path


def _check(record: Record, evaluation: str, found: Predicted, path: Path) -> None:
    """Raises Missing if the parts do not fit each other or not the record's own count, or if they
    hold what is no class and no probability."""
    number = len(found.labels)
    columns = found.best.shape[1:] if found.best is not None else (0,)
    shapes = [
        (found.classes, (number,), "i"), (found.labels, (number,), "i"),
        (found.best, (number, *columns), "i"), (found.probabilities, (number, *columns), "f"),
        (found.true, (number,), "f"),
    ]  # fmt: skip
    if any(a is not None and (a.shape != s or a.dtype.kind != kind) for a, s, kind in shapes):
        raise Missing(f"{shown(path)} holds other numbers of images than the list of {evaluation}")
    score = record.scores.get(evaluation, {})
    correct = int((found.classes == found.labels).sum())
    if (correct, number) != (score.get("correct"), score.get("total")):
        raise Missing(
            f"the record of {shown(path)} counts {score.get('correct')} of {score.get('total')} "
            f"images as right in {evaluation}, its predictions {correct} of {number}"
        )
    if not _fits(found):
        raise Missing(f"{shown(path)} holds numbers that are no classes or no probabilities")


def _fits(found: Predicted) -> bool:
    """Whether every class is one, and every probability."""
    most = len(found.split.names) if found.split is not None else np.inf
    numbers = [each for each in (found.classes, found.labels, found.best) if each is not None]
    fits = all(bool(((each >= 0) & (each < most)).all()) for each in numbers)
    if (likely := found.probabilities) is not None:
        two = likely.ndim == 2 and likely.shape[1] > 0
        fits = fits and two and bool(((likely >= 0) & (likely <= 1)).all())
    if found.true is not None:
        fits = fits and bool((np.isfinite(found.true) & (found.true <= 0)).all())
    return fits
