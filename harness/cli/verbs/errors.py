"""`errors`: which images a run got wrong."""

import argparse
import json
from typing import Any

from harness.cli import chosen
from harness.errors import HarnessError, unknown
from harness.records.labels import run_name
from harness.records.record import Record
from harness.records.tables import harmless


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    errors = verbs.add_parser(
        "errors",
        help="show which images a run got wrong, by class and by image",
        description="Show what a finished run got wrong: the worst classes, the classes that it "
        "confuses most, and its most confident mistakes with the paths of their images.",
    )
    errors.add_argument(
        "run", nargs="?", metavar="RUN", help="a method as the leaderboard names it, the key of a "
        "record or its beginning, or a record's file; if several runs are meant, they are listed "
        "with their keys",
    )  # fmt: skip
    chosen.add(errors)
    errors.add_argument(
        "--evaluation", metavar="NAME", help="only this one, such as base or new (default: all)"
    )
    errors.add_argument(
        "--classes", type=int, default=10, metavar="N", help="show at most N classes, and as many "
        "confused pairs (default: %(default)s)",
    )  # fmt: skip
    errors.add_argument(
        "--images", type=int, default=10, metavar="N", help="show at most N images (default: "
        "%(default)s)",
    )  # fmt: skip
    forms = errors.add_mutually_exclusive_group()
    forms.add_argument(
        "--format", choices=("text", "csv"), default="text", help="csv has all classes and no "
        "images (default: %(default)s)",
    )  # fmt: skip
    forms.add_argument(
        "--json", action="store_true", help="print all classes, pairs and wrong images, with "
        "numbers that are not rounded",
    )  # fmt: skip
    errors.set_defaults(does=show)


def show(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.leaderboards import mistake_tables, mistakes
    from harness.records import predictions

    for name in ("classes", "images"):
        if (number := getattr(arguments, name)) < 0:
            raise HarnessError(f"--{name} {number}: give a number from 0.")
    record = chosen.chosen(arguments)
    evaluations = _evaluations(record, arguments.evaluation)
    if arguments.json:
        print(json.dumps(mistakes.raw(record, evaluations), indent=1, allow_nan=False))
    elif not evaluations:
        print(harmless(f"{run_name(record.run)} ({record.key}) {_ended(record)}"))
    elif arguments.format == "csv":
        try:
            print(mistake_tables.csv(record, evaluations))
        except predictions.Missing as reason:
            raise HarnessError(f"there is no table of classes: {reason}.") from reason
    else:
        print(mistake_tables.text(record, evaluations, arguments.classes, arguments.images))
    return 0


def _ended(record: Record) -> str:
    if record.measures:
        return "measured costs: it has no predictions."
    how = "failed" if record.status == "failed" else "is not applicable"
    return f"{how}, and so has no predictions: {record.reason.rstrip('.') or 'nothing is said'}."


def _evaluations(record: Record, asked: str | None) -> list[str]:
    """Those that were asked for, of a run that is done."""
    there = list(record.scores) if record.status == "done" else []
    if asked is None or not there:
        return there
    if asked not in there:
        raise HarnessError(f"--evaluation: {unknown('evaluation', asked, there)}")
    return [asked]
