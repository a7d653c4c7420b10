"""`run`: from a request to records and the leaderboard."""

import argparse
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import class_texts, config, registry
from harness.cli import executor, options
from harness.errors import HarnessError
from harness.garbage import settle, uncollected
from harness.records.labels import differing, run_name
from harness.records.store import Record, Store
from harness.records.tables import harmless

if TYPE_CHECKING:
    from harness.runs.plan import Request
    from harness.runs.prepared import PreparedRun


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
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
    shared(run)
    run.add_argument("--shots", default="16", metavar="LIST", help="training images per class: 4, "
                     "or several values, 1,2,4 (default: 16)")  # fmt: skip
    run.add_argument(
        "--forgetting", action="store_true", help="with few_shot: also report how the fit "
        "changes the accuracy on the other selected datasets",
    )  # fmt: skip
    run.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME.FIELD=V1,V2,...",
        help="run once for each value; repeat for all combinations of several settings",
    )
    run.set_defaults(does=run_all)


def shared(parser: argparse.ArgumentParser) -> None:
    """The options of every command that plans and carries out runs."""
    parser.add_argument(
        "--datasets",
        metavar="NAMES",
        help="see `list datasets`; folder:PATH or csv:FILE for your own images "
        "(default: the task's own datasets, or the eight embedded emoji datasets)",
    )
    options.own(parser)
    options.class_texts(parser)
    parser.add_argument(
        "--lists", type=Path, metavar="DIR", help="train on these few-shot lists instead of "
        "drawing: files DATASET-shot_K-seed_S.jsonl of `data lists`, or the .json files of "
        "cross_modal_adaptation",
    )  # fmt: skip
    parser.add_argument(
        "--backbone",
        default=options.DEFAULT_BACKBONE,
        metavar="NAME",
        help="pretrained model; see `list backbones` (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", default="1", metavar="LIST", help="seeds: 1,2,3 or 1-3 (default: 1)"
    )
    options.root(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.gin",
        help="file of settings, one `name.field = value` per line",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME.FIELD=VALUE",
        help="change one setting of a method, a task or `engine`; overrides --config; repeatable, "
        "and of one setting the last counts",
    )
    parser.add_argument(
        "--views", type=int, metavar="N", help="augment each training image in only N ways, so "
        "that long fits can train from cached features; an approximation (default: 0, a new "
        "augmentation in every epoch, as published)",
    )  # fmt: skip
    parser.add_argument(
        "--device", metavar="NAME", help="cuda, cuda:1 or cpu (default: cuda if available)"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="numerical precision "
                     "(default: auto, which is bf16 on CUDA and fp32 elsewhere)")  # fmt: skip
    options.cache(parser)
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="number of processes that share the runs and the "
        "CPU threads or the cards; 0: one for each thread (default: one for each card; on a CPU 1, "
        "and 0 on emoji-mini)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs-per-gpu", type=int, metavar="N", help="processes on each card, where --jobs does "
        "not say how many there are in all (default: 1)",
    )  # fmt: skip
    executor.add(parser)
    options.bad_images(parser)
    parser.add_argument(
        "--check-images", action="store_true", help="with --dry-run: open every image of the plan"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, with what methods change by task, and stop",
    )
    parser.add_argument(
        "--memory", nargs="?", const="", metavar="SIZE", help="with --dry-run: also print what a "
        "training step of each method takes of memory, and its micro-batches, here or on a card of "
        "such a SIZE as 80GB; weights of open_clip are not loaded for it",
    )  # fmt: skip
    parser.add_argument(
        "--max-hours", type=float, metavar="H", help="begin no run that would end later than this; "
        "the exit code is 3 if some are left, and the same command goes on",
    )  # fmt: skip
    parser.add_argument(
        "--shard", metavar="K/N", help="only the K-th of N shards of the plan, of about the same "
        "length, for N machines or jobs of a cluster; `leaderboard --results A B ...` joins them",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="repeat runs that are already done")
    parser.add_argument(
        "--results", type=Path, default=options.RESULTS, metavar="DIR", help="folder for the "
        "records (default: %(default)s)",
    )  # fmt: skip
    options.plugin(parser)


