"""Rows to text: percent and rounding happen here and nowhere else."""

import csv
import html
import io
import itertools
import math
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence

from tabulate import tabulate

MISSING = "–"
FORMATS = ("markdown", "csv", "latex")
WRAPPED = 100  # of captions
WIDEST = 100  # where the output is no terminal, and where it is wider than is good to read


BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
HARMFUL = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *BIDI, *range(0xD800, 0xE000))
ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in HARMFUL}
FORMULA = tuple("=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
                "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
BOLD = ("\ue000", "\ue001")  # around a cell, until LaTeX's own characters are escaped


def harmless(text: object, lines: bool = False) -> str:
    """Text from data as it may be shown: characters that command a terminal, turn the direction of
    writing or cannot be encoded are written as escapes (`\\x1b`); with `lines` a newline stays."""
    shown = str(text)
    parts = shown.split("\n") if lines else [shown]
    return "\n".join(part.translate(ESCAPES) for part in parts)


def csv_cell(value: object) -> str:
    """A cell that a spreadsheet takes for text or a number, and never for a formula."""
    text = harmless(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.lstrip().startswith(FORMULA) else text
    return text


def format_table(
    rows: Sequence[Mapping[str, str]],
    form: str,
    caption: str,
    bold: Mapping[str, Collection[int]] | None = None,
) -> str:
    """A table, with its caption above but for csv.

    bold: columns in whose cells LaTeX shows the highest number bold, and the places of the rows in
    which it shows others bold, too.
    """
    names = list(rows[0])
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([map(csv_cell, names), *(map(csv_cell, row.values()) for row in rows)])
        return text.getvalue().rstrip("\n")
    style = {"markdown": "pipe", "latex": "latex_booktabs", "html": "html"}[form]
    align = ["left"] + ["right"] * (len(names) - 1)
    rows = [{harmless(k): harmless(v) for k, v in row.items()} for row in rows]
    caption = harmless(caption, lines=True)
    if form == "markdown":
        rows = [{k: v.replace("|", "\\|") for k, v in row.items()} for row in rows]
    elif form == "latex":
        rows = _bold(rows, bold or {})
        caption = "".join(f"% {line}\n" for line in caption.splitlines())
    table = tabulate(rows, headers="keys", tablefmt=style, colalign=align, disable_numparse=True)
    table = table.replace(BOLD[0], r"\textbf{").replace(BOLD[1], "}")
    if form == "html":
        caption = f"<p>{html.escape(caption)}</p>\n"
    return f"{caption}\n\n{table}" if form == "markdown" else f"{caption}{table}"


def _bold(
    rows: Sequence[Mapping[str, str]], columns: Mapping[str, Collection[int]]
) -> list[dict[str, str]]:
    """The rows, with marks around the highest numbers of some columns and those of some rows; none
    in a single row."""
    marked = [dict(row) for row in rows]
    for name, others in columns.items():
        numbers = [_number(row.get(name, "")) for row in rows]
        highest = max(numbers, default=-math.inf)
        for place, (row, number) in enumerate(zip(marked, numbers, strict=True)):
            chosen = number == highest or place in others
            if chosen and math.isfinite(number) and len(rows) > 1:
                row[name] = row[name].join(BOLD)
    return marked


def _number(cell: str) -> float:
    """The number that a cell begins with."""
    try:
        return float(cell.partition(" ")[0])
    except ValueError:
        return -math.inf


def percent(mean: float | None, deviation: float | None = None) -> str:
    """A fraction in percent, with its deviation."""
    if mean is None or math.isnan(mean):
        return MISSING
    text = f"{100 * mean:.2f}"
    if deviation is not None and not math.isnan(deviation):
        text += f" ± {100 * deviation:.2f}"
    return text


def decimal(mean: float | None, deviation: float | None = None) -> str:
    """A number that is no fraction, with its deviation."""
    if mean is None:
        return MISSING
    return f"{mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def count(value: float | None) -> str:
    """An integer with separators."""
    return MISSING if value is None or math.isnan(value) else f"{round(value):,}"


def image_count(number: int) -> str:
    """`1 image`, `12 images`."""
    return f"{number} image{'s' * (number != 1)}"


def in_shots(number: object) -> str:
    """`1 shot`, `16 shots`."""
    return f"{number} shot{'s' * (str(number) != '1')}"


def wrapped(lines: Sequence[str]) -> list[str]:
    """Sentences in lines of the usual width, whatever the terminal, because files keep them."""
    return [part for line in lines for part in textwrap.wrap(line, WRAPPED, break_on_hyphens=False)]


def paragraphs(said: Sequence[str], form: str) -> list[str]:
    """Sentences as a form has them below a table; csv holds tables alone."""
    if form == "markdown":
        return [textwrap.fill(harmless(each), width(), break_on_hyphens=False) for each in said]
    if form == "latex":
        return ["\n".join(f"% {line}" for line in wrapped([harmless(each)])) for each in said]
    return [f"<p>{html.escape(harmless(each))}</p>" for each in said] if form == "html" else []


def width() -> int:
    """Columns that a line may take."""
    return max(40, min(shutil.get_terminal_size((WIDEST, 24)).columns, 120))


def plain_table(rows: Sequence[Mapping[str, object]], numbers: bool = False) -> str:
    """A table to be read in a terminal, and as wide as that: long cells are wrapped, columns that
    are short stay whole, and so do names, if the first column holds such.

    Args:
        rows: cells by column; a row may lack some.
        numbers: all columns but the first are aligned to the right.
    """
    headers = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[harmless(row.get(name, "")) for name in headers] for row in rows]
    longest = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    room = width() - 2 * (len(headers) - 1)
    names = 0 if any(" " in row[0] for row in cells) else 1  # names stay whole
    by_length = sorted(range(names, len(headers)), key=lambda i: longest[i], reverse=True)
    room = max(room, sum(longest[:names]) + 12 * len(by_length))
    most: list[int | None] = [None] * len(headers)
    words = [max(len(word) for cell in column for word in (cell.split() or [""]))
             for column in zip(headers, *cells, strict=True)]  # fmt: skip
    for least, count in itertools.product((max(words), 12), range(1, len(by_length) + 1)):
        # as few columns are wrapped as will do, and words only if nothing else does
        rest = room - sum(longest[:names]) - sum(longest[i] for i in by_length[count:])
        if sum(longest) <= room:
            break
        if rest >= max(12, min(least, max(words[i] for i in by_length[:count]))) * count:
            for i in by_length[:count]:
                most[i] = rest // count
            break
    align = ["left"] + ["right" if numbers else "left"] * (len(headers) - 1)
    return tabulate(
        cells, headers=headers, tablefmt="simple", disable_numparse=True, maxcolwidths=most,
        break_on_hyphens=False, colalign=align,
    )  # fmt: skip


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for most, size, form in (
        (90, 1, "{:.0f} s"),
        (5400, 60, "{:.0f} min"),
        (172800, 3600, "{:.1f} h"),
    ):
        if seconds < most:
            return form.format(seconds / size)
    return f"{seconds / 86400:.1f} days"
