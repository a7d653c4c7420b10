"""The command line: argv -> plan -> records -> leaderboard."""

import argparse
import inspect
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import config, registry
from harness.cli import output
from harness.cli.arguments import DEFAULT_BACKBONE, parser
from harness.errors import HarnessError, unknown
from harness.records.labels import differing, run_name
from harness.records.store import Store, read_all
from harness.records.tables import harmless, plain_table

BACKBONES = Path(config.__file__).parent / "backbones"

if TYPE_CHECKING:
    from harness.images.cache import Disk
    from harness.runs.plan import Request


MOST, LARGEST = 10_000, 10**9  # of a list such as --seeds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0, 1 if a run failed or the output could not be
    written, 2 for a bad request, 130)."""
    with output.kept() as out:
        code = _command(argv)
        out.flush()
        if out.failure is not None:
            print(f"error: the output cannot be written: {out.failure.strerror}.", file=sys.stderr)
            code = code or 1
    return code


def _command(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        with _ended_by_a_second_interrupt():
            return COMMANDS[arguments.command](arguments)
    except HarnessError as error:
        print(f"error: {harmless(error, lines=True)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"\ninterrupted. {stopped}".rstrip(), file=sys.stderr)
        return 130


@contextmanager
def _ended_by_a_second_interrupt() -> Iterator[None]:
    """Ctrl-C stops the work in order; a second one ends the process at once, whatever hangs."""
    usual = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or usual is not signal.default_int_handler:  # somebody else takes care of it
        yield
        return
    pressed: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if pressed:
            os._exit(130)
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if not pressed:
            signal.signal(signal.SIGINT, usual)


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


def _disk(arguments: argparse.Namespace) -> "Disk":
    from harness.images.cache import Disk

    return Disk(arguments.cache_dir, int(arguments.cache_limit * 2**30))


def _request(arguments: argparse.Namespace) -> "Request":
    from harness.runs.plan import Request

    bindings = config.read_gin(arguments.config) if arguments.config else []
    bindings += [config.read_set(text) for text in arguments.settings]
    bindings += _own(arguments)
    options = (
        ("few_shot.forgetting", arguments.forgetting or None, "--forgetting"),
        ("engine.views", arguments.views, "--views"),
        ("engine.on_bad_image", arguments.on_bad_image, "--on-bad-image"),
        ("engine.jobs", arguments.jobs, "--jobs"),
        ("engine.precision", arguments.precision, "--precision"),
    )
    bindings += [config.bind(name, value, option) for name, value, option in options
                 if value is not None]  # fmt: skip
    return Request(
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
        dry=arguments.dry_run,
    )


def _run(arguments: argparse.Namespace) -> int:
    from harness.cli import plan_text
    from harness.records import leaderboard
    from harness.runs.executors import local
    from harness.runs.images import check_images
    from harness.runs.plan import plan

    request, store = _request(arguments), Store(arguments.results)
    plugins = _registry(arguments.plugin)
    _check_names(request, plugins)
    runs = plan(request, plugins)
    done, pending = local.done_and_pending(runs, store, arguments.force)
    seconds = local.estimated_seconds(pending)
    jobs = local.process_count(pending, seconds)
    print(plan_text.describe(runs, done, seconds, jobs, arguments.dry_run))
    if arguments.dry_run:
        if arguments.check_images:
            check_images(pending)
            print("Every image can be read.")
        return 0
    if not pending:
        print("Everything is done already; --force runs it again.")
    made = local.carry_out(request, arguments.plugin, store, runs, pending, arguments.force, jobs)
    ended = {**done, **made}
    named = ("overrides", "given")  # a table of this request speaks its words
    records = [
        replace(
            each := ended[run.key],
            run={**each.run, **{n: run.identity[n] for n in named}},
            folder=store.folder,
            file=store.path(each.run, each.key),
        )
        for run in runs
    ]
    print("\n" + leaderboard.render(records))
    failed = [record for record in records if record.status == "failed"]
    apart = differing(record.run for record in records)
    for record in failed:
        line = f"failed: {run_name(record.run, apart)}: {record.reason}"
        print(harmless(line), file=sys.stderr)
    return 1 if failed else 0


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


def _data(arguments: argparse.Namespace) -> int:
    from harness.images import download, library

    if arguments.what == "cache":
        return _cache(arguments)
    plugins = _registry(arguments.plugin)
    chosen = plugins.find("datasets", ",".join(arguments.names) or "*")
    root = arguments.data_root and Path(arguments.data_root)
    if arguments.what == "status":
        print(library.status(chosen, root))
        return 0
    if arguments.what == "prepare":
        for plugin in chosen:
            print(download.prepare(plugin, root))
        print(library.status(chosen, root))
        return 0
    wrong = 0
    for plugin in chosen:
        found = library.verify(plugin, root)
        print(f"{plugin.name}\n\n{found.table}\n")
        for problem in found.problems:
            print(f"  {problem}")
        for note in found.notes:
            print(f"  {note}")
        print(f"  {len(found.problems)} problems\n" if found.problems else "  nothing is wrong\n")
        wrong += len(found.problems)
    return 1 if wrong else 0


def _cache(arguments: argparse.Namespace) -> int:
    disk = _disk(arguments)
    if arguments.clear:
        print(f"{disk.clear() / 2**20:,.1f} MB deleted from {disk.folder}")
        return 0
    rows = [
        {"what": kind, "entries": count, "size": f"{size / 2**20:,.1f} MB"}
        for kind, (count, size) in disk.kinds().items()
    ]
    print(f"cache in {disk.folder}, at most {arguments.cache_limit:g} GB\n")
    print(plain_table(rows) if rows else "empty")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from harness.bench import run as bench
    from harness.runs import plan

    if arguments.repeats < 1:
        raise HarnessError(f"--repeats must be at least 1, not {arguments.repeats}.")
    parts = arguments.parts.split(",")
    for name in parts:
        if name not in bench.PARTS:
            raise unknown("part", name, bench.PARTS)
    chosen = _registry(arguments.plugin).find("methods", arguments.methods)
    counts = _numbers("--classes", arguments.classes)
    if min(counts) < 1:
        raise HarnessError(f"--classes {arguments.classes!r}: at least 1.")
    methods = {
        p.name: config.build(p, [], plan.recipe(p, "base2new", "bench", 16))[0] for p in chosen
    }
    device = plan.usable_device(arguments.device)
    print(bench.run(
        methods, counts, arguments.backbone, device, arguments.repeats, parts, arguments.memory,
        arguments.out, arguments.plugin,
    ))  # fmt: skip
    return 0


def _list(arguments: argparse.Namespace) -> int:
    if arguments.kind == "backbones":
        from harness.towers import backbone

        rows = [
            {"backbone": name, "what it is": what, "source": source}
            for name, (what, source) in backbone.names().items()
        ]
        print(plain_table(rows))
        return 0
    kind = arguments.kind.rstrip("s")
    rows = [
        {kind: plugin.name, "what it is": plugin.summary, "source": plugin.source}
        for plugin in _registry(arguments.plugin).plugins[arguments.kind].values()
    ]
    print(plain_table(rows))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    if arguments.name == "engine":
        _describe("engine", config.Engine, {}, "what it does")
        return 0
    plugins = _registry(arguments.plugin)
    found = [p[arguments.name] for p in plugins.plugins.values() if arguments.name in p]
    cards = {card.parent.name: card for card in sorted(BACKBONES.glob("*/README.md"))}
    if arguments.name in cards:
        print(cards[arguments.name].read_text(encoding="utf-8").strip())
        return 0
    if not found:
        known = [name for kind in plugins.plugins.values() for name in kind]
        raise unknown("name", arguments.name, [*known, *cards, "engine"])
    for plugin in found:
        _describe(plugin.name, plugin.cls, plugin.fixed, "where it comes from")
        print(f"\ndefined in {plugin.origin}")
    return 0


def _describe(name: str, cls: type, fixed: Mapping[str, Any], column: str) -> None:
    family = str(vars(cls).get("name", name)).replace("_", "-")
    print(f"{name}\n\n{inspect.getdoc(cls)}\n")
    rows = [
        {
            "setting": field,
            "default": repr(fixed.get(field, default)),
            column: "this variant" if field in fixed else source,
        }
        for field, default, source in config.describe(cls)
    ]
    if rows:
        print(plain_table(rows))
    for binding in config.profile(DEFAULT_BACKBONE):
        if binding.target.replace("_", "-") in (name.replace("_", "-"), family):
            print(f"on {DEFAULT_BACKBONE}: {binding.name} = {binding.value!r} ({binding.origin})")


def _leaderboard(arguments: argparse.Namespace) -> int:
    from harness.records.leaderboard import Leaderboard

    names = ("task", "by_dataset", "pareto", "methods", "datasets", "backbone", "sort")
    asked = {name: getattr(arguments, name) for name in names}
    board = Leaderboard(read_all(arguments.results), **asked)
    if arguments.missing:
        from harness.cli import missing

        lines = missing.commands(board, registry.load([]))
        print("\n".join(map(harmless, lines)) or "Nothing is missing.")
    elif arguments.checks:
        records = board.chosen()
        apart = differing(record.run for record in records)
        for record in records:
            for check in record.checks:
                print(harmless(f"{run_name(record.run, apart)}: {check}"))
    else:
        print(board.text(arguments.format))
    return 0


def _registry(plugins: list[str]) -> registry.Registry:
    loaded = registry.load(plugins)
    for name, reason in loaded.broken.items():
        print(harmless(f"warning: the plugin {name} was left out: {reason}"), file=sys.stderr)
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
        if last > LARGEST or len(numbers) + last - first >= MOST:
            raise HarnessError(
                f"{option} {text!r} asks for too much: at most {MOST:,} numbers up to {LARGEST:,}."
            )
        numbers += range(first, last + 1)
    return list(dict.fromkeys(numbers))


COMMANDS = {
    "run": _run,
    "leaderboard": _leaderboard,
    "data": _data,
    "bench": _bench,
    "list": _list,
    "show": _show,
}

warnings.showwarning = lambda message, *_args, **_kw: print(
    f"warning: {harmless(message, lines=True)}", file=sys.stderr
)
