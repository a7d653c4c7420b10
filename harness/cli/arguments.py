"""The parser of the command line."""

import argparse
from typing import Any

from harness import __version__
from harness.cli.verbs import (
    bench,
    compare,
    data,
    errors,
    export,
    leaderboard,
    names,
    paper,
    predict,
    published,
    recommend,
    report,
    run,
    status,
)

VERBS = (
    run, recommend, predict, export, status, leaderboard, compare, errors, report, published,
    paper, data, names, bench,
)  # fmt: skip


class WholeWords(argparse.ArgumentParser):
    """Options are written out: who reads a record's command looks for their names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def parser() -> argparse.ArgumentParser:
    """The parser of all commands: `command` is the chosen one, `what` the part of `data`."""
    top = WholeWords(
        prog="python -m harness",
        description="Compare parameter-efficient fine-tuning methods for CLIP-like vision-language "
        "models under one protocol.",
    )
    top.add_argument("--version", action="version", version=f"vlm-peft-harness {__version__}")
    verbs = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for verb in VERBS:
        verb.add(verbs)
    return top
