"""The command line: argv -> plan -> records -> leaderboard."""

import argparse
import contextlib
import inspect
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from harness import config, costs, leaderboard, registry
from harness.errors import HarnessError, unknown
from harness.results import Record, Store
from harness.tables import FORMATS

if TYPE_CHECKING:
    from harness.cache import Disk
    from harness.plan import Run

DEFAULT_BACKBONE = "emoji-mini"
RESULTS = Path("results/runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0, 1 if a run failed, 2 for a bad request, 130)."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"\ninterrupted. {stopped}".rstrip(), file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness",
        description="Compare parameter-efficient fine-tuning methods of vision-language models "
        "under one protocol.",
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_run, _add_leaderboard, _add_data, _add_bench, _add_list, _add_show):
        add(verbs)
    return parser


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
        "--on-bad-image", choices=("error", "skip"), help="of an image that cannot be read: fail "
        "before training, or leave it out and record that (default: error)",
    )  # fmt: skip
    run.add_argument(
        "--dry-run", action="store_true", help="print the plan, with the settings by task, and stop"
    )
    run.add_argument("--force", action="store_true", help="run again what is already done")
    _add_results(run)
    _add_plugin(run)
    run.set_defaults(command=_run)


def _add_list(verbs: Any) -> None:
    kinds = ("methods", "tasks", "datasets", "backbones")
    listing = verbs.add_parser("list", help="name, one line and source of what there is")
    listing.add_argument("kind", choices=kinds, help="what to list")
    _add_plugin(listing)
    listing.set_defaults(command=_list)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser(
        "show", help="docstring and settings of a method, task, dataset or `engine`"
    )
    show.add_argument("name", help="a name that `list` prints, or `engine`")
    _add_plugin(show)
    show.set_defaults(command=_show)


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
    _add_results(board)
    board.set_defaults(command=_leaderboard)


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser(
        "data",
        help="what is on disk of the datasets; downloads, checks, and the cache",
        description="What is on disk of the datasets. Those with no files of their own to get are "
        "embedded.",
    )
    whats = data.add_subparsers(required=True, metavar="WHAT")
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
        parser.set_defaults(command=_data, what=what)
    text = "what the cache holds of decoded images and frozen features"
    cache = whats.add_parser("cache", help=text, description=text)
    cache.add_argument("--clear", action="store_true", help="delete all of it")
    _add_cache(cache)
    cache.set_defaults(command=_cache)


def _add_bench(verbs: Any) -> None:
    text = "time the engine against the arithmetic of the published training loops"
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
    bench.set_defaults(command=_bench)


def _add_results(parser: argparse.ArgumentParser) -> None:
    text = f"the folder of the records (default: {RESULTS})"
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=text)


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


def _own(arguments: argparse.Namespace) -> list[config.Binding]:
    """The settings of datasets that are given by their paths."""
    if arguments.template is not None and "{}" not in arguments.template:
        raise HarnessError(f"--template {arguments.template!r} has no {{}} for the class name.")
    names = arguments.class_names and str(arguments.class_names)
    given = {"template": arguments.template, "class_names": names}
    return [
        config.Binding(kind, name, value, f"--{name.replace('_', '-')}")
        for kind in ("folder", "csv")
        for name, value in given.items()
        if value is not None
    ]


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=_cache_folder(),
        metavar="DIR",
        help="decoded images and frozen features, shared by all runs (default: $HARNESS_CACHE, or "
        "%(default)s)",
    )
    parser.add_argument(
        "--cache-limit", type=float, default=20, metavar="GB",
        help="the cache's size, the least recently used goes first; 0: no cache (20)",
    )  # fmt: skip


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HARNESS_CACHE") or Path(home) / "vlm-peft-harness")


def _disk(arguments: argparse.Namespace) -> "Disk":
    from harness.cache import Disk

    return Disk(arguments.cache_dir, int(arguments.cache_limit * 2**30))


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    text = "a module, or a .py file, that defines a method, task or dataset; repeatable"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=text)


