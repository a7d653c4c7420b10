"""`list` and `show`: what is there, and what it is."""

import argparse
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import config
from harness.cli import options
from harness.errors import unknown
from harness.records.tables import plain_table

BACKBONES = Path(config.__file__).parent / "backbones"


def add(verbs: Any) -> None:
    """Adds both commands to the parser."""
    _add_list(verbs)
    _add_show(verbs)


def _add_list(verbs: Any) -> None:
    kinds = ("methods", "tasks", "datasets", "backbones")
    listing = verbs.add_parser("list", help="list methods, tasks, datasets or backbones")
    listing.add_argument("kind", choices=kinds, help="what to list")
    options.plugin(listing)
    listing.set_defaults(does=listed)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser(
        "show", help="describe a method, task, dataset or `engine`, with all its settings"
    )
    show.add_argument("name", help="a name from `list`, or `engine`")
    options.plugin(show)
    show.set_defaults(does=describe)


def listed(arguments: argparse.Namespace) -> int:
    """The exit code."""
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
        for plugin in options.plugins(arguments.plugin).plugins[arguments.kind].values()
    ]
    print(plain_table(rows))
    return 0


def describe(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.name == "engine":
        _describe("engine", config.Engine, {}, "what it does")
        return 0
    plugins = options.plugins(arguments.plugin)
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
    for binding in config.profile(options.DEFAULT_BACKBONE):
        if binding.target.replace("_", "-") in (name.replace("_", "-"), family):
            print(
                f"on {options.DEFAULT_BACKBONE}: {binding.name} = {binding.value!r} "
                f"({binding.origin})"
            )
