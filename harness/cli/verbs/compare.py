"""`compare`: is one method better than another?"""

import argparse
from typing import Any

from harness.cli import options
from harness.records.store import read_all


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    text = "say whether one method is better than another, and how sure that is"
    parser = verbs.add_parser(
        "compare",
        help=text,
        description="Say whether one method is better than another, and how sure that is: the "
        "difference, its 95% interval, p for this pair and adjusted for all pairs of the table, "
        "for other seeds, other images, and other datasets, and for each dataset.",
        epilog="`leaderboard` compares all methods at once.",
    )
    parser.add_argument("first", metavar="METHOD", help="a row of the leaderboard")
    parser.add_argument("second", metavar="METHOD", help="another one: dra, or 'dra[rank=8]'")
    parser.add_argument("--task", metavar="NAME", help="only this task")
    parser.add_argument("--json", action="store_true", help="print raw numbers as JSON")
    options.results(parser)
    parser.set_defaults(does=compare)


def compare(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.certainty import comparison

    records = read_all(arguments.results)
    found = comparison.compare(records, arguments.first, arguments.second, arguments.task)
    print(comparison.as_json(found) if arguments.json else comparison.text(found))
    return 0
