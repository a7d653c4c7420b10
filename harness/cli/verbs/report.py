"""`report`: finished runs as one HTML file."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from harness.cli import options
from harness.errors import HarnessError
from harness.records.store import Store, atomically
from harness.records.tables import harmless

OUT = Path("report.html")
START = 1000  # characters in which the file says what made it


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "report",
        help="write finished runs as one HTML file that opens offline",
        description="Write a report of finished runs: one HTML file that needs no network, with "
        "tables, intervals, pictures, worst classes, sample mistakes and where it all comes from.",
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="FILE", help="where to write it; a file that this "
        "command did not make is never replaced (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--task", metavar="NAME", help="only this task")
    parser.add_argument(
        "--thumbnails", action="store_true", help="also show images of datasets below --data-root; "
        "without it only embedded images are shown, because a report is easily passed on and many "
        "images may not be",
    )  # fmt: skip
    parser.add_argument(
        "--samples", action="store_true", help="also show three test images of each class, of the "
        "embedded datasets and of those that --thumbnails shows",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print what was written as JSON: the file, its size, "
        "and how many tables, methods, runs and pictures it shows",
    )  # fmt: skip
    options.root(parser)
    options.plugin(parser)
    options.results(parser)
    parser.set_defaults(does=write)


def write(arguments: argparse.Namespace) -> int:
    """The exit code."""
    out = _writable(arguments.out)
    if arguments.thumbnails and not arguments.data_root:
        raise HarnessError("--thumbnails needs --data-root DIR, the folder that holds the images.")
    from harness.cli.thumbnails import CREDIT, Thumbnails
    from harness.report import content, page, sheets

    records = [each for folder in arguments.results for each in Store(folder).records()]
    if arguments.task is not None:
        there = sorted({record.run["task"] for record in records if not record.measures})
        if arguments.task not in there:
            known = ", ".join(there) or "none"
            raise HarnessError(f"--task {arguments.task}: no record is of it. There is: {known}.")
        records = [r for r in records if r.measures or r.run["task"] == arguments.task]
    root = arguments.data_root if arguments.thumbnails else None
    pictures = Thumbnails(root, tuple(arguments.plugin))
    found = content.report(records, pictures.of)
    found["sheets"] = sheets.sheets(records, pictures.strip) if arguments.samples else []
    text = page.page(found, [CREDIT] if pictures.embedded else [])
    try:
        atomically(out, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
    except OSError as error:
        raise HarnessError(f"{out} cannot be written: {error.strerror}.") from error
    if root is not None:
        for dataset in pictures.unseen:
            line = f"no image of {dataset} could be shown from {root}; is it another --data-root?"
            print(harmless(line), file=sys.stderr)
    about = found["about"]
    done = {
        "file": os.fspath(out), "bytes": len(text.encode()), "tables": len(found["chapters"]),
        "methods": about["methods"], "runs": about["runs"],
        "pictures": found["pictures"] + sum(len(each["classes"]) for each in found["sheets"]),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(done))
    else:
        print(f"Wrote {out} ({done['bytes'] / 1000:,.0f} kB). Open it in a browser.")
    return 0


def _writable(out: Path) -> Path:
    """`out`, if nothing is lost by writing it.

    Raises:
        HarnessError: its folder is not there, or it is something else than an earlier report.
    """
    from harness.report.page import GENERATOR

    if not out.parent.is_dir():
        raise HarnessError(f"--out {out}: there is no folder {out.parent}. Make it first.")
    if not os.path.lexists(out):
        return out
    mine = False
    if out.is_file() and not out.is_symlink():
        try:
            with out.open(encoding="utf-8", errors="replace") as file:
                mine = f'name="generator" content="{GENERATOR}"' in file.read(START)
        except OSError as error:
            raise HarnessError(f"--out {out} cannot be read: {error.strerror}.") from error
    if not mine:
        raise HarnessError(
            f"--out {out} is there already, and is no report of this command: it is not replaced. "
            "Name another file, or remove it."
        )
    return out
