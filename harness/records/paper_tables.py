"""Records as a paper's table, with the numbers that it prints beside ours."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.records import costs
from harness.records.labels import method_label
from harness.records.papers import HEADINGS, Exhibit, Line, Paper, Part, number, scaled
from harness.records.record import Record
from harness.records.store import CHANGE
from harness.records.summary import summarise
from harness.records.tables import MISSING, format_table, harmless, percent, width

BESIDE = 4  # columns up to which printed numbers stand beside ours, and not below
EVALUATIONS = {"base": "Base", "new": "New", "hm": "HM", "test": "accuracy", CHANGE: "change"}
COST = {  # heading, what a printed number is multiplied with (as a power of ten), how it is shown
    "params_M": ("Param.", 6, lambda value: f"{value / 1e6:.3f}M"),
    "epochs": ("Epoch", 0, lambda value: f"{value:g}"),
    "train_fps": ("Train FPS", 0, lambda value: f"{value:.2f}"),
    "inference_fps": ("Inference FPS", 0, lambda value: f"{value:.2f}"),
}  # type: dict[str, tuple[str, int, Callable[[float], str]]]


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
    """A table that is filled: its columns, the cells of each line by column, the datasets of its
    average, and sentences."""

    exhibit: Exhibit
    part: Part
    columns: list[Column]
    rows: list[tuple[Line, dict[Column, Cell]]]
    averaged: list[str]
    notes: list[str] = field(default_factory=list)


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
            _add_costs(table, paper, exhibit, measured[0], records)
        table.notes = _notes(paper, table, bool(measured))
        tables.append(table)
    return tables


def _scores(paper: Paper, exhibit: Exhibit, part: Part, records: Sequence[Record]) -> Filled:
    frame = summarise(records)
    columns = _columns(frame, exhibit, part)
    averaged = {*frame[frame["averaged"].eq(True)]["dataset"]}
    source = "imagenet" if len(part.datasets) and part.task != "base2new" else None
    whole = averaged == {*part.datasets} - {source}
    printed = paper.printed(exhibit)
    rows = []
    for line in part.lines:
        mine = frame[frame["label"].eq(_label(line, part, records))]
        known = _printed_of(line, printed)
        cells = {}
        for column in columns:
            at = mine[mine["dataset"].eq(column.dataset) & mine["shots"].eq(column.shots)]
            comparable = whole if column.dataset == "average" else True
            text = known.get(_as_printed(column), {}) if comparable else {}
            cells[column] = _cell(at.iloc[0] if len(at) else {}, column.evaluation, text)
            if not exhibit.remarks:
                cells[column] = Cell(**{**vars(cells[column]), "remark": ""})
        rows.append((line, cells))
    return Filled(exhibit, part, columns, rows, sorted(averaged))


def _columns(frame: pd.DataFrame, exhibit: Exhibit, part: Part) -> list[Column]:
    """Datasets in the paper's order, others after them; the average where the paper has it."""
    found = list(dict.fromkeys(frame["dataset"]))
    order = [*part.datasets, *found]
    datasets = sorted((name for name in found if name != "average"), key=order.index)
    evaluations = frame["evaluations"].iloc[0].split() if len(frame) else []
    shots = sorted({*frame["shots"]}, key=int)
    if {"base", "new"} <= {*evaluations}:
        evaluations = ["base", "new", "hm"]
    if not exhibit.by_dataset:
        datasets = ["average"]
    elif part.task == "base2new":
        datasets = ["average", *datasets]
    else:  # of a transfer the source stands first
        inner = {*frame[frame["averaged"].eq(True)]["dataset"]}
        datasets = [*sorted(datasets, key=lambda name: name in inner), "average"]
    return [Column(d, e, s) for d in datasets for e in evaluations for s in shots]


def _label(line: Line, part: Part, records: Sequence[Record]) -> str | None:
    """How the summary names a line: its method with the settings that were given."""
    name = part.sweep.rpartition(".")[2]
    value = json.loads(json.dumps(line.value))
    for record in records:
        run = record.run
        if run["method"] == line.method and (not name or run["hyperparameters"][name] == value):
            return method_label(run)
    return None


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


def _add_costs(
    table: Filled,
    paper: Paper,
    exhibit: Exhibit,
    measured: Sequence[Record],
    scored: Sequence[Record],
) -> None:
    """Columns of costs before the HM, which alone stays of the scores."""
    costly = [Column("", name) for name in COST]
    score = [column for column in table.columns if column.evaluation == "hm"]
    table.columns = [*costly, *score]
    printed = paper.printed(exhibit)
    backbones = {record.run["backbone"] for record in measured}
    comparable = all(name.startswith("ViT-B-16") for name in backbones)
    for line, cells in table.rows:
        ours = _costs(line, measured, scored)
        known = _printed_of(line, printed) if comparable else {}
        for column in costly:
            text = known.get(("", column.evaluation), {})
            value = scaled(text.get("value", ""), COST[column.evaluation][1])
            cells[column] = Cell(ours.get(column.evaluation), printed=value,
                                 remark=text.get("note", ""))  # fmt: skip


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


