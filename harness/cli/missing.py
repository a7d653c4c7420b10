"""The commands that make the runs which incomplete rows of the leaderboard lack."""

import argparse
import ast
import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import config
from harness.cli.arguments import parser
from harness.config import Engine
from harness.errors import HarnessError
from harness.leaderboards.leaderboard import Leaderboard
from harness.records.entry import TABLES, entry
from harness.records.labels import method_label
from harness.records.record import Record
from harness.registry import Registry


def commands(board: Leaderboard, registry: Registry) -> list[str]:
    """One for each row and set of seeds; methods without settings share one.

    What a record does not hold, the place of data and plugins, is taken from the command that made
    one of the row's records.
    """
    records = board.chosen()
    table = board.frame()
    rows = table[(table["dataset"] != "average") & table["applicable"].astype(bool)]
    shared = dict[tuple[str, ...], list[str]]()
    for (*key, _), part in rows.groupby([*TABLES, "label"], sort=False):
        lacking = dict[tuple[int, ...], list[str]]()
        for _, row in part.iterrows():
            if row["missing"]:
                lacking.setdefault(tuple(row["missing"]), []).append(row["dataset"])
        given, label = part["given"].iloc[0], part["label"].iloc[0]
        for seeds, datasets in lacking.items():
            model = _model(records, tuple(map(str, key)), label)
            options = tuple(_options(model, datasets, seeds, given, registry))
            shared.setdefault(options, []).append(model.run["method"])
    return [
        shlex.join(["python", "-m", "harness", "run", "--methods", ",".join(methods), *options])
        for options, methods in shared.items()
    ]


def other_shards(records: Sequence[Record]) -> str:
    """A sentence if the records were made by some shards of a plan alone; else nothing."""
    made = dict[int, set[int]]()
    for command in {str(record.provenance.get("command") or "") for record in records}:
        for text in re.findall(r" --shard[ =]'?(\d+/\d+)", command):
            number, count = map(int, text.split("/"))
            made.setdefault(count, set()).add(number)
    parts = [f"{', '.join(map(str, sorted(numbers)))} of {count}"
             for count, numbers in sorted(made.items()) if len(numbers) < count]  # fmt: skip
    if not parts:
        return ""
    return (
        f"These records are of shard {' and '.join(parts)}. Runs of other shards may be in other "
        "folders: give all of them to --results."
    )


def _model(records: Sequence[Record], key: tuple[str, ...], label: str) -> Record:
    """A record of the row, a finished one if there is one."""
    mine = [r for r in records if not r.measures and entry(r).table == key
            and r.run["method"] == label.partition("[")[0]]  # fmt: skip
    return max(mine, key=lambda r: (method_label(r.run) == label, r.final, r.time))


def _options(
    record: Record,
    datasets: Sequence[str],
    seeds: Sequence[int],
    given: dict[str, Any],
    registry: Registry,
) -> Iterator[str]:
    run, made = record.run, _made_by(record)
    fields = run.get("task_fields") or {}
    names = fields.get("others") or datasets  # with --forgetting all are selected together
    places = {Path(part.partition(":")[2]).stem: part
              for part in (made.datasets or "").split(",") if ":" in part}  # fmt: skip
    named = [places.get(name.partition(":")[2], name) if ":" in name else name for name in names]
    yield from ("--tasks", run["task"], "--datasets", ",".join(named))
    yield from ("--backbone", run["backbone"], "--shots", str(run["shots"]))
    yield from ("--seeds", ",".join(map(str, seeds)))
    for name, value in given.items():
        yield from ("--set", f"{run['method']}.{name}={_literal(value)}")
    usual = config.build_engine(config.profile(run["backbone"])).identity()
    usual = json.loads(json.dumps(usual))
    for name, value in run["settings"].items():
        if usual.get(name, getattr(Engine(), name, None)) != value:
            yield from ("--set", f"engine.{name}={_literal(value)}")
    plugin = registry.plugins["tasks"].get(run["task"])
    if plugin is not None:
        task = plugin.cls(**plugin.fixed)
        for name, value in fields.items():
            if name != "others" and json.loads(json.dumps(getattr(task, name, value))) != value:
                yield from ("--set", f"{run['task']}.{name}={_literal(value)}")
    for text in made.settings:  # of datasets
        target = text.partition(".")[0]
        if target in registry.plugins["datasets"] or target in named:
            yield from ("--set", text)
    for template in made.template or ():
        yield from ("--template", template)
    for option in ("data_root", "class_names", "image_column", "label_column", "configuration",
                   "splits", "lists"):  # fmt: skip
        if getattr(made, option, None):
            yield from (f"--{option.replace('_', '-')}", str(getattr(made, option)))
    for path in made.class_texts:
        yield from ("--class-texts", str(path))
    for text in made.plugin:
        yield from ("--plugin", text)
    if record.folder is not None:
        yield from ("--results", str(record.folder))


def _made_by(record: Record) -> argparse.Namespace:
    """The arguments of the command that made a record; none if it was made by another program."""
    none = argparse.Namespace(datasets=None, settings=[], plugin=[], data_root=None,
                              template=None, class_names=None,
                              class_texts=[])  # fmt: skip
    words = record.provenance.get("command") or ""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            made = parser().parse_args(shlex.split(words)[3:])
    except (SystemExit, ValueError, HarnessError):
        return none
    if made.command not in ("run", "paper"):
        return none
    if "--data-root" not in words:
        made.data_root = None
    return made


def _literal(value: Any) -> str:
    """As --set reads it."""
    if not isinstance(value, str):
        return repr(value).replace(" ", "")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return repr(value)
