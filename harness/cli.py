"""The command line: argv -> plan -> records -> leaderboard."""

import argparse
import dataclasses
import inspect
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from harness import config, leaderboard, registry
from harness.errors import HarnessError
from harness.results import Record, Store, label

DEFAULT_BACKBONE = "emoji-mini"
DEFAULT_DATASETS = (
    "emoji_animals,emoji_food,emoji_travel,emoji_objects,"
    "emoji_activities,emoji_smileys,emoji_people,emoji_symbols"
)
RESULTS = Path("results/runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0, 1 if a run failed, 2 for a bad request, 130)."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted.", file=sys.stderr)
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
    for add in (_add_run, _add_list, _add_show, _add_leaderboard):
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
        default=DEFAULT_DATASETS,
        metavar="NAMES",
        help="see `list datasets` (default: the eight embedded emoji datasets)",
    )
    run.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        metavar="NAME",
        help="see `list backbones` (default: %(default)s)",
    )
    run.add_argument("--shots", type=int, default=16, metavar="K", help="images a class (16)")
    run.add_argument("--seeds", default="1", metavar="LIST", help="1,2,3 or 1-3 (default: 1)")
    run.add_argument(
        "--data-root",
        type=Path,
        default=os.environ.get("DATA"),
        metavar="DIR",
        help="the folder with every dataset in CoOp's layout (default: $DATA)",
    )
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
    run.add_argument("--device", metavar="NAME", help="cuda, cuda:1, cpu (default: CUDA if there)")
    run.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="as engine.precision")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument("--force", action="store_true", help="run again what is already done")
    _add_shared(run)
    run.set_defaults(command=_run)


def _add_list(verbs: Any) -> None:
    kinds = ("methods", "tasks", "datasets", "backbones")
    listing = verbs.add_parser("list", help="name, one line and source of what there is")
    listing.add_argument("kind", choices=kinds)
    listing.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=PLUGIN)
    listing.set_defaults(command=_list)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser("show", help="docstring and hyperparameters of a method or other name")
    show.add_argument("name")
    show.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=PLUGIN)
    show.set_defaults(command=_show)


def _add_leaderboard(verbs: Any) -> None:
    board = verbs.add_parser("leaderboard", help="make the tables again from the records")
    board.add_argument("--task", metavar="NAME", help="only this task")
    board.add_argument("--format", choices=leaderboard.FORMATS, default="markdown")
    board.add_argument("--checks", action="store_true", help="list the runs that look wrong")
    board.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=RESULTS_HELP)
    board.set_defaults(command=_leaderboard)


PLUGIN = "a module, or a .py file, that defines a method, task or dataset; repeatable"
RESULTS_HELP = f"the folder of the records (default: {RESULTS})"


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=RESULTS_HELP)
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=PLUGIN)


def _run(arguments: argparse.Namespace) -> int:
    plugins = _registry(arguments.plugin)
    runs = _plan(arguments, plugins)
    store = Store(arguments.results)
    done = {} if arguments.force else (store.done() if store.folder.is_dir() else {})
    _print_plan(runs, done)
    if arguments.dry_run:
        return 0
    store.open()
    pending = [run for run in runs if run.key not in done]
    if not pending:
        print("Everything is done already; --force runs it again.\n")
    finished, failed = _execute(store, pending, arguments.force)
    records = [{**done, **finished}[run.key] for run in runs if run.key in {**done, **finished}]
    if records:
        print("\n" + leaderboard.render(records))
    for record in failed:
        reason = (record.error or "").strip().rpartition("\n")[2]
        run = record.run
        print(
            f"failed: {run['method']} {run['dataset']} seed {run['seed']}: {reason}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _execute(
    store: Store, pending: list[Any], force: bool
) -> tuple[dict[str, Record], list[Record]]:
    """Runs what no other process is running; waits for the rest, and takes over what crashed."""
    from harness.engine import execute

    finished: dict[str, Record] = {}
    failed: list[Record] = []
    queue, kept = list(pending), 0
    with tqdm(total=len(queue), desc="runs", unit="run", disable=None) as bar:
        try:
            while queue:
                waiting = []
                for run in queue:
                    with store.claim(run.key) as mine:
                        if not mine:
                            waiting.append(run)
                            continue
                        there = None if force else _finished(store, run.key)
                        if there is None:
                            bar.set_postfix_str(str(run))
                            record, predictions, model = execute(run)
                            store.write(record, predictions, model)
                            kept += 1
                            tqdm.write(_outcome(run, record))
                        else:
                            record = there
                        if record.status == "done":
                            finished[run.key] = record
                        else:
                            failed.append(record)
                        bar.update()
                if len(waiting) == len(queue):
                    bar.set_postfix_str("waiting for another process")
                    time.sleep(1)
                queue = waiting
        except KeyboardInterrupt:
            bar.close()
            print(
                f"\ninterrupted: {kept} of {len(pending)} runs are finished and kept in "
                f"{store.folder}. The same command goes on with the rest.",
                file=sys.stderr,
            )
            raise SystemExit(130) from None
    return finished, failed


