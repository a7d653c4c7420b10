"""Printed numbers and ours of the same method, dataset, task, backbone and shots, side by side."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from harness.certainty import samples
from harness.certainty.samples import Sampled
from harness.certainty.statistics import LEVELS, Difference
from harness.errors import unknown
from harness.leaderboards.leaderboard import Leaderboard
from harness.literature import published
from harness.literature.arithmetic import SOURCE
from harness.literature.lines import OURS, Compared, Line, Numbers, Places, merged, of_dataset
from harness.literature.printed import AVERAGE, Row
from harness.literature.published import Source, Wanted
from harness.records.entry import TABLES
from harness.records.summary import PYTHON_TEXTS, Table, tables
from harness.records.tables import in_shots

USUAL = {"max_epochs": None, "max_steps": None, "views": 0, "crop_scale": [0.08, 1.0]}  # of a fit


@pd.option_context(*PYTHON_TEXTS)
def compared(board: Leaderboard, wanted: Wanted) -> list[Compared]:
    """Each of our tables that has printed numbers: its average; with the board's `by_dataset`, and
    where no average can be compared, each dataset."""
    records = [record for record in board.chosen() if not record.measures]
    if not records:
        return []
    frame, found = board.frame(), list[Compared]()
    for key, table in tables(records).items():
        task, backbone, _, shots, settings = key
        places = published.matching(wanted.rows, task, backbone, shots)
        same = [frame[name].astype(str) == value for name, value in zip(TABLES, key, strict=True)]
        own = frame[pd.concat(same, axis=1).all(axis=1)]
        engine = json.loads(settings)
        if places and engine.get("split", "test") == "test" and table.source in ("", SOURCE):
            title = f"{task}, {backbone}, {in_shots(shots)}"
            found += _of_table(title, _Ours(table, own), places, wanted, board.by_dataset, engine)
    return found


def alone(names: str, task: str | None, datasets: str) -> tuple[list[Compared], list[str]]:
    """The printed numbers themselves, by task, backbone and shots, and sentences on what is not
    shown; datasets: a comma list, or `all`.

    Raises:
        HarnessError: an unknown name, or nothing is printed of them.
    """
    wanted = published.wanted(names)
    groups = dict[tuple[str, ...], list[tuple[Source, Row]]]()
    for source, row in wanted.rows:
        if task in (None, row.task):
            groups.setdefault(row.where[2:], []).append((source, row))
    if not groups:
        raise unknown("task", task or "", {row.task for _, row in wanted.rows})
    there = list(dict.fromkeys(d for _, row in wanted.rows for d, _ in row.numbers))
    asked = there if datasets == published.EVERY else [d.strip() for d in datasets.split(",")]
    for name in asked:
        if name not in there and name != AVERAGE:
            raise unknown("dataset", name, there)
    found, without = list[Compared](), 0
    by_shots = sorted(groups.items(), key=lambda each: (*each[0][:2], int(each[0][2] or -1)))
    for (of_task, backbone, shots), places in by_shots:
        title = f"{of_task}, {backbone}, {in_shots(shots) if shots else 'transductive'}"
        methods = dict.fromkeys(row.method for _, row in places)
        for dataset in asked:
            each = (
                merged(method, method, places, dataset, of_dataset(dataset), {})
                for method in methods
            )
            lines = [line for of_method in each for line in of_method]
            found += [Compared(f"{title}, {dataset}", lines)] if lines else []
        without += sum(not any(row.of(name) for name in asked) for _, row in places)
    left = f"Without {' or '.join(asked)}: {_rows(without)}. --datasets all shows all."
    return found, [left] if without else []


class _Ours:
    """The rows of one of our tables, and the intervals of those that are compared."""

    def __init__(self, table: Table, frame: pd.DataFrame) -> None:
        self.table, self.frame = table, frame
        self.labels = list(dict.fromkeys(frame["label"]))
        self.sampled = Sampled(None)

    def sample(self, methods: Iterable[str]) -> None:
        """Reads what intervals need, of some methods."""
        labels = [each for each in self.labels if _method(each) in {*methods}]
        self.sampled = samples.of_table(self.table, labels)

    def of(self, label: str, dataset: str) -> dict[str, Difference]:
        """A row's values of a dataset, or the average, by printed evaluation."""
        rows = self.frame[(self.frame["label"] == label) & (self.frame["dataset"] == dataset)]
        found, sample = dict[str, Difference](), self.sampled.sample
        for name, column in OURS.items():
            value = rows[column].iloc[0] if len(rows) and column in rows else None
            if value is None or pd.isna(value):
                continue
            found[name] = Difference(float(value))
            inside = (AVERAGE, *self.table.averaged)
            if sample is not None and label in sample.labels and dataset in inside:
                part = sample if dataset == AVERAGE else sample.of_dataset(dataset)
                part = dataclasses.replace(part, statistic=column)
                found[name] = part.interval(part.labels.index(label))
        return found


