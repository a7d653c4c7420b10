"""`published`: numbers that papers print, and whether printed tables add up."""

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from harness.records.tables import harmless, plain_table, width

if TYPE_CHECKING:
    from pathlib import Path

    from harness.literature.arithmetic import Checked, Misfit
    from harness.literature.printed import Printed

COLUMNS = """\
A table is a CSV file whose first line names its columns, in one of two forms:

  method,dataset,base,new,hm            one row a line; `accuracy` instead for
  coop,imagenet,76.47,67.88,71.92       tasks without base and new
  coop,average,82.69,63.22,71.66

  method,dataset,evaluation,value       one number a line; `evaluation` is base,
  coop,imagenet,base,76.47              new, hm or accuracy

The dataset `average` is the printed average. Further columns that are read: paper,
table, task, backbone, shots (rows that differ in one of them are of different
tables) and note. Each HM is compared with 2bn / (b + n) of its base and
new, also in the row of the average. Each average is compared with the mean of the
printed datasets of its row, in cross_dataset and domain_generalization without
imagenet. A number may be off by what rounding to the printed decimals can change.
"""


def add(verbs: Any) -> None:
    """Adds the command and its parts to the parser."""
    published = verbs.add_parser(
        "published",
        help="published numbers: list their sources, show them, check the arithmetic of a table",
        description="Lists the sources of published numbers that come with the harness. "
        "`leaderboard --published` prints them beside yours.",
    )
    _json(published, default=False)
    published.set_defaults(does=listed)
    parts = published.add_subparsers(
        metavar="PART", dest="what", help="what to do (default: list the sources)"
    )
    show = parts.add_parser("show", help="print the numbers of sources and methods")
    show.add_argument(
        "names", metavar="NAMES", help="sources and methods, a comma list, such as "
        "dra (a source), coop (a method) or dra,coop (of the source the method); `all` for all",
    )  # fmt: skip
    show.add_argument("--task", metavar="NAME", help="only this task")
    show.add_argument("--datasets", metavar="NAMES", default="average", help="a comma list of "
                      "datasets, or `all` (default: %(default)s)")  # fmt: skip
    _json(show)
    show.set_defaults(does=shown)
    check = parts.add_parser(
        "check",
        help="test whether printed HMs and averages follow from the other printed numbers",
        description="Tests whether printed HMs and averages follow from the other printed\n"
        "numbers. The exit code is 1 if something does not add up.",
        epilog=COLUMNS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("files", nargs="*", metavar="FILE.csv", help="tables, or names of sources "
                       "(default: all sources)")  # fmt: skip
    _json(check)
    check.set_defaults(does=checked)


def _json(parser: argparse.ArgumentParser, default: Any = argparse.SUPPRESS) -> None:
    parser.add_argument(
        "--json", action="store_true", default=default, help="print JSON, with raw numbers"
    )


def listed(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.literature.published import sources

    every = sources()
    raw = [
        {"source": each.name, "file": str(each.path), "papers": each.papers, "tables": each.tables,
         "numbers": len(each.numbers), "misfits": len(each.checked.misfits), "urls": each.urls}
        for each in every.values()
    ]  # fmt: skip
    if arguments.json:
        return _dumped(raw)
    rows = [
        {"source": each.name, "numbers": len(each.numbers),
         "misfits": len(each.checked.misfits), "papers": _some(each.papers),
         "tables": _some(each.tables)}
        for each in every.values()
    ]  # fmt: skip
    print(plain_table(rows))
    print(f"\nThe files are in {harmless(next(iter(every.values())).path.parent)}. Where they come "
          "from:\n")  # fmt: skip
    for each in every.values():
        print("\n".join(harmless(f"{each.name:14}{url}") for url in each.urls))
    text = (
        "`published show NAMES` prints the numbers of sources and methods, `published check` says "
        "what does not add up (misfits), and `leaderboard --published` prints them beside yours."
    )
    print("\n" + textwrap.fill(text, width()))
    return 0


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + rest


def shown(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.literature import beside, compared

    tables, notes = compared.alone(arguments.names, arguments.task, arguments.datasets)
    if arguments.json:
        return _dumped([each.raw(alone=True) for each in tables])
    print(
        "\n\n".join(
            [
                *(beside.text(each, "markdown", alone=True) for each in tables),
                *map(beside.filled, notes),
            ]
        )
    )
    return 0


def checked(arguments: argparse.Namespace) -> int:
    """The exit code: 1 if something does not add up."""
    from harness.literature import arithmetic, printed, published

    code, raw = 0, []
    for path in map(published.table, arguments.files or published.sources()):
        table = printed.read_file(path)
        found = arithmetic.check(table.rows)
        code = code or int(bool(found.misfits or table.faults))
        raw.append(_raw(path, table, found))
        if not arguments.json:
            print(("\n" if len(raw) > 1 else "") + _text(path, table, found))
    if arguments.json:
        _dumped(raw)
    return code


def _raw(path: "Path", table: "Printed", found: "Checked") -> dict[str, Any]:
    return {
        "file": str(path),
        "hms_compared": found.harmonic,
        "averages_compared": found.averages,
        "misfits": [
            {
                "line": each.printed.line, "paper": each.row.where[0], "table": each.row.where[1],
                "method": each.row.method, "variant": each.row.variant, "dataset": each.dataset,
                "evaluation": each.evaluation, "printed": each.printed.value,
                "text": each.printed.text, "follows": each.follows, "tolerance": each.tolerance,
                "why": each.why,
            }
            for each in found.misfits
        ],
        "faults": [{"line": each.line, "row": each.row, "text": each.text, "why": each.why}
                   for each in table.faults],
        "averages_not_compared": [*found.unchecked],
        "not_compared": [*table.ignored],
    }  # fmt: skip


def _text(path: "Path", table: "Printed", found: "Checked") -> str:
    """What a reader wants to know of a file."""
    wrong = len(found.misfits)
    verdict = (
        "Nothing to compare: there is no HM beside a base and new, and no average beside datasets"
        if not found.harmonic + found.averages
        else f"{wrong} {'does' if wrong == 1 else 'do'} not add up"
        if wrong
        else "All add up"
    )
    if table.faults:
        number = len(table.faults)
        verdict += f"; {number} {'entry' if number == 1 else 'entries'} cannot be used"
    parts = [f"{path}: {found.harmonic} HMs and {found.averages} averages compared. {verdict}."]
    if found.unchecked:
        few = "; ".join(found.unchecked[:3])
        more = f"; and {len(found.unchecked) - 3} more" if len(found.unchecked) > 3 else ""
        parts.append(f"Averages not compared: {few}{more}.")
    if table.ignored:
        parts.append(f"Not compared: {', '.join(table.ignored)}.")
    rows: list[dict[str, object]] = [
        {
            "line": each.printed.line,
            "row": _short(f"{each.row.name}, {each.dataset}"),
            "printed": f"{each.evaluation} {each.printed.text}",
            "follows": _with_tolerance(each),
            "of": each.why,
        }
        for each in found.misfits
    ]
    rows += [
        {"line": each.line, "row": _short(each.row), "printed": _short(each.text), "of": each.why}
        for each in table.faults
    ]
    text = "\n".join(textwrap.fill(harmless(part), width()) for part in parts)
    return f"{text}\n\n{plain_table(rows)}" if rows else text


def _with_tolerance(misfit: "Misfit") -> str:
    """One decimal more than printed, so that no misfit looks like none."""
    decimals = misfit.printed.decimals + 1
    return f"{misfit.follows:.{decimals}f} ± {misfit.tolerance:.{decimals}f}"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _dumped(value: Any) -> int:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
    return 0
