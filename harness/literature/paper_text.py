"""A paper's table as text, in the paper's form, with the sentences that its numbers need."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

from harness.literature.paper_tables import Cell, Column, Filled
from harness.literature.papers import HEADINGS, Line
from harness.records.store import CHANGE
from harness.records.tables import MISSING, count, format_table, harmless, percent, width

BESIDE = 4  # columns up to which printed numbers stand beside ours, and not below
EVALUATIONS = {"base": "Base", "new": "New", "hm": "HM", "test": "accuracy", CHANGE: "change"}
SWEPT = {"dra.ratios": "K, e_1 .. e_K", "dra.rank": "r", "dra.first_block": "h"}
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "params_M": ("Param.", lambda n: f"{n / 1e6:.3f}M" if n >= 1e3 else count(n)),
    "epochs": ("Epoch", lambda value: f"{value:g}"),
    "train_fps": ("Train FPS", lambda value: f"{value:.2f}"),
    "inference_fps": ("Inference FPS", lambda value: f"{value:.2f}"),
}


def notes(table: Filled) -> list[str]:
    """Sentences that a reader of the numbers needs."""
    cells = [cell for _, each in table.rows for cell in each.values()]
    names = {column.evaluation for column in table.columns}
    seeds = sorted({cell.n for cell in cells if cell.n is not None}) or [0]
    many = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    over = table.averaged[0] if len(table.averaged) == 1 else f"{len(table.averaged)} datasets"
    found = [f"Accuracies: top-1 in percent, mean over {many} seed{'s' * (seeds != [1])}; average "
             f"of {over}."]  # fmt: skip
    if "hm" in names:
        found.append("HM: of the averaged base and new.")
    if CHANGE in names:
        found.append("change: mean over the other datasets of accuracy minus zero-shot accuracy.")
    if table.measured_on:
        found.append(
            "FPS: images a second of training steps and of inference, measured on this machine on "
            f"{table.measured_on}; the paper used an RTX 4090 and states neither dataset nor batch "
            "size. Epoch: as trained here, on the dataset with most."
        )
    if any(cell.value is None and cell.finished is not None for cell in cells):
        found.append("(…): of the finished runs of an incomplete row.")
    return [*found, *_of_printed(table, cells)]


def _of_printed(table: Filled, cells: Sequence[Cell]) -> list[str]:
    """Sentences on the printed numbers, or on why there are none."""
    paper = table.paper
    if not paper.numbers:
        return [paper.remark]
    if not _compared(table):
        return ["The paper draws this figure and prints no numbers."]
    if not paper.printed(table.exhibit):
        return ["The paper's printed numbers are not part of this installation."]
    if all(cell.printed is None for cell in cells):
        return [f"The paper's numbers are for {paper.backbone} and its own datasets: none can be "
                f"compared with these, and {MISSING} stands in their place."]  # fmt: skip
    found = [f"Paper: what it prints, for {paper.backbone}, 16 shots, three seeds; {MISSING}: not "
             "known here."]  # fmt: skip
    if table.withheld:
        found.append(
            "Printed numbers for other datasets or images, or another backbone, are left out."
        )
    for line, each in table.rows:
        printed = {c: each[c].remark.split("; ") for c in table.columns
                   if each[c].printed is not None}  # fmt: skip
        shared = set.intersection(*map(set, printed.values())) if printed else set()
        found += [
            f"Printed for {', '.join([line.label, *_heading(column, table)])}: {remark}."
            for column, remarks in printed.items()
            for remark in remarks
            if remark and remark not in shared  # those of the whole row say what it is
        ]
    return found


def _heading(column: Column, table: Filled) -> list[str]:
    """The words of a column: those of its dataset, shots and evaluation that differ."""
    if column.evaluation in COSTS:
        return [COSTS[column.evaluation][0]]
    words = []
    if len({each.dataset for each in table.columns if each.dataset}) > 1:
        usual = column.dataset.removeprefix("emoji_")
        words.append(HEADINGS.get(column.dataset, "Average" if usual == "average" else usual))
    if len({each.shots for each in table.columns if each.shots}) > 1:
        words.append(f"{column.shots} shot{'s' * (column.shots != '1')}")
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
    sentences = (textwrap.fill(harmless(each), width()) for each in notes(table))
    return "\n\n".join([*parts, "\n".join(sentences)])


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
        rows.append(dict.fromkeys(_first(line, table), "") | {"method": "paper"} | printed)
    return rows


def _first(line: Line, table: Filled) -> dict[str, str]:
    return {SWEPT.get(table.part.sweep, "method"): line.label, **line.cells}


def _compared(table: Filled) -> bool:
    """Whether the table has a place for printed numbers."""
    return bool(table.paper.numbers) and table.exhibit.name.startswith("table")


def _shown(cell: Cell, column: Column) -> str:
    if cell.value is None and cell.finished is not None:
        return f"({_value(cell.finished, column)})"
    return _value(cell.value, column)


def _value(value: float | None, column: Column) -> str:
    if value is None:
        return MISSING
    if column.evaluation in COSTS:
        return COSTS[column.evaluation][1](value)
    return f"{100 * value:+.2f}" if column.evaluation == CHANGE else percent(value)
