"""Numbers as a table prints them, read from csv text: one line a number, or one line a row."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import HarnessError
from harness.files import reason, regular_file, shown

EVALUATIONS = ("base", "new", "hm", "accuracy")
WHERE = ("paper", "table", "task", "backbone", "shots")
ONE_A_LINE = ("method", "dataset", "evaluation", "value")
AVERAGE = "average"
AVERAGES = {"average", "avg", "avg.", "mean"}
ABSENT = {"", "-", "–", "—", "n/a", "na", "nan", "none"}
NUMBER = re.compile(r"[+-]?\d+(?:\.(\d*))?")
MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class Number:
    """A printed number: its text, and the decimals that it has."""

    line: int
    text: str
    value: float
    decimals: int
    note: str = ""
    url: str = ""

    @property
    def half(self) -> float:
        """What rounding may have changed: half a unit of the last decimal."""
        return 0.5 * 10.0**-self.decimals


@dataclass(frozen=True)
class Row:
    """What one table prints of one method: numbers by dataset and evaluation.

    where: values of WHERE; variant: which of several rows of the method, by its note.
    """

    where: tuple[str, ...]
    method: str
    variant: str = ""
    numbers: dict[tuple[str, str], Number] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.where[WHERE.index("task")]

    @property
    def name(self) -> str:
        """The method, with what tells several rows of it apart."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    def of(self, dataset: str) -> dict[str, Number]:
        """The numbers of a dataset by evaluation."""
        return {evaluation: number for (name, evaluation), number in self.numbers.items()
                if name == dataset}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A line that says nothing, or what another line has said already."""

    line: int
    row: str
    text: str
    why: str


@dataclass(frozen=True)
class Printed:
    """The rows of a file, what is wrong with its lines, and which columns and evaluations were
    left out."""

    rows: Sequence[Row]
    faults: Sequence[Fault]
    ignored: Sequence[str]


def read_file(path: Path) -> Printed:
    """The printed numbers of a csv file.

    Raises:
        HarnessError: it cannot be read, or has no columns of either form.
    """
    try:
        with regular_file(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise HarnessError(f"{shown(path)} cannot be read: {reason(error)}.") from None
    if len(content) > MOST_BYTES:
        raise HarnessError(f"{shown(path)} is no table: it has more than {MOST_BYTES:,} bytes.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise HarnessError(
            f"{shown(path)} is not UTF-8 text: save it as CSV in the encoding UTF-8."
        ) from None
    return read(text, shown(path))


def read(text: str, name: str) -> Printed:
    """The printed numbers of csv text; `name` is what errors call it.

    Raises:
        HarnessError: it has no columns of either form, or is no csv.
    """
    lines = _lines(text, name)
    header = [cell.strip().lower() for cell in next(lines, (0, []))[1]]
    long = {*ONE_A_LINE} <= {*header}
    values = ["value"] if long else [each for each in EVALUATIONS if each in header]
    if not {"method", "dataset"} <= {*header} or not values:
        raise HarnessError(
            f"{name} needs a first line of column names: {', '.join(ONE_A_LINE)} (one number a "
            "line), or method, dataset and some of base, new, hm, accuracy (one row a line)."
        )
    if twice := sorted({each for each in header if each and header.count(each) > 1}):
        raise HarnessError(f"{name} has the column {', '.join(twice)} twice.")
    known = {*WHERE, *ONE_A_LINE[:2], *values, "note", "source_url", *["evaluation"] * long}
    found, faults = list[tuple[tuple[str, ...], str, str, str, Number]](), list[Fault]()
    for line, cells in lines:
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        if not any(cells):
            continue
        label = ", ".join(filter(None, (row.get("method"), row.get("dataset"))))
        if len(cells) != len(header):
            faults.append(
                Fault(line, label, "", f"has {len(cells)} instead of {len(header)} cells")
            )
            continue
        dataset = AVERAGE if row["dataset"].lower() in AVERAGES else row["dataset"]
        where = tuple(row.get(each, "") for each in WHERE)
        for column in values:
            evaluation = row["evaluation"].lower() if long else column
            if row[column].lower() in ABSENT:
                continue
            number = _number(row[column], line, row.get("note", ""), row.get("source_url", ""))
            if number is None:
                faults.append(Fault(line, label, f"{evaluation} {row[column]}", "is no number"))
            elif evaluation in EVALUATIONS and not 0 <= number.value <= 100:
                why = "is not between 0 and 100"
                faults.append(Fault(line, label, f"{evaluation} {row[column]}", why))
            else:
                found.append((where, row["method"], dataset, evaluation, number))
    rows, repeated = _rows(found)
    others = dict.fromkeys(each[3] for each in found if each[3] not in EVALUATIONS)
    ignored = [f"column {each}" for each in header if each and each not in known]
    ignored += [f"evaluation {each or 'without a name'}" for each in others]
    return Printed(rows, sorted([*faults, *repeated], key=lambda each: each.line), ignored)


def _lines(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells; the separator is that of the first line: comma, semicolon or tab."""
    first = next(iter(text.splitlines()), "")
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=separator)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise HarnessError(f"{name}, line {line} is no csv: {error}.") from None


def _number(text: str, line: int, note: str, url: str) -> Number | None:
    """`83.08`, also as `83.08%`, `**83.08**`, `83.08 ± 0.31`; None if it is none of these."""
    plain = re.split(r"±|\+/-|\(", text.replace("\N{MINUS SIGN}", "-"))[0]
    plain = plain.strip("*% ").replace(",", ".")  # a comma within a cell is a decimal comma
    match = NUMBER.fullmatch(plain) if plain.isascii() and len(plain) < 40 else None
    if match is None or not math.isfinite(float(plain)):
        return None
    return Number(line, text, float(plain), len(match[1] or ""), note, url)


def _rows(
    found: Sequence[tuple[tuple[str, ...], str, str, str, Number]],
) -> tuple[list[Row], list[Fault]]:
    """Numbers to rows. If a method has several numbers for one cell, notes tell its rows apart;
    without different notes it is a fault."""
    cells = dict[tuple[tuple[str, ...], str], dict[tuple[str, str], list[Number]]]()
    for where, method, dataset, evaluation, number in found:
        of_row = cells.setdefault((where, method), {})
        of_row.setdefault((dataset, evaluation), []).append(number)
    rows, faults = list[Row](), list[Fault]()
    for (where, method), of_row in cells.items():
        variants: Mapping[bool, dict[str, Row]] = {False: {}, True: {}}
        for (dataset, evaluation), numbers in of_row.items():
            several = len({each.note for each in numbers}) > 1
            for number in numbers:
                variant = number.note if several else ""
                row = variants[several].setdefault(variant, Row(where, method, variant))
                first = row.numbers.setdefault((dataset, evaluation), number)
                if first is not number:
                    label = f"{row.name}, {dataset}"
                    why = f"is there already, as {first.text} in line {first.line}"
                    faults.append(Fault(number.line, label, f"{evaluation} {number.text}", why))
        rows += [*variants[False].values(), *variants[True].values()]
    return rows, faults