def _plan(arguments: argparse.Namespace) -> "list[Run]":
    from harness import runner

    bindings = config.read_gin(arguments.config) if arguments.config else []
    bindings += [config.read_set(text) for text in arguments.settings]
    bindings += _own(arguments)
    if arguments.views is not None:
        bindings.append(config.Binding("engine", "views", arguments.views, "--views"))
    if arguments.forgetting:
        bindings.append(config.Binding("few_shot", "forgetting", True, "--forgetting"))
    if arguments.on_bad_image:
        bindings.append(config.Binding("engine", "on_bad_image", arguments.on_bad_image, "option"))
    if arguments.jobs is not None:
        bindings.append(config.Binding("engine", "jobs", arguments.jobs, "--jobs"))
    if arguments.precision:
        bindings.append(config.Binding("engine", "precision", arguments.precision, "--precision"))
    request = runner.Request(
        methods=arguments.methods,
        tasks=arguments.tasks,
        datasets=arguments.datasets,
        backbone=arguments.backbone,
        shots=_numbers("--shots", arguments.shots),
        seeds=_numbers("--seeds", arguments.seeds),
        root=arguments.data_root,
        bindings=bindings,
        sweeps=config.read_sweeps(arguments.sweep),
        device=arguments.device,
        disk=_disk(arguments),
    )
    return runner.plan(request, _registry(arguments.plugin))


def _run(arguments: argparse.Namespace) -> int:
    from harness import runner

    runs, store = _plan(arguments), Store(arguments.results)
    done, pending = _left(arguments, runs, store)
    seconds = runner.estimate(pending)
    jobs = runner.processes(pending, seconds)
    print(runner.describe(runs, done, seconds, jobs, arguments.dry_run))
    if arguments.dry_run:
        return 0
    store.open()
    if not pending:
        print("Everything is done already; --force runs it again.")
    since = time.time()
    with runner.helped(jobs - 1, _help, arguments, since, jobs):
        ended = {**done, **runner.execute_all(store, pending, since, arguments.force)}
    records = [ended[run.key] for run in runs]
    print("\n" + leaderboard.render(records))
    failed = [record for record in records if record.status == "failed"]
    for record in failed:
        run = record.run
        print(
            f"failed: {run['method']} {run['dataset']} seed {run['seed']}: {record.reason}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _left(
    arguments: argparse.Namespace, runs: "list[Run]", store: Store
) -> "tuple[Mapping[str, Record], list[Run]]":
    """The records that count as done, and the runs that have none."""
    done = {} if arguments.force else store.done()
    return done, [run for run in runs if run.key not in done]


def _help(arguments: argparse.Namespace, since: float, jobs: int, number: int) -> None:
    """Another process of the same command; what it finishes, the first one reports."""
    from harness import runner

    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        runs, store = _plan(arguments), Store(arguments.results)
        _, pending = _left(arguments, runs, store)
        runner.execute_all(store, pending, since, arguments.force, number / jobs)


def _data(arguments: argparse.Namespace) -> int:
    from harness import library

    names = [name for each in arguments.names for name in each.split(",")]
    plugins = _registry(arguments.plugin)
    chosen = plugins.find("datasets", names or ["*"])
    root = arguments.data_root and Path(arguments.data_root)
    if arguments.what == "status":
        print(library.status(chosen, root))
        return 0
    if arguments.what == "prepare":
        for plugin in chosen:
            print(library.prepare(plugin, root))
        print(library.status(chosen, root))
        return 0
    wrong = 0
    for plugin in chosen:
        found = library.verify(plugin, root)
        print(f"{plugin.name}\n\n{found.table}\n")
        for problem in found.problems:
            print(f"  {problem}")
        print(f"  {len(found.problems)} problems\n" if found.problems else "  nothing is wrong\n")
        wrong += len(found.problems)
    return 1 if wrong else 0


