"""Rows to text: percent and rounding happen here and nowhere else."""

import csv
import html
import io
import math
import shutil
from collections.abc import Mapping, Sequence

from tabulate import tabulate

MISSING = "–"
FORMATS = ("markdown", "csv", "latex")
WIDEST = 100  # where the output is no terminal, and where it is wider than is good to read


def format_table(rows: list[dict[str, str]], form: str, caption: str) -> str:
    """A table, with its caption above but for csv."""
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    style = {"markdown": "pipe", "latex": "latex_booktabs", "html": "html"}[form]
    align = ["left"] + ["right"] * (len(rows[0]) - 1)
    if form == "markdown":
        rows = [{k: str(v).replace("|", "\\|") for k, v in row.items()} for row in rows]
    elif form == "latex":
        caption = "".join(f"% {line}\n" for line in caption.splitlines())
    table = tabulate(rows, headers="keys", tablefmt=style, colalign=align, disable_numparse=True)
    if form == "html":
        caption = f"<p>{html.escape(caption)}</p>\n"
    return f"{caption}\n\n{table}" if form == "markdown" else f"{caption}{table}"


def percent(mean: float | None, deviation: float | None = None) -> str:
    """A fraction in percent, with its deviation."""
    if mean is None or math.isnan(mean):
        return MISSING
    text = f"{100 * mean:.2f}"
    if deviation is not None and not math.isnan(deviation):
        text += f" ± {100 * deviation:.2f}"
    return text


def count(value: float | None) -> str:
    """An integer with separators."""
    return MISSING if value is None or math.isnan(value) else f"{int(value):,}"


def width() -> int:
    """Columns that a line may take."""
    return max(40, min(shutil.get_terminal_size((WIDEST, 24)).columns, 120))


def plain_table(rows: Sequence[Mapping[str, object]], numbers: bool = False) -> str:
    """A table to be read in a terminal, and as wide as that: long cells are wrapped, columns that
    are short stay whole.

    Args:
        rows: cells by column; a row may lack some.
        numbers: all columns but the first are aligned to the right.
    """
    headers = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[str(row.get(name, "")) for name in headers] for row in rows]
    longest = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    room = width() - 2 * (len(headers) - 1)
    by_length = sorted(range(len(headers)), key=lambda i: longest[i], reverse=True)
    most: list[int | None] = [None] * len(headers)
    for count in range(1, len(headers) + 1):  # as few columns are wrapped as will do
        rest = room - sum(longest[i] for i in by_length[count:])
        if sum(longest) <= room:
            break
        if rest >= 12 * count:
            for i in by_length[:count]:
                most[i] = rest // count
            break
    align = ["left"] + ["right" if numbers else "left"] * (len(headers) - 1)
    return tabulate(
        cells, headers=headers, tablefmt="simple", disable_numparse=True, maxcolwidths=most,
        break_on_hyphens=False, colalign=align,
    )  # fmt: skip
