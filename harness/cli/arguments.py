"""The parser of the command line."""

import argparse

from harness import __version__
from harness.cli.verbs import bench, compare, data, leaderboard, names, published, recommend, run


def parser() -> argparse.ArgumentParser:
    """The parser of all commands: `command` is the chosen one, `what` the part of `data`."""
    top = argparse.ArgumentParser(
        prog="python -m harness",
        description="Compare parameter-efficient fine-tuning methods for CLIP-like vision-language "
        "models under one protocol.",
    )
    top.add_argument("--version", action="version", version=f"vlm-peft-harness {__version__}")
    verbs = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (
        run.add,
        recommend.add,
        leaderboard.add,
        compare.add,
        published.add,
        data.add,
        bench.add,
        names.add_list,
        names.add_show,
    ):
        add(verbs)
    return top