def _cache(arguments: argparse.Namespace) -> int:
    disk = _disk(arguments)
    if arguments.clear:
        print(f"{disk.clear() / 2**20:,.1f} MB deleted from {disk.folder}")
        return 0
    rows = [
        (kind, count, f"{size / 2**20:,.1f} MB") for kind, (count, size) in disk.kinds().items()
    ]
    print(f"cache in {disk.folder}, at most {arguments.cache_limit:g} GB\n")
    print(tabulate(rows, headers=["what", "entries", "size"], tablefmt="simple") or "empty")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from harness import bench, runner

    if arguments.repeats < 1:
        raise HarnessError(f"--repeats must be at least 1, not {arguments.repeats}.")
    parts = arguments.parts.split(",")
    for name in parts:
        if name not in bench.PARTS:
            raise unknown("part", name, bench.PARTS)
    chosen = _registry(arguments.plugin).find("methods", arguments.methods)
    counts = _numbers("--classes", arguments.classes)
    methods = {
        p.name: config.build(p, [], runner.recipe(p, "base2new", "bench", 16))[0] for p in chosen
    }
    print(bench.run(
        methods, counts, arguments.backbone, runner.usable(arguments.device), arguments.repeats,
        parts, arguments.memory, arguments.out,
    ))  # fmt: skip
    return 0


def _list(arguments: argparse.Namespace) -> int:
    if arguments.kind == "backbones":
        from harness import backbone

        rows = [(name, *about) for name, about in backbone.names().items()]
        print(tabulate(rows, headers=["backbone", "what it is", "source"], tablefmt="simple"))
        return 0
    plugins = _registry(arguments.plugin)
    rows = [(p.name, p.summary, p.source) for p in plugins.plugins[arguments.kind].values()]
    headers = [arguments.kind.rstrip("s"), "what it is", "source"]
    print(tabulate(rows, headers=headers, tablefmt="simple", maxcolwidths=[None, 44, 48]))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    if arguments.name == "engine":
        _describe("engine", config.Engine, {}, "what it does")
        return 0
    plugins = _registry(arguments.plugin)
    found = [p[arguments.name] for p in plugins.plugins.values() if arguments.name in p]
    if not found:
        known = [name for kind in plugins.plugins.values() for name in kind]
        raise unknown("name", arguments.name, [*known, "engine"])
    for plugin in found:
        _describe(plugin.name, plugin.cls, plugin.fixed, "where it comes from")
        print(f"\ndefined in {plugin.origin}")
    return 0


def _describe(name: str, cls: type, fixed: Mapping[str, Any], column: str) -> None:
    family = str(vars(cls).get("name", name)).replace("_", "-")
    print(f"{name}\n\n{inspect.getdoc(cls)}\n")
    rows = [
        (field, repr(fixed.get(field, default)), "this variant" if field in fixed else source)
        for field, default, source in config.describe(cls)
    ]
    if rows:
        headers = ["setting", "default", column]
        print(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
    for binding in config.profile(DEFAULT_BACKBONE):
        if binding.target.replace("_", "-") in (name.replace("_", "-"), family):
            print(f"on {DEFAULT_BACKBONE}: {binding.name} = {binding.value!r} ({binding.origin})")


def _leaderboard(arguments: argparse.Namespace) -> int:
    records = Store(arguments.results).records()
    if arguments.checks:
        for record in records:
            run = record.run
            for check in record.checks:
                print(f"{run['method']} {run['dataset']} seed {run['seed']}: {check}")
        return 0
    asked = (arguments.format, arguments.task, arguments.by_dataset, arguments.pareto)
    print(leaderboard.render(records, *asked))
    return 0


def _registry(plugins: list[str]) -> registry.Registry:
    loaded = registry.load(plugins)
    for name, reason in loaded.broken.items():
        print(f"warning: the plugin {name} was left out: {reason}", file=sys.stderr)
    return loaded


def _numbers(option: str, text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise HarnessError(f"{option} {text!r} is not a list such as 1,2,3 or 1-3.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise HarnessError(f"{option} {text!r} counts backwards: write {last}-{first}.")
        numbers += range(first, last + 1)
    return list(dict.fromkeys(numbers))


warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