def run_all(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.leaderboards import leaderboard

    records = carried_out(arguments)
    if records is None:
        return 0
    if arguments.shard:
        where = shlex.quote(str(arguments.results))
        print(f"\nShard {arguments.shard} is finished: {len(records)} runs in {where}. "
              "`leaderboard --results` with the folders of all shards joins them.")  # fmt: skip
        return failures(records)
    print("\n" + leaderboard.render(records))
    if all(record.status == "not applicable" for record in records):
        print("nothing was run: no method here can serve its task, for the reasons above.",
              file=sys.stderr)  # fmt: skip
        return 1
    return failures(records)


def carried_out(arguments: argparse.Namespace) -> list[Record] | None:
    """The records of the runs that are asked for, in their order, made now where they are missing;
    None of a dry run. The plan is printed."""
    for option, given in (("--memory", arguments.memory is not None),
                          ("--check-images", arguments.check_images)):  # fmt: skip
        if given and not arguments.dry_run:
            raise HarnessError(f"{option} is of a plan: add --dry-run.")
    with uncollected():
        from harness.cli import plan_text
        from harness.runs.executors import local
        from harness.runs.images import check_images

        card = options.card(arguments.memory)
        placement = executor.placement(arguments)
        request, store, runs = _request(arguments), Store(arguments.results), planned(arguments)
        done, pending = local.done_and_pending(runs, store, arguments.force)
    counted = arguments.memory is not None
    seconds = None if counted else local.estimated_seconds(pending, runs, done)
    jobs = 1 if placement or seconds is None else local.process_count(pending, seconds)
    print(plan_text.describe(runs, done, seconds, jobs, arguments.dry_run))
    if counted:
        from harness.cli.memory_text import memory_text

        print("\n" + memory_text(runs, card))
    if arguments.dry_run:
        if arguments.check_images:
            check_images(pending)
            skipped = any(run.identity.get("skipped") for run in runs)
            print(f"Every {'other ' * skipped}image can be read.")
        return None
    if not pending:
        print("Everything is done already; --force runs it again.")
    else:
        settle()
    made = executor.carry_out(arguments, placement, jobs, request, store, runs, pending)
    ended = {**done, **made}
    named = ("overrides", "given")  # a table of this request speaks its words
    return [
        replace(
            each := ended[run.key],
            run={**each.run, **{n: run.identity[n] for n in named}},
            folder=store.folder,
            file=store.path(each.run, each.key),
        )
        for run in runs
    ]


def planned(arguments: argparse.Namespace) -> "list[PreparedRun]":
    """The runs that are asked for, done or not."""
    from harness.runs.executors import shard
    from harness.runs.plan import plan

    request, plugins = _request(arguments), options.plugins(arguments.plugin)
    _check_names(request, plugins)
    chosen = shard.parse(arguments.shard) if arguments.shard else None
    runs = plan(request, plugins)
    return shard.share(runs, *chosen) if chosen else runs


def failures(records: Iterable[Record]) -> int:
    """The exit code; failed runs are named on standard error."""
    records = list(records)
    failed = [record for record in records if record.status == "failed"]
    apart = differing(record.run for record in records)
    for record in failed:
        line = f"failed: {run_name(record.run, apart)}: {record.reason}"
        print(harmless(line), file=sys.stderr)
    return 1 if failed else 0


def _request(arguments: argparse.Namespace) -> "Request":
    from harness.images import list_files
    from harness.runs.plan import Request

    sets = [config.read_set(text) for text in arguments.settings]
    given = [*{each.setting: each for each in sets}.values()]  # a later one counts
    given += options.own_bindings(arguments)
    sweeps = config.read_sweeps(arguments.sweep)
    engine = (
        ("few_shot.forgetting", arguments.forgetting or None, "--forgetting"),
        ("engine.views", arguments.views, "--views"),
        ("engine.on_bad_image", arguments.on_bad_image, "--on-bad-image"),
        ("engine.jobs", arguments.jobs, "--jobs"),
        ("engine.jobs_per_gpu", arguments.jobs_per_gpu, "--jobs-per-gpu"),
        ("engine.precision", arguments.precision, "--precision"),
    )
    given += [config.bind(name, value, option) for name, value, option in engine
              if value is not None]  # fmt: skip
    config.once([*given, *sweeps[0]])
    if {"engine.jobs", "engine.jobs_per_gpu"} <= {each.setting for each in given}:
        raise HarnessError(
            "--jobs says how many processes there are in all, and --jobs-per-gpu how many a card "
            "has: leave one out."
        )
    bindings = config.read_gin(arguments.config) if arguments.config else []
    bindings += given  # they count more
    return Request(
        methods=arguments.methods,
        tasks=arguments.tasks,
        datasets=arguments.datasets,
        backbone=arguments.backbone,
        shots=options.numbers("--shots", arguments.shots),
        seeds=options.numbers("--seeds", arguments.seeds),
        root=arguments.data_root,
        bindings=bindings,
        sweeps=sweeps,
        device=arguments.device,
        disk=options.disk(arguments),
        dry=arguments.dry_run,
        numbers=arguments.memory is None,
        card=bool(arguments.memory),
        class_texts=[class_texts.read(path) for path in arguments.class_texts],
        lists=list_files.read(arguments.lists) if arguments.lists else None,
    )


def _check_names(request: "Request", plugins: registry.Registry) -> None:
    """Raises HarnessError with all unknown methods, tasks and datasets, not only the first."""
    wrong = []
    for kind in registry.KINDS:
        try:
            if getattr(request, kind) is not None:
                plugins.find(kind, getattr(request, kind))
        except HarnessError as error:
            wrong.append(str(error))
    if wrong:
        raise HarnessError("\n".join(wrong))