def _finished(store: Store, key: str) -> Record | None:
    """The finished record that another process may have written meanwhile."""
    return next(
        (
            r
            for path in store.folder.rglob(f"*{key}.json")
            if (r := store.read(path)) and r.status == "done"
        ),
        None,
    )


def _outcome(run: Any, record: Record) -> str:
    if record.status == "failed":
        return f"{run}: failed, {(record.error or '').strip().rpartition(chr(10))[2]}"
    scores = ", ".join(f"{name} {100 * s['accuracy']:.2f}" for name, s in record.scores.items())
    seconds = record.cost.get("train_seconds", 0) + record.cost["evaluate_seconds"]
    checks = "".join(f"; {check}" for check in record.checks)
    return f"{run}: {scores} ({seconds:.1f} s{checks})"


def _plan(arguments: argparse.Namespace, plugins: registry.Registry) -> list[Any]:
    methods = plugins.find("methods", arguments.methods)
    tasks = plugins.find("tasks", arguments.tasks)
    chosen = plugins.find("datasets", arguments.datasets)
    seeds = _seeds(arguments.seeds)
    shared = config.profile(arguments.backbone)
    if arguments.config:
        shared += config.read_gin(arguments.config)
    shared += [config.read_set(text) for text in arguments.settings]
    if arguments.precision:
        shared.append(config.Binding("engine", "precision", arguments.precision, "--precision"))
    sweeps = config.read_sweeps(arguments.sweep)
    known = [name for kind in plugins.plugins.values() for name in kind]
    config.check_targets([*shared, *(b for combination in sweeps for b in combination)], known)
    given = [b for b in shared if b.origin.startswith("--set")] + [b for s in sweeps for b in s]
    _check_used(given, [*methods, *tasks, *chosen])

    device = _device(arguments.device)
    from harness import clip
    from harness.plan import Bench, Named, product

    backbone = clip.load(arguments.backbone, device)
    runs: dict[str, Any] = {}
    cache = None
    for combination in sweeps:
        bindings = [*shared, *combination]
        engine = config.build_engine(bindings)
        if engine.precision == "auto":
            bf16 = device.startswith("cuda")
            engine = dataclasses.replace(engine, precision="bf16" if bf16 else "fp32")
        datasets = {p.name: config.build(p, bindings)[0] for p in chosen}
        bench = Bench(backbone, datasets, arguments.data_root, engine)
        cache = bench.cache = cache or bench.cache
        cache.budget = engine.cache_bytes
        built = [Named(p.name, *config.build(p, bindings)) for p in methods]
        protocols = [Named(p.name, *config.build(p, bindings)) for p in tasks]
        for run in product(bench, built, protocols, datasets, arguments.shots, seeds):
            runs.setdefault(run.key, run)
    for run in runs.values():
        run.model()
    return list(runs.values())


