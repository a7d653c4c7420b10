"""From the records of a table to what its statistics need: which images each run named rightly.

It never imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from harness.certainty import kept
from harness.certainty.statistics import Cell, Sample
from harness.records import predictions
from harness.records.entry import Entry, entry
from harness.records.predictions import Array, Missing
from harness.records.record import Record
from harness.records.store import CHANGE
from harness.records.summary import Row, Table

INCOMPLETE = "it is incomplete"


@dataclass(frozen=True, eq=False)
class KeptSample(Sample):
    """A sample whose draws are kept for the next call."""

    @cached_property
    def draws(self) -> Array:
        return kept.draws(self, self.draw)


@dataclass(frozen=True)
class Sampled:
    """The statistics of a table, or why it has none.

    why: a sentence; left_out: rows without intervals, and why; units_known: whether it is known
    which images are not independent.
    """

    sample: Sample | None
    why: str = ""
    left_out: Mapping[str, str] | None = None
    units_known: bool = True


def of_table(table: Table, labels: Iterable[str] | None = None) -> Sampled:
    """The statistics of the complete rows of a table, or of those with some labels."""
    main = table.main
    if main is None or main == CHANGE:
        return Sampled(None, "it has no accuracies")
    wanted = [row for row in table.rows if labels is None or row.label in {*labels}]
    cells = [(dataset, seed) for dataset in table.averaged for seed in table.seeds]
    left_out, complete = dict[str, str](), list[Row]()
    for row in wanted:
        done = {each.cell for each in row.members if each.counts}
        if {*cells} <= done:
            complete.append(row)
        elif any(each.record.status != "not applicable" for each in row.members):
            left_out[row.label] = INCOMPLETE
    evaluations = ("base", "new") if main == "hm" else (main,)
    return _sampled(complete, table, evaluations, main, left_out)


def common(table: Table, labels: Sequence[str]) -> Table:
    """The table of some rows alone, with the datasets and seeds that all of them have."""
    rows = [row for row in table.rows if row.label in labels]
    cells = [{each.cell for each in row.members if each.counts} for row in rows]
    shared = set.intersection(*cells) if cells else set()
    seeds = sorted({seed for _, seed in shared})
    datasets = [d for d in table.datasets if any((d, s) in shared for s in seeds)]
    seeds = [s for s in seeds if all((d, s) in shared for d in datasets)]
    datasets = [d for d in datasets if seeds]
    return Table(
        rows=rows, datasets=datasets, seeds=seeds,
        averaged=[name for name in datasets if name in table.averaged],
        evaluations=table.evaluations, source=table.source,
    )  # fmt: skip


def of_evaluation(record: Record, evaluation: str) -> Sample:
    """The statistics of one run in one evaluation.

    Raises:
        Missing: its predictions are not there, and why.
    """
    found = entry(record)
    try:
        counts = _hits({"": [found]}, evaluation, _units([found], evaluation))
    except _Unreadable as row:
        raise Missing(row.why) from None
    cells = {(found.dataset, evaluation): Cell.of(*counts)}
    return Sample(("",), (found.seed,), cells, evaluation)


def _sampled(
    rows: Sequence[Row],
    table: Table,
    evaluations: Sequence[str],
    statistic: str,
    left_out: dict[str, str],
) -> Sampled:
    if not rows or not table.averaged or not table.seeds:
        return Sampled(None, "no row is complete", left_out)
    readable = {row.label: {each.cell: each for each in row.members} for row in rows}
    while readable:
        try:
            cells, known = _cells(readable, table, evaluations)
        except _Unreadable as row:
            left_out[row.label] = row.why
            del readable[row.label]
            continue
        except Missing as reason:
            return Sampled(None, str(reason), left_out)
        shared = bool(table.source) and len(table.averaged) > 1
        labels, seeds = tuple(readable), tuple(table.seeds)
        sample = KeptSample(labels, seeds, cells, statistic, shared)
        return Sampled(sample, "", left_out, known)
    return Sampled(None, next(iter(left_out.values())), left_out)


class _Unreadable(Exception):
    def __init__(self, label: str, why: str) -> None:
        self.label, self.why = label, why


Members = Mapping[str, Mapping[tuple[str, int], Entry]]  # by row, then by dataset and seed


def _cells(
    rows: Members, table: Table, evaluations: Sequence[str]
) -> tuple[dict[tuple[str, str], Cell], bool]:
    """Read one after the other, because all of them together may not fit into memory."""
    cells, known = dict[tuple[str, str], Cell](), True
    for dataset in table.averaged:
        for evaluation in evaluations:
            of_rows = {label: [found[dataset, s] for s in table.seeds]
                       for label, found in rows.items()}  # fmt: skip
            _same_images(of_rows, evaluation)
            entries = [each for found in of_rows.values() for each in found]
            numbers = _units(entries, evaluation)
            known = known and numbers is not None
            files = predictions.files([each.record for each in entries], evaluation)
            about = [
                evaluation,
                len(of_rows),
                [(each.record.key, each.record.scores.get(evaluation)) for each in entries],
            ]
            cells[dataset, evaluation] = kept.cell(
                files, about, partial(_cell, of_rows, evaluation, numbers)
            )
    return cells, known


def _units(entries: Iterable[Entry], evaluation: str) -> Array | None:
    """The number of each image's unit, or None if no folder keeps the list of images.

    Folders that were written before a dataset had groups keep the same list without units: of
    several lists that with the fewest units counts.
    """
    found = dict[int, Array]()
    for record in predictions.one_a_list([each.record for each in entries], evaluation):
        with suppress(Missing):
            split = predictions.read_split(record, evaluation)
            if id(split) not in found:
                units = split.units if split.units is not None else np.arange(len(split.labels))
                found[id(split)] = np.unique(units, return_inverse=True)[1]
    return min(found.values(), key=lambda numbers: int(numbers.max()), default=None)


def _cell(rows: Mapping[str, Sequence[Entry]], evaluation: str, numbers: Array | None) -> Cell:
    return Cell.of(*_hits(rows, evaluation, numbers))


def _same_images(rows: Mapping[str, Sequence[Entry]], evaluation: str) -> None:
    """Raises Missing if runs of a dataset were scored on different images."""
    prints = {
        (each.record.run["fingerprints"].get("evaluated") or {}).get(evaluation)
        for entries in rows.values()
        for each in entries
    }
    if len(prints) > 1:
        raise Missing("seeds were scored on different images")


def _hits(
    rows: Mapping[str, Sequence[Entry]], evaluation: str, numbers: Array | None
) -> tuple[Array, Array]:
    """Of each row and seed the numbers of right images in each unit [M, S, U], and the units' sizes
    [U]; `numbers`: the unit of each image, see `_units`."""
    found, labels = list[Array](), None
    for label, entries in rows.items():
        try:
            each = [predictions.read(one.record, evaluation, whole=False) for one in entries]
        except Missing as reason:
            raise _Unreadable(label, str(reason)) from None
        labels = each[0].labels if labels is None else labels
        if not all(np.array_equal(one.labels, labels) for one in each):
            raise _Unreadable(label, "it was scored on other images")
        numbers = np.arange(len(labels)) if numbers is None else numbers
        units = int(numbers.max()) + 1
        right = [one.classes == one.labels for one in each]
        counts = [np.bincount(numbers, weights=one, minlength=units) for one in right]
        found.append(np.stack(counts).astype(np.float32))
    assert numbers is not None  # there are rows
    return np.stack(found), np.bincount(numbers).astype(np.float32)
