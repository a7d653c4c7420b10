"""The commands' arguments and help texts."""

import argparse
import os
from pathlib import Path
from typing import Any

from harness import __version__
from harness.config import cache_folder
from harness.records import costs
from harness.records.tables import FORMATS

DEFAULT_BACKBONE = "emoji-mini"
RESULTS = Path("results/runs")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands: `command` is the chosen one, `what` the part of `data`."""
    top = argparse.ArgumentParser(
        prog="python -m harness",
        description="Compare parameter-efficient fine-tuning methods for CLIP-like vision-language "
        "models under one protocol.",
    )
    top.add_argument("--version", action="version", version=f"vlm-peft-harness {__version__}")
    verbs = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (_add_run, _add_leaderboard, _add_data, _add_bench, _add_list, _add_show):
        add(verbs)
    return top


def _add_run(verbs: Any) -> None:
    run = verbs.add_parser(
        "run",
        help="run methods on tasks, then print the leaderboard",
        description="Run every method on every task and dataset, once per seed, and print the "
        "leaderboard. Finished runs are kept, so the same command continues where it stopped.",
        epilog="NAMES are comma-separated and may contain wildcards: --methods 'dra*,adapter'.",
    )
    run.add_argument(
        "--methods", required=True, metavar="NAMES", help="methods to run; see `list methods`"
    )
    run.add_argument(
        "--tasks", required=True, metavar="NAMES", help="tasks to run; see `list tasks`"
    )
    run.add_argument(
        "--datasets",
        metavar="NAMES",
        help="see `list datasets`; folder:PATH or csv:FILE for your own images "
        "(default: the task's own datasets, or the eight embedded emoji datasets)",
    )
    _add_own(run)
    run.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        metavar="NAME",
        help="pretrained model; see `list backbones` (default: %(default)s)",
    )
    run.add_argument("--shots", default="16", metavar="LIST", help="training images per class: 4, "
                     "or several values, 1,2,4 (default: 16)")  # fmt: skip
    run.add_argument(
        "--forgetting", action="store_true", help="with few_shot: also report how the fit "
        "changes the accuracy on the other selected datasets",
    )  # fmt: skip
    run.add_argument(
        "--seeds", default="1", metavar="LIST", help="seeds: 1,2,3 or 1-3 (default: 1)"
    )
    _add_root(run)
    run.add_argument(
        "--config",
        type=Path,
        metavar="FILE.gin",
        help="file of settings, one `name.field = value` per line",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME.FIELD=VALUE",
        help="change one setting of a method, a task or `engine`; overrides --config; repeatable",
    )
    run.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME.FIELD=V1,V2,...",
        help="run once for each value; repeat for all combinations of several settings",
    )
    run.add_argument(
        "--views", type=int, metavar="N", help="augment each training image in only N ways, so "
        "that long fits can train from cached features; an approximation (default: 0, a new "
        "augmentation in every epoch, as published)",
    )  # fmt: skip
    run.add_argument(
        "--device", metavar="NAME", help="cuda, cuda:1 or cpu (default: cuda if available)"
    )
    run.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="numerical precision "
                     "(default: auto, which is bf16 on CUDA and fp32 elsewhere)")  # fmt: skip
    _add_cache(run)
    run.add_argument(
        "--jobs", type=int, metavar="N", help="number of processes that share the runs and the "
        "CPU threads; 0: one for each thread (default: 1, and 0 on emoji-mini)",
    )  # fmt: skip
    run.add_argument(
        "--on-bad-image", choices=("error", "skip"), help="if images cannot be read: stop before "
        "the first fit, or leave them out and record that (default: error)",
    )  # fmt: skip
    run.add_argument(
        "--check-images", action="store_true", help="with --dry-run: open every image of the plan"
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, with what methods change by task, and stop",
    )
    run.add_argument("--force", action="store_true", help="repeat runs that are already done")
    run.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="folder for the records "
        "(default: %(default)s)",
    )  # fmt: skip
    _add_plugin(run)


def _add_list(verbs: Any) -> None:
    kinds = ("methods", "tasks", "datasets", "backbones")
    listing = verbs.add_parser("list", help="list methods, tasks, datasets or backbones")
    listing.add_argument("kind", choices=kinds, help="what to list")
    _add_plugin(listing)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser(
        "show", help="describe a method, task, dataset or `engine`, with all its settings"
    )
    show.add_argument("name", help="a name from `list`, or `engine`")
    _add_plugin(show)


def _add_leaderboard(verbs: Any) -> None:
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
    board.add_argument("--methods", metavar="NAMES", help="only these; comma lists and wildcards")
    board.add_argument("--datasets", metavar="NAMES", help="only these; the average is over them")
    board.add_argument("--backbone", metavar="NAMES", help="only these")
    board.add_argument(
        "--sort", metavar="COLUMN", help="order methods by a column, such as HM, base, params or "
        "method",
    )  # fmt: skip
    board.add_argument(
        "--results", type=Path, nargs="+", default=[RESULTS], metavar="DIR", help="one or more "
        f"folders of records (default: {RESULTS})",
    )  # fmt: skip


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser(
        "data",
        help="find, download and check datasets; inspect the cache",
        description="Find, download and check the datasets that are read from disk, and inspect "
        "the cache. The emoji datasets are embedded and need no download.",
    )
    whats = data.add_subparsers(required=True, metavar="WHAT", dest="what")
    for what, text, names in (
        ("status", "show which datasets are on disk, what is missing, and where to get it", "*"),
        ("prepare", "download images with torchvision and put them into CoOp's layout; an "
         "interrupted download is continued", "+"),
        ("verify", "count the images of each class and split, open every image, and look for "
         "images in both train and test; the exit code is 1 if something is wrong", "+"),
    ):  # fmt: skip
        parser = whats.add_parser(what, help=text, description=text)
        parser.add_argument("names", nargs=names, metavar="NAME", help="see `list datasets`")
        _add_root(parser)
        _add_plugin(parser)
        text = "show how much the cache of decoded images and frozen features holds"
    cache = whats.add_parser("cache", help=text, description=text)
    cache.add_argument("--clear", action="store_true", help="delete everything in it")
    _add_cache(cache)


def _add_bench(verbs: Any) -> None:
    text = "compare the engine's speed with that of the published training loops"
    bench = verbs.add_parser(
        "bench",
        help=text,
        description="Compare the engine's speed with the arithmetic of the published training "
        "loops: training steps and evaluation on random images with randomly initialised weights, "
        "then a matrix of complete runs on the embedded default. This takes about an hour on two "
        "processor cores. Run nothing else at the same time.",
    )
    bench.add_argument(
        "--methods", default="coop,cocoop,kgcoop,maple,mma,adapter,dra", metavar="NAMES",
        help="see `list methods` (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--classes",
        default="100,1000",
        metavar="LIST",
        help="numbers of classes (default: %(default)s)",
    )
    bench.add_argument(
        "--backbone", default="ViT-B-16-quickgelu:random", metavar="NAME",
        help="backbone of the training steps (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="repetitions of each step (default: %(default)s)",
    )
    bench.add_argument(
        "--parts", default="steps,memory,matrix", metavar="NAMES", help="what to measure: "
        "training steps and evaluation, the memory of a step, the matrix of runs, and dra: what "
        "DRA's noise leaves of its order (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--memory", type=float, default=5, metavar="GB", help="memory that a step may use in the "
        "part `memory` (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument("--device", metavar="NAME", help="cuda or cpu (default: cuda if available)")
    bench.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="save the measurements here, and the printed text next to it as .md",
    )
    _add_plugin(bench)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root",
        type=Path,
        default=os.environ.get("DATA"),
        metavar="DIR",
        help="folder that holds the datasets in CoOp's layout (default: $DATA)",
    )


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template", metavar="TEXT", help="prompt for folder: and csv: datasets, with {} for "
        "the class name (default: 'a photo of a {}.')",
    )  # fmt: skip
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="csv file with lines `folder,name`, which "
        "renames the classes of folder: and csv: datasets",
    )  # fmt: skip


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=cache_folder(),
        metavar="DIR",
        help="folder for decoded images and frozen features, which all runs share (default: "
        "$HARNESS_CACHE, or %(default)s)",
    )
    parser.add_argument(
        "--cache-limit", type=float, default=20, metavar="GB",
        help="size of the cache; the least recently used entries are deleted first; 0 turns it off "
        "(default: 20)",
    )  # fmt: skip


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    text = "module or .py file that defines methods, tasks or datasets; repeatable"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=text)
