"""`leaderboard`: tables of finished runs."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.cli import options
from harness.errors import HarnessError
from harness.leaderboards import costs
from harness.records.labels import differing, run_name
from harness.records.store import read_all
from harness.records.tables import FORMATS, harmless

if TYPE_CHECKING:
    from harness.leaderboards.leaderboard import Leaderboard


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    board = verbs.add_parser("leaderboard", help="print tables of finished runs")
    board.add_argument("--task", metavar="NAME", help="show only this task")
    board.add_argument(
        "--format", choices=(*FORMATS, "svg"), default="markdown",
        help="output format; svg plots accuracy against the cost given by --pareto "
        "(default: %(default)s)",
    )  # fmt: skip
    board.add_argument(
        "--pareto", choices=costs.COSTS, metavar="COST", help="mark the methods that no other "
        f"method beats in both accuracy and COST: {', '.join(costs.COSTS)} (all but params are "
        "measured by `run --tasks efficiency`)",
    )  # fmt: skip
    board.add_argument("--by-dataset", action="store_true", help="also print one table per dataset")
    board.add_argument(
        "--checks", action="store_true", help="list the runs that failed a sanity check"
    )
    board.add_argument(
        "--missing", action="store_true", help="print the commands that make the runs that "
        "incomplete rows lack",
    )  # fmt: skip
    board.add_argument(
        "--metrics", nargs="?", const="", metavar="NAMES", help="show other metrics beside top-1: "
        "a comma list of top5, per-class, ece (calibration error) and nll (negative "
        "log-likelihood); all of them without NAMES",
    )  # fmt: skip
    board.add_argument(
        "--methods", metavar="NAMES", help="only these; comma lists and wildcards; places and p "
        "are then among these alone",
    )  # fmt: skip
    board.add_argument("--datasets", metavar="NAMES", help="only these; the average is over them")
    board.add_argument("--backbone", metavar="NAMES", help="only these")
    board.add_argument(
        "--sort", metavar="COLUMN", help="order methods by a column, such as HM, base, params or "
        "method",
    )  # fmt: skip
    board.add_argument(
        "--against", metavar="METHOD", help="compare every method with this one, which tells more "
        "apart than comparing each with each",
    )  # fmt: skip
    board.add_argument(
        "--all-columns", action="store_true", dest="every_column", help="also show deviations over "
        "seeds, the mean of the datasets' HMs, and how many seeds and runs there are",
    )  # fmt: skip
    board.add_argument("--json", action="store_true", help="print raw numbers, with those of "
        "--metrics and --published")  # fmt: skip
    board.add_argument(
        "--published", nargs="?", const="", metavar="NAMES", help="also print published numbers "
        "beside yours, where task, backbone and shots agree: of the sources and methods in a comma "
        "list, such as dra or dra,coop (default: all sources, your methods); `all` shows methods "
        "that you have not run, too; `published` lists the sources",
    )  # fmt: skip
    options.results(board)
    board.set_defaults(does=show)


def show(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.leaderboards.leaderboard import Leaderboard

    names = ("task", "by_dataset", "pareto", "methods", "datasets", "backbone", "sort",
             "against", "every_column")  # fmt: skip
    asked = {name: getattr(arguments, name) for name in names}
    board = Leaderboard(read_all(arguments.results), **asked)
    _check(arguments)
    if arguments.missing:
        from harness.cli import missing

        lines = missing.commands(board, registry.load([]))
        print("\n".join(map(harmless, lines)) or "Nothing is missing.")
        others = missing.other_shards(board.chosen()) if lines else ""
        if others:
            print(others, file=sys.stderr)
    elif arguments.checks:
        records = board.chosen()
        apart = differing(record.run for record in records)
        for record in records:
            for check in record.checks:
                print(harmless(f"{run_name(record.run, apart)}: {check}"))
    elif arguments.json:
        print(_as_json(arguments, board))
    elif arguments.metrics is not None:
        from harness.leaderboards import metric_tables, metrics

        print(metric_tables.text(board, metrics.chosen(arguments.metrics), arguments.format))
    else:
        print(board.text(arguments.format))
        if arguments.published is not None:
            from harness.literature.beside import beside

            print("\n" + beside(board, arguments.published, arguments.format))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises HarnessError for two answers at once."""
    asked = {
        "--missing": arguments.missing, "--checks": arguments.checks,
        "--metrics": arguments.metrics is not None, "--published": arguments.published is not None,
    }  # fmt: skip
    given = [name for name, there in asked.items() if there]
    lines = [name for name in given if name in ("--missing", "--checks")]
    other = "--json" if arguments.json else next(iter(lines), "--metrics" if "--metrics" in given
                                                 else f"--format {arguments.format}")  # fmt: skip
    unread = {
        "--against": other not in ("--json", "--format markdown", "--format latex"),
        "--pareto": other not in ("--format markdown", "--format latex", "--format svg"),
        "--sort": other in ("--missing", "--checks", "--format svg"),
        "--by-dataset": other not in ("--metrics", "--format markdown", "--format latex"),
        "--all-columns": other not in ("--format markdown", "--format latex"),
    }  # fmt: skip
    given_options = {
        "--against": arguments.against, "--pareto": arguments.pareto, "--sort": arguments.sort,
        "--by-dataset": arguments.by_dataset, "--all-columns": arguments.every_column,
    }  # fmt: skip
    for option, useless in unread.items():
        if useless and given_options[option]:
            raise HarnessError(f"{option} is not for {other}: leave it out.")
    if arguments.format != "markdown" and (arguments.json or lines):
        said = "--json" if arguments.json else lines[0]
        raise HarnessError(f"{said} prints no table: leave out --format {arguments.format}.")
    if arguments.json:
        if lines:
            raise HarnessError(f"{lines[0]} prints lines, and no JSON: leave out --json.")
    elif len(given) > 1:
        raise HarnessError(f"{' and '.join(given)} are different answers: ask for one at a time.")


def _as_json(arguments: argparse.Namespace, board: "Leaderboard") -> str:
    """One object: the tables, and what else was asked for."""
    from harness.leaderboards import metric_tables, metrics
    from harness.literature import compared, published

    content = {"tables": json.loads(board.text("json"))}
    if arguments.metrics is not None:
        names = metrics.chosen(arguments.metrics)
        content["metrics"] = [line.raw() for line in metric_tables.lines(board, names)]
    if arguments.published is not None:
        found = compared.compared(board, published.wanted(arguments.published))
        content["published"] = [row for each in found for row in each.raw()]
    return json.dumps(content, indent=1, allow_nan=False)
