"""Tables of printed numbers beside ours: the difference, and whether our interval holds them."""

import textwrap
from collections.abc import Sequence

from harness.errors import HarnessError
from harness.leaderboards.leaderboard import Leaderboard
from harness.literature import published
from harness.literature.compared import compared
from harness.literature.lines import OURS, Compared, Line
from harness.records.tables import MISSING, format_table, in_shots, width

HEADS = {"hm": "HM"}
DERIVED = ("mean of the ", "of the printed ")  # begins a note on what other numbers come to


def beside(board: Leaderboard, names: str = "", form: str = "markdown") -> str:
    """Tables of printed numbers and ours; a sentence if nothing printed is of what was measured.

    names: see published.wanted.

    Raises:
        HarnessError: an unknown name, or a form that is no table.
    """
    if form == "svg":
        raise HarnessError("--published prints tables: leave out --format svg.")
    wanted = published.wanted(names)
    if found := compared(board, wanted):
        if form == "csv":
            return format_table([row for each in found for row in _raw(each)], form, "")
        return "\n\n".join(text(each, form) for each in found)
    had = dict[str, dict[str, None]]()
    for record in board.chosen():
        run, split = record.run, record.run["settings"].get("split", "test")
        on = "" if split == "test" else f", scored on {split} images"
        where = f"{run['task']} on {run['backbone']}, {in_shots(run['shots'])}{on}"
        had.setdefault(where, {})[run["method"]] = None
    records = "; ".join(f"{where}, of {_some([*of])}" for where, of in had.items())
    return filled(
        f"Published numbers: nothing to compare. None is of these records: {records}. "
        f"There are printed numbers of {published.available(wanted.rows)}."
    )


def _some(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    rest = f" and {more} more method{'s' * (more > 1)}" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def text(compared: Compared, form: str, alone: bool = False) -> str:
    """A table, ours above what is printed of the same method; `alone`: there are no ours."""
    lines = compared.lines
    names = [name for name in OURS if any(name in line.printed for line in lines)]
    rows, last = list[dict[str, str]](), ""
    for line in lines:
        main = line.main
        if line.ours and line.label != last:
            rows.append(_ours_row(line, names))
        last = line.label
        row = {"method": line.label, "source": _places(line.whose)}
        row |= {_head(name): _printed(line, name) for name in names}
        if not alone:
            number, mine = line.printed.get(main), line.ours.get(main)
            apart = number and mine and 100 * mine.value - number.value
            inside = {True: "inside", False: "outside", None: MISSING}[line.inside(main)]
            row |= {"difference": f"{apart:+.2f}" if apart is not None else MISSING}
            row |= {"our 95%": inside}
        rows.append(row)
    heads = " and ".join(dict.fromkeys(_head(line.main) for line in lines))
    notes = [f"{'Printed numbers' if alone else 'Printed beside measured'}: {compared.title}."]
    if not alone and any(line.ours for line in lines):
        notes += [
            f"Percent. Difference: our {heads} minus the printed one. Our 95%: the interval of our "
            f"{heads}, and whether the printed one lies inside. The printed one has an error of "
            "its own, which is not known.",
        ]
    if any(where.endswith(" (mean)") for line in lines for where in line.whose):
        notes.append("(mean): averaged here from the printed datasets, over the same as ours.")
    if any(len(line.whose) > 1 for line in lines):
        notes.append("+n: n more places print the same; `published show NAMES --json` lists all.")
    notes += compared.notes
    about = dict[str, dict[str, None]]()
    for line in lines:
        for number in line.printed.values():
            said = [each for each in number.note.split("; ") if not each.startswith(DERIVED)]
            if note := "; ".join(filter(None, said)):
                about.setdefault(note, {})[line.label] = None
    notes += [f"{_some([*labels])}: {note}." for note, labels in about.items()]
    wrong = dict.fromkeys(why for line in lines for why in line.misfits.values())
    notes += [f"*: {why}." for why in wrong]
    return format_table(rows, form, "\n".join(map(filled, notes)))


def _ours_row(line: Line, names: Sequence[str]) -> dict[str, str]:
    row = {"method": line.label, "source": "ours"}
    for name in names:
        mine = line.ours.get(name)
        row[_head(name)] = f"{100 * mine.value:.2f}" if mine else MISSING
    mine, row["difference"], row["our 95%"] = line.ours.get(line.main), "", MISSING
    if mine is not None and mine.low is not None and mine.high is not None:
        row["our 95%"] = f"{100 * mine.low:.2f} to {100 * mine.high:.2f}"
    return row


def _printed(line: Line, name: str) -> str:
    number = line.printed.get(name)
    return MISSING if number is None else number.text + "*" * (name in line.misfits)


def _places(whose: Sequence[str]) -> str:
    return whose[0] + (f" +{len(whose) - 1}" if len(whose) > 1 else "")


def _head(name: str) -> str:
    return HEADS.get(name, name)


def _raw(compared: Compared) -> list[dict[str, str]]:
    """A row for each printed number; ours as fractions."""
    rows = []
    for line in compared.raw()["rows"]:
        for evaluation, number in line["numbers"].items():
            row = {
                "table": compared.title,
                "method": line["method"],
                "printed_in": "; ".join(line["printed_in"]),
                "evaluation": evaluation,
            }
            row |= {name: "" if value is None else str(value) for name, value in number.items()}
            rows.append(row)
    return rows


def filled(sentence: str) -> str:
    """A sentence as wide as the terminal."""
    return textwrap.fill(sentence, width(), break_on_hyphens=False, break_long_words=False)