def _of_table(
    title: str, ours: _Ours, places: Places, wanted: Wanted, by_dataset: bool,
    engine: Mapping[str, Any],
) -> list[Compared]:  # fmt: skip
    averaged, measured = ours.table.averaged, {_method(label) for label in ours.labels}
    whole = {*averaged} == published.AVERAGED[places[0][1].task]
    varied = sum(bool(row.variant) and row.method in measured for _, row in places)
    places = [(source, row) for source, row in places if not row.variant]
    ours.sample({row.method for _, row in places} & measured)
    about = _notes(ours, engine)
    if varied:
        about.append(f"Left out, other settings: {_rows(varied)}; see `published show`.")

    def view(dataset: str, shown: str, numbers: Numbers) -> list[Compared]:
        lines = _lines(ours, places, wanted, dataset, numbers)
        lacking = sum(not numbers(row)[0] for _, row in places if row.method in measured)
        what = "these datasets" if dataset == AVERAGE else dataset
        left = [f"Left out, without numbers of {what}: {_rows(lacking)}."] if lacking else []
        return [Compared(f"{title}, {shown}", lines, [*about, *left])] if lines else []

    found = list[Compared]()
    if len(averaged) > 1:
        name = f"average of {'the' if whole else 'our'} {len(averaged)} datasets"
        found += view(AVERAGE, name, lambda row: published.of_average(row, averaged))
    if by_dataset or not found:
        found += [
            each for name in ours.table.datasets for each in view(name, name, of_dataset(name))
        ]
    return found


def _lines(
    ours: _Ours, places: Places, wanted: Wanted, dataset: str, numbers: Numbers
) -> list[Line]:
    """Of our rows first, then of the methods that are shown though they were not measured."""
    found, measured = list[Line](), {_method(label) for label in ours.labels}
    for label in ours.labels:
        values = ours.of(label, dataset)
        found += merged(label, _method(label), places, dataset, numbers, values)
    for method in dict.fromkeys(row.method for _, row in places if row.method not in measured):
        if wanted.named is None or method in wanted.named:
            found += merged(method, method, places, dataset, numbers, {})
    return found


def _notes(ours: _Ours, engine: Mapping[str, Any]) -> list[str]:
    """What a reader must know of our numbers."""
    seeds = ", ".join(map(str, ours.table.seeds))
    notes, reasons = [f"Our seeds: {seeds}."], dict[str, list[str]]()
    if ours.sampled.sample is not None:
        one = "other images; one seed says nothing of other seeds"
        level = LEVELS[2] if len(ours.table.seeds) > 1 else one
        notes.append(f"Our intervals are for {level}.")
    given = {name: engine.get(name) or usual for name, usual in USUAL.items()}
    if caps := [f"{name}={given[name]}" for name, usual in USUAL.items() if given[name] != usual]:
        notes.append(f"Our fits had the settings {', '.join(caps)}, the printed ones had not.")
    if ours.sampled.sample is None and ours.sampled.why:
        notes.append(f"No intervals: {ours.sampled.why}.")
    for label, why in (ours.sampled.left_out or {}).items():
        reasons.setdefault(why, []).append(label)
    return notes + [f"No interval of {', '.join(of)}: {why}." for why, of in reasons.items()]


def _rows(number: int) -> str:
    return f"{number} printed row{'s' * (number != 1)}"


def _method(label: str) -> str:
    return label.partition("[")[0]