def _check_used(given: list[config.Binding], chosen: list[registry.Plugin]) -> None:
    names = {n.replace("-", "_") for p in chosen for n in (p.name, p.family)} | {"engine"}
    for binding in given:
        if binding.target.replace("-", "_") not in names:
            raise HarnessError(
                f"{binding.origin} sets {binding.target!r}, which this command does not run."
            )


def _print_plan(runs: list[Any], done: dict[str, Record]) -> None:
    from harness.efficiency import forecast, forward_rate, trainable

    groups: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        groups.setdefault((label(run.identity), run.task.name), []).append(run)
    rows = []
    for (method, task), members in groups.items():
        epochs, steps = ({getattr(r.schedule, f) for r in members} for f in ("epochs", "steps"))
        trained = trainable(members[0].model())
        rows.append(
            {
                "method": method,
                "task": task,
                "runs": len(members),
                "done": sum(r.key in done for r in members),
                "params": f"{trained:,}",
                "epochs": _range(epochs) if trained else "–",
                "steps": _range({a * b for a in epochs for b in steps}) if trained else "–",
                "batch": members[0].method.value.batch_size if trained else "–",
            }
        )
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    seeds = sorted({run.seed for run in runs})
    clip = runs[0].bench.clip
    print(
        f"{len(runs)} runs on {clip.name} ({clip.device}, {runs[0].bench.engine.precision}), "
        f"{runs[0].shots} shots, seeds {', '.join(map(str, seeds))}\n"
        f"datasets: {', '.join(datasets)}\n"
    )
    print(tabulate(rows, headers="keys", tablefmt="simple"))
    pending = [run for run in runs if run.key not in done]
    seconds = forecast(pending, forward_rate(clip)) if pending else 0
    print(f"\nto run: {len(pending)} of {len(runs)}; estimated time: {_duration(seconds)}\n")


def _list(arguments: argparse.Namespace) -> int:
    if arguments.kind == "backbones":
        from harness import clip

        print(tabulate(clip.names().items(), headers=["backbone", "what"], tablefmt="simple"))
        return 0
    plugins = _registry(arguments.plugin)
    rows = [(p.name, p.summary, p.source) for p in plugins.plugins[arguments.kind].values()]
    headers = [arguments.kind.rstrip("s"), "what it is", "source"]
    print(tabulate(rows, headers=headers, tablefmt="simple", maxcolwidths=[None, 44, 48]))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    plugins = _registry(arguments.plugin)
    found = [p[arguments.name] for p in plugins.plugins.values() if arguments.name in p]
    if not found:
        known = [name for kind in plugins.plugins.values() for name in kind]
        from harness.errors import unknown

        raise unknown("name", arguments.name, known)
    for plugin in found:
        print(f"{plugin.name}\n\n{inspect.getdoc(plugin.cls)}\n")
        rows = [
            (
                name,
                repr(plugin.fixed.get(name, default)),
                "variant" if name in plugin.fixed else source,
            )
            for name, default, source in config.describe(plugin.cls)
        ]
        if rows:
            headers = ["hyperparameter", "default", "where it comes from"]
            print(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
        print(f"\ndefined in {plugin.origin}")
    return 0


def _leaderboard(arguments: argparse.Namespace) -> int:
    records = Store(arguments.results).records()
    if arguments.checks:
        for record in records:
            run = record.run
            for check in record.checks:
                print(f"{run['method']} {run['dataset']} seed {run['seed']}: {check}")
        return 0
    print(leaderboard.render(records, arguments.format, arguments.task))
    return 0


def _registry(plugins: list[str]) -> registry.Registry:
    loaded = registry.load(plugins)
    for name, reason in loaded.broken.items():
        print(f"warning: the plugin {name} was left out: {reason}", file=sys.stderr)
    return loaded


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise HarnessError(f"--seeds {text!r} is not a list such as 1,2,3 or 1-3.")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def _device(given: str | None) -> str:
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=given)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise HarnessError(f"--device {given!r} cannot be used here: {reason}") from error
    return given


def _range(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)}-{max(values)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
