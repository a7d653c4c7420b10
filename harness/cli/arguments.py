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
    """`command` names what is asked for, `what` the part of `data`."""
    top = argparse.ArgumentParser(
        prog="python -m harness",
        description="Compare parameter-efficient fine-tuning methods of vision-language models "
        "under one protocol.",
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
        "leaderboard. Finished runs are kept: the same command goes on where it stopped.",
        epilog="Names take comma lists and wildcards: --methods 'dra*,adapter'.",
    )
    run.add_argument("--methods", required=True, metavar="NAMES", help="see `list methods`")
    run.add_argument("--tasks", required=True, metavar="NAMES", help="see `list tasks`")
    run.add_argument(
        "--datasets",
        metavar="NAMES",
        help="see `list datasets`; your own images as folder:PATH or csv:FILE "
        "(default: the task's own, or the eight embedded emoji datasets)",
    )
    _add_own(run)
    run.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        metavar="NAME",
        help="see `list backbones` (default: %(default)s)",
    )
    run.add_argument("--shots", default="16", metavar="LIST", help="images a class: 16, or 1,2,4")
    run.add_argument(
        "--forgetting", action="store_true", help="few_shot: also the change of the accuracy on "
        "the other selected datasets",
    )  # fmt: skip
    run.add_argument("--seeds", default="1", metavar="LIST", help="1,2,3 or 1-3 (default: 1)")
    _add_root(run)
    run.add_argument(
        "--config", type=Path, metavar="FILE.gin", help="settings, `name.field = value` a line"
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME.FIELD=VALUE",
        help="one setting of a method, a task or `engine`; wins over --config; repeatable",
    )
    run.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME.FIELD=V1,V2,...",
        help="run once per value; several sweeps combine; repeatable",
    )
    run.add_argument(
        "--views", type=int, metavar="N", help="reuse N views of each training image, so that long "
        "fits train from cached features: an approximation (0: a fresh one every epoch, as "
        "published)",
    )  # fmt: skip
    run.add_argument("--device", metavar="NAME", help="cuda, cuda:1, cpu (default: CUDA if there)")
    run.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="as engine.precision")
    _add_cache(run)
    run.add_argument(
        "--jobs", type=int, metavar="N", help="processes that share the runs, and the processor's "
        "threads (default: 1; on emoji-mini 0: one for each thread)",
    )  # fmt: skip
    run.add_argument(
        "--on-bad-image", choices=("error", "skip"), help="of images that cannot be read: stop "
        "before the first fit, or leave them out and record that (default: error)",
    )  # fmt: skip
    run.add_argument(
        "--check-images", action="store_true", help="with --dry-run: open every image of the plan"
    )
    run.add_argument(
        "--dry-run", action="store_true", help="print the plan, with the settings by task, and stop"
    )
    run.add_argument("--force", action="store_true", help="run again what is already done")
    run.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="the folder of the records "
        "(default: %(default)s)",
    )  # fmt: skip
    _add_plugin(run)


def _add_list(verbs: Any) -> None:
    kinds = ("methods", "tasks", "datasets", "backbones")
    listing = verbs.add_parser("list", help="name, one line and source of what there is")
    listing.add_argument("kind", choices=kinds, help="what to list")
    _add_plugin(listing)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser(
        "show", help="docstring and settings of a method, task, dataset or `engine`"
    )
    show.add_argument("name", help="a name that `list` prints, or `engine`")
    _add_plugin(show)


def _add_leaderboard(verbs: Any) -> None:
    board = verbs.add_parser("leaderboard", help="make the tables again from the records")
    board.add_argument("--task", metavar="NAME", help="only this task")
    board.add_argument("--format", choices=FORMATS, default="markdown", help="default: %(default)s")
    board.add_argument(
        "--pareto", choices=costs.COSTS, metavar="COST", help="mark the methods that no other "
        f"beats in accuracy and a cost: {', '.join(costs.COSTS)} (all but params need "
        "`run --tasks efficiency`)",
    )  # fmt: skip
    board.add_argument("--by-dataset", action="store_true", help="one table a dataset as well")
    board.add_argument("--checks", action="store_true", help="list the runs that look wrong")
    board.add_argument(
        "--results", type=Path, nargs="+", default=[RESULTS], metavar="DIR", help="folders of "
        f"records (default: {RESULTS})",
    )  # fmt: skip


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser(
        "data",
        help="what is on disk of the datasets; downloads, checks, and the cache",
        description="What is on disk of the datasets. Those with no files of their own to get are "
        "embedded.",
    )
    whats = data.add_subparsers(required=True, metavar="WHAT", dest="what")
    for what, text, names in (
        ("status", "what is found, what is missing, where it is expected and where to get it", "*"),
        ("prepare", "download images through torchvision and lay them out; goes on where it "
         "stopped", "+"),
        ("verify", "count images by class and split, open each of them, find those in both train "
         "and test; exit code 1 if something is wrong", "+"),
    ):  # fmt: skip
        parser = whats.add_parser(what, help=text, description=text)
        parser.add_argument("names", nargs=names, metavar="NAME", help="see `list datasets`")
        _add_root(parser)
        _add_plugin(parser)
        text = "what the cache holds of decoded images and frozen features"
    cache = whats.add_parser("cache", help=text, description=text)
    cache.add_argument("--clear", action="store_true", help="delete all of it")
    _add_cache(cache)


def _add_bench(verbs: Any) -> None:
    text = "time the engine against the arithmetic_key of the published training loops"
    bench = verbs.add_parser(
        "bench",
        help=text,
        description=f"{text.capitalize()}: training steps and evaluation on random images with a "
        "backbone of random weights, then a matrix of runs on the embedded default. Takes about an "
        "hour on two processor cores; run it with nothing beside it.",
    )
    bench.add_argument(
        "--methods", default="coop,cocoop,kgcoop,maple,mma,adapter,dra", metavar="NAMES",
        help="see `list methods` (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--classes", default="100,1000", metavar="LIST", help="how many (default: %(default)s)"
    )
    bench.add_argument(
        "--backbone", default="ViT-B-16-quickgelu:random", metavar="NAME",
        help="of the training steps (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="of each step (default: %(default)s)"
    )
    bench.add_argument(
        "--parts", default="steps,memory,matrix", metavar="NAMES", help="steps and evaluation, the "
        "memory of a step, the matrix of runs (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--memory", type=float, default=5, metavar="GB", help="what a step may take in the part "
        "`memory` (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument("--device", metavar="NAME", help="cuda, cpu (default: CUDA if there)")
    bench.add_argument(
        "--out", type=Path, metavar="FILE.json", help="keep what was measured, and the text as .md"
    )
    _add_plugin(bench)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root",
        type=Path,
        default=os.environ.get("DATA"),
        metavar="DIR",
        help="the folder with every dataset in CoOp's layout (default: $DATA)",
    )


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template", metavar="TEXT", help="the prompt of folder: and csv: datasets "
        "(default: 'a photo of a {}.')",
    )  # fmt: skip
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="a csv file of folder,name lines that "
        "rename classes of folder: and csv: datasets",
    )  # fmt: skip


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=cache_folder(),
        metavar="DIR",
        help="decoded images and frozen features, shared by all runs (default: $HARNESS_CACHE, or "
        "%(default)s)",
    )
    parser.add_argument(
        "--cache-limit", type=float, default=20, metavar="GB",
        help="the cache's size, the least recently used goes first; 0: no cache (20)",
    )  # fmt: skip


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    text = "a module, or a .py file, that defines a method, task or dataset; repeatable"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=text)
