"""Which run a command means: by a method's name, a key or a record's file."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.cli import options
from harness.errors import HarnessError, unknown
from harness.files import regular_file
from harness.records.labels import method_label
from harness.records.record import Record, parse
from harness.records.store import read_all
from harness.records.tables import plain_table

CHOICES = ("task", "dataset", "backbone", "shots", "seed")
MOST = 20  # runs that are listed


def add(parser: argparse.ArgumentParser) -> None:
    """The options that choose among several runs."""
    for name in ("task", "dataset", "backbone"):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"a run of this {name}")
    parser.add_argument("--shots", type=int, metavar="N", help="a run with N images a class")
    parser.add_argument("--seed", type=int, metavar="N", help="a run with this seed")
    options.results(parser)


def chosen(arguments: argparse.Namespace) -> Record:
    """The one run that the arguments mean.

    Raises:
        HarnessError: none or several, with what there is.
    """
    name = arguments.run
    if name is not None and is_file(name):
        found = [of_file(Path(name))]
    else:
        found = _named(read_all(arguments.results), name)
    for choice in CHOICES:
        asked = getattr(arguments, choice)
        if asked is not None:
            there = {str(record.run[choice]) for record in found}
            if str(asked) not in there:
                known = ", ".join(sorted(there, key=lambda each: (len(each), each)))
                raise HarnessError(
                    f"no run of {name or 'these'} has {choice} {asked}: there is {known}."
                )
            found = [record for record in found if record.run[choice] == asked]
    if len(found) > 1:
        raise HarnessError(_several(found, name))
    return found[0]


def is_file(name: str) -> bool:
    """Whether a file is meant rather than a method or a key."""
    return name.endswith((".json", ".safetensors")) or os.sep in name


def of_file(path: Path) -> Record:
    """The record in a file.

    Raises:
        HarnessError: it is none.
    """
    try:
        text = regular_file(path).read_text(encoding="utf-8")
        return replace(parse(text), file=path.absolute())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HarnessError(
            f"{path} is not a record that can be read: {reason}. Give the .json file of a run."
        ) from error


def _named(records: Sequence[Record], name: str | None) -> list[Record]:
    """The runs with a key, of a method with its settings, of a method with any, or with a key that
    begins so; never none."""
    runs = [record for record in records if not record.measures]
    ways = (
        [record for record in records if record.key == name],
        [record for record in runs if name in (None, method_label(record.run))],
        [record for record in runs if name == record.run["method"]],
        [record for record in records if name and record.key.startswith(name)],
    )
    for found in ways:
        if found:
            return found
    if not runs or name is None:
        raise HarnessError(
            "there are no runs with predictions. Start with `python -m harness run`, or name "
            "another folder with --results DIR."
        )
    methods = {record.run["method"] for record in runs}
    raise HarnessError(f"no run is meant: {unknown('method or key', name, methods)}")


def _several(found: Sequence[Record], given: str | None) -> str:
    """A list of runs, with what tells them apart."""
    rows = [
        {
            "key": record.key, "method": method_label(record.run),
            **{choice: str(record.run[choice]) for choice in CHOICES},
            "status": record.status, "made": record.time[:16].replace("T", " "),
        }
        for record in found
    ]  # fmt: skip
    apart = [name for name in rows[0] if len({row[name] for row in rows}) > 1]
    told = {tuple(row[name] for name in apart if name not in ("key", "made")) for row in rows}
    if len(told) == len(rows):  # nobody needs the time
        apart = [name for name in apart if name != "made"]
    shown = [{name: row[name] for name in dict.fromkeys(["key", "method", *apart])} for row in rows]
    more = f"\n... and {len(rows) - MOST} more" if len(rows) > MOST else ""
    ways = ["a method"] if "method" in apart else []
    ways += [f"--{choice}" for choice in CHOICES if choice in apart]
    return (
        f"{len(found)} runs are meant{f' by {given}' if given else ''}:\n\n"
        f"{plain_table(shown[:MOST])}{more}\n\n"
        f"Choose one with {' or '.join(filter(None, [', '.join(ways), 'its key']))}."
    )
