"""Records as a paper's table, with the numbers that it prints beside ours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from harness.leaderboards import costs
from harness.literature.papers import TRANSFERS, Exhibit, Line, Paper, Part, number, scaled
from harness.records.entry import entry
from harness.records.labels import method_label
from harness.records.record import Record
from harness.records.summary import summarise

POWERS = {"params_M": 6, "epochs": 0, "train_fps": 0, "inference_fps": 0}  # of ten, as printed


@dataclass(frozen=True)
class Column:
    """A column of numbers: a dataset (`average`; none for costs), a number of shots, and what was
    evaluated there."""

    dataset: str
    evaluation: str
    shots: str = ""


@dataclass(frozen=True)
class Cell:
    """A number of ours and the printed one: fractions, counts, images a second.

    value: the mean over n seeds, std: their sample standard deviation; finished: the mean of the
    finished runs where some are missing; remark: what is known of the printed number.
    """

    value: float | None = None
    std: float | None = None
    n: int | None = None
    finished: float | None = None
    printed: float | None = None
    remark: str = ""


@dataclass
class Filled:
    """A table that is filled: its columns, and the cells of each line by column.

    averaged: the datasets of its average; withheld: whether printed numbers are left out because
    they are of other datasets or another backbone; measured_on: where costs were measured.
    """

    paper: Paper
    exhibit: Exhibit
    part: Part
    columns: list[Column]
    rows: list[tuple[Line, dict[Column, Cell]]]
    averaged: list[str]
    withheld: bool = False
    measured_on: str | None = None


def filled(
    paper: Paper, exhibit: Exhibit, done: Sequence[tuple[Part, Sequence[Record]]]
) -> list[Filled]:
    """The tables of an exhibit, from the records of its parts: one, or one for each sweep."""
    measured = [records for part, records in done if part.task == "efficiency"]
    tables = []
    for part, records in done:
        if part.task == "efficiency":
            continue
        table = _scores(paper, exhibit, part, records)
        if measured:
            _add_costs(table, measured[0], records)
        tables.append(table)
    return tables


def _scores(paper: Paper, exhibit: Exhibit, part: Part, records: Sequence[Record]) -> Filled:
    frame = summarise(records)
    columns = _columns(frame, exhibit, part)
    averaged = {*frame[frame["averaged"].eq(True)]["dataset"]}
    sources = {each.source for each in map(entry, records)}  # of a transfer; else none
    theirs = part.datasets[0] if part.task in TRANSFERS else ""
    same = sources == {theirs} and _on_theirs(paper, records)
    whole = averaged == {*part.datasets} - {theirs}
    printed = paper.printed(exhibit)
    table = Filled(paper, exhibit, part, columns, [], sorted(averaged))
    for line in part.lines:
        mine = frame[frame["label"].eq(_label(line, part, records))]
        known = _printed_of(line, printed)
        cells = {}
        for column in columns:
            at = mine[mine["dataset"].eq(column.dataset) & mine["shots"].eq(column.shots)]
            text = known.get(_as_printed(column), {})
            if not same or (column.dataset == "average" and not whole):
                table.withheld, text = table.withheld or bool(text), {}
            cells[column] = _cell(dict(at.iloc[0]) if len(at) else {}, column.evaluation, text)
            if not exhibit.remarks:
                cells[column] = replace(cells[column], remark="")
        table.rows.append((line, cells))
    return table


def _on_theirs(paper: Paper, records: Sequence[Record]) -> bool:
    """Whether all runs are on the backbone of the paper, and on test images."""
    return all(record.run["backbone"] in paper.backbones
               and record.run["settings"].get("split", "test") == "test"
               for record in records)  # fmt: skip


def _columns(frame: pd.DataFrame, exhibit: Exhibit, part: Part) -> list[Column]:
    """Datasets in the paper's order, others after them; the average where the paper has it."""
    found = list(dict.fromkeys(frame["dataset"]))
    order = [*part.datasets, *found]
    datasets = sorted((name for name in found if name != "average"), key=order.index)
    evaluations = frame["evaluations"].iloc[0].split()
    shots = sorted({*frame["shots"]}, key=int)
    if part.task == "base2new":
        evaluations = ["base", "new", "hm"]
    evaluations = evaluations or ["test"]  # every run failed
    if not exhibit.by_dataset:
        datasets = ["average"]
    elif part.task == "base2new":
        datasets = ["average", *datasets]
    else:  # of a transfer the source stands first
        inner = {*frame[frame["averaged"].eq(True)]["dataset"]}
        datasets = [*sorted(datasets, key=lambda name: name in inner), "average"]
    return [Column(d, e, s) for d in datasets for e in evaluations for s in shots]