def _notes(paper: Paper, table: Filled, measured: bool) -> list[str]:
    """Sentences that a reader of the numbers needs."""
    cells = [cell for _, each in table.rows for cell in each.values()]
    names = {column.evaluation for column in table.columns}
    seeds = sorted({cell.n for cell in cells if cell.n is not None})
    shown = " to ".join(map(str, [*dict.fromkeys((seeds[0], seeds[-1]))])) if seeds else "no"
    many = "seed" if seeds == [1] else "seeds"
    datasets = table.averaged
    over = datasets[0] if len(datasets) == 1 else f"{len(datasets)} datasets"
    notes = [f"Accuracies: top-1 in percent, mean over {shown} {many}; average of {over}."]
    if "hm" in names:
        notes.append("HM: of the averaged base and new.")
    if CHANGE in names:
        notes.append("change: mean over the other datasets of accuracy minus zero-shot accuracy.")
    if measured:
        notes.append("FPS: images a second of training steps and of inference, measured here on "
                     "this machine; the paper used an RTX 4090 and states no batch size. Epoch: as "
                     "trained here, of the dataset with most.")  # fmt: skip
    if any(cell.value is None and cell.finished is not None for cell in cells):
        notes.append("(…): of the finished runs of an incomplete row.")
    if not paper.numbers:
        return [*notes, paper.remark]
    if any(cell.printed is not None for cell in cells):
        notes.append(f"Paper: what it prints, for {paper.backbone} with 16 shots and three seeds; "
                     f"{MISSING}: not known.")  # fmt: skip
    elif table.part.sweep and table.exhibit.name.startswith("figure"):
        notes.append("The paper draws this figure and prints no numbers.")
    elif not paper.printed(table.exhibit):
        notes.append("The paper's printed numbers are not part of this installation.")
    else:
        notes.append("These are not the datasets of the paper, so that none of its numbers can be "
                     f"compared: {MISSING} in their place.")  # fmt: skip
    for line, each in table.rows:
        for column, cell in each.items():
            if cell.printed is not None and cell.remark:
                where = [line.label, *_heading(column, table)]
                notes.append(f"{', '.join(where)}: {cell.remark}.")
    return notes


def _heading(column: Column, table: Filled) -> list[str]:
    """The words of a column: those of its dataset, shots and evaluation that differ."""
    if column.evaluation in COST:
        return [COST[column.evaluation][0]]
    words = []
    if len({each.dataset for each in table.columns if each.dataset}) > 1:
        usual = column.dataset.removeprefix("emoji_")
        words.append(HEADINGS.get(column.dataset, "Average" if usual == "average" else usual))
    if len({each.shots for each in table.columns if each.shots}) > 1:
        words.append(f"{column.shots} shots")
    if len({each.evaluation for each in table.columns}) > 1 or not words:
        words.append(EVALUATIONS.get(column.evaluation, column.evaluation))
    return words


def text(table: Filled) -> str:
    """The table in the paper's form, as Markdown: a block for each dataset, or one."""
    blocks = {"": table.columns}
    if table.exhibit.by_dataset and table.part.task == "base2new":
        blocks = {}
        for column in table.columns:
            blocks.setdefault(_heading(column, table)[0], []).append(column)
    parts = []
    for name, columns in blocks.items():
        rows_of = _beside if len(columns) <= BESIDE else _below
        rows = [row for each in table.rows for row in rows_of(*each, columns, table)]
        parts.append(format_table(rows, "markdown", f"{name}:" if name else "").lstrip())
    notes = (textwrap.fill(harmless(each), width()) for each in table.notes)
    return "\n\n".join([*parts, "\n".join(notes)])


def _beside(
    line: Line, cells: Mapping[Column, Cell], columns: Sequence[Column], table: Filled
) -> list[dict[str, str]]:
    row = _first(line, table)
    named = {column: _heading(column, table)[-1] for column in columns}
    row |= {named[column]: _shown(cells[column], column) for column in columns}
    if _compared(table):
        row |= {f"{named[c]} (paper)": _value(cells[c].printed, c) for c in columns}
    return [row]


def _below(
    line: Line, cells: Mapping[Column, Cell], columns: Sequence[Column], table: Filled
) -> list[dict[str, str]]:
    named = {column: " ".join(_heading(column, table)) for column in columns}
    rows = [_first(line, table) | {named[c]: _shown(cells[c], c) for c in columns}]
    if _compared(table):
        printed = {named[c]: _value(cells[c].printed, c) for c in columns}
        rows.append({**dict.fromkeys(_first(line, table), ""), "method": "  paper"} | printed)
    return rows


def _first(line: Line, table: Filled) -> dict[str, str]:
    name = table.part.sweep.rpartition(".")[2]
    names = {"ratios": "K, e_1 .. e_K", "rank": "r", "first_block": "h"}
    return {names.get(name, "method"): line.label, **line.cells}


def _compared(table: Filled) -> bool:
    """Whether the table has a place for printed numbers."""
    return table.exhibit.name.startswith("table")


def _shown(cell: Cell, column: Column) -> str:
    if cell.value is None and cell.finished is not None:
        return f"({_value(cell.finished, column)})"
    return _value(cell.value, column)


def _value(value: float | None, column: Column) -> str:
    if value is None:
        return MISSING
    if column.evaluation in COST:
        return COST[column.evaluation][2](value)
    return f"{100 * value:+.2f}" if column.evaluation == CHANGE else percent(value)


def raw(table: Filled) -> dict[str, Any]:
    """The table as JSON values, nothing rounded."""
    return {
        "exhibit": table.exhibit.name,
        "task": table.part.task,
        "sweep": table.part.sweep or None,
        "averaged": table.averaged,
        "notes": table.notes,
        "rows": [
            {"label": line.label, "method": line.method, "value": line.value, **line.cells,
             "cells": [{**vars(column), **vars(cell)} for column, cell in cells.items()
                       if column in table.columns]}
            for line, cells in table.rows
        ],
    }  # fmt: skip