def _label(line: Line, part: Part, records: Sequence[Record]) -> str:
    """How the summary names a line: its method with the settings that were given."""
    name = part.sweep.rpartition(".")[2]
    value = json.loads(json.dumps(line.value))
    for record in records:
        run = record.run
        if run["method"] == line.method and (not name or run["hyperparameters"][name] == value):
            return method_label(run)
    return line.method


def _printed_of(
    line: Line, rows: Sequence[Mapping[str, str]]
) -> dict[tuple[str, str], Mapping[str, str]]:
    """The printed numbers of a line, by dataset and evaluation."""
    method = line.printed or line.method
    return {
        (row["dataset"], row["evaluation"]): row
        for row in rows
        if row["method"] == method and (not line.note or row["note"] == line.note)
    }


def _as_printed(column: Column) -> tuple[str, str]:
    return column.dataset, "accuracy" if column.evaluation == "test" else column.evaluation


def _cell(row: Mapping[str, Any], name: str, printed: Mapping[str, str]) -> Cell:
    """A row of the summary and of the printed numbers as a cell."""
    ours = {key: row.get(key) for key in (name, f"{name}_std", f"finished_{name}", "n")}
    known = {key: None if value is None or pd.isna(value) else float(value)
             for key, value in ours.items()}  # fmt: skip
    seeds = known["n"]
    return Cell(
        known[name], known[f"{name}_std"], None if seeds is None else int(seeds),
        known[f"finished_{name}"], number(printed.get("value", "")), printed.get("note", ""),
    )  # fmt: skip


def _add_costs(table: Filled, measured: Sequence[Record], scored: Sequence[Record]) -> None:
    """Columns of costs before the HM, which alone stays of the scores."""
    costly = [Column("", name) for name in POWERS]
    table.columns = [*costly, *(each for each in table.columns if each.evaluation == "hm")]
    table.measured_on = ", ".join(sorted({record.run["dataset"] for record in measured}))
    comparable = _on_theirs(table.paper, measured)
    printed = table.paper.printed(table.exhibit)
    for line, cells in table.rows:
        ours, known = _costs(line, measured, scored), _printed_of(line, printed)
        for column in costly:
            text = known.get(("", column.evaluation), {})
            if not comparable:
                table.withheld, text = table.withheld or bool(text), {}
            value = scaled(text.get("value", ""), POWERS[column.evaluation])
            cells[column] = Cell(
                ours.get(column.evaluation), printed=value, remark=text.get("note", "")
            )


def _costs(line: Line, measured: Sequence[Record], scored: Sequence[Record]) -> dict[str, float]:
    found = dict[str, float]()
    epochs = {r.cost["epochs"] for r in scored
              if r.run["method"] == line.method and "epochs" in r.cost}  # fmt: skip
    if epochs:
        found["epochs"] = max(epochs)
    for record in measured:
        if record.run["method"] == line.method and record.status == "done":
            cost = dict(record.cost)
            found["params_M"] = cost["trainable_parameters"]
            found["inference_fps"] = costs.image_rate(cost)
            train = cost.get("train")
            if train:
                step = train["data"]["median"] + train["step"]["median"]
                found["train_fps"] = train["batch"] / step
    return found


def raw(table: Filled) -> dict[str, Any]:
    """The table as JSON values, nothing rounded."""
    return {
        "exhibit": table.exhibit.name,
        "task": table.part.task,
        "sweep": table.part.sweep or None,
        "averaged": table.averaged,
        "rows": [
            {"label": line.label, "method": line.method, "value": line.value, **line.cells,
             "cells": [{**vars(column), **vars(cell)} for column, cell in cells.items()
                       if column in table.columns]}
            for line, cells in table.rows
        ],
    }  # fmt: skip
