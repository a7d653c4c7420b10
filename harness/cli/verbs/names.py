"""`list` and `show`: what is there, and what it is."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import config
from harness.cli import options, pages
from harness.errors import HarnessError, unknown
from harness.records.tables import harmless, plain_table

if TYPE_CHECKING:
    from harness.images.description import Description

PATHS = ("csv", "folder", "hf", "torchvision", "wds")  # what takes a path is no dataset yet
BACKBONES = Path(config.__file__).parent / "backbones"


def add(verbs: Any) -> None:
    """Adds both commands to the parser."""
    _add_list(verbs)
    _add_show(verbs)


def _add_list(verbs: Any) -> None:
    kinds = ("methods", "tasks", "datasets", "backbones")
    listing = verbs.add_parser("list", help="list methods, tasks, datasets or backbones")
    listing.add_argument("kind", choices=kinds, help="what to list")
    every = "backbones: every pair of open_clip's list, with its towers"
    listing.add_argument("--all", action="store_true", help=every)
    listing.add_argument("--json", action="store_true", help="print the rows as JSON")
    options.plugin(listing)
    listing.set_defaults(does=listed)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser(
        "show", help="describe a method, task, dataset, backbone or `engine`, with all its settings"
    )
    show.add_argument("name", help="a name from `list`, `engine`, or a dataset such as folder:PATH")
    show.add_argument(
        "--json", action="store_true", help="of a dataset or a backbone: print it as JSON"
    )
    options.own(show)
    options.root(show)
    options.plugin(show)
    show.set_defaults(does=describe)


def listed(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.all and arguments.kind != "backbones":
        raise HarnessError("--all lists backbones: write `list backbones --all`, or leave it out.")
    if arguments.all:
        from harness.cli import backbones

        print(backbones.every(arguments.plugin, arguments.json))
        return 0
    if arguments.kind == "backbones":
        from harness.towers import backbone

        rows = [
            {"backbone": name, "what it is": what, "source": source}
            for name, (what, source) in backbone.names().items()
        ]
        print(json.dumps(rows, indent=2) if arguments.json else plain_table(rows))
        return 0
    kind = arguments.kind.rstrip("s")
    rows = [
        {kind: page.name, "what it is": page.summary, "source": page.source}
        for page in pages.pages(arguments.plugin)
        if page.kind == arguments.kind
    ]
    print(json.dumps(rows, indent=2) if arguments.json else plain_table(rows))
    return 0


def describe(arguments: argparse.Namespace) -> int:
    """The exit code."""
    cards = {card.parent.name: card for card in sorted(BACKBONES.glob("*/README.md"))}
    every = pages.pages(arguments.plugin)
    found = [page for page in every if page.name == arguments.name]
    known = [page.name for page in every if page.kind == "datasets"]
    family, colon, path = arguments.name.partition(":")
    by_path = bool(path) and family in known
    holds = by_path or (arguments.name in known and arguments.name not in PATHS)
    own = found or by_path or arguments.name in cards or arguments.name == "engine"
    if not own and (colon or arguments.json or _is_model(arguments.name)):
        from harness.cli import backbones

        print(backbones.shown(arguments.name, arguments.plugin, arguments.json))
        return 0
    if arguments.json:
        if not holds:
            raise HarnessError(
                "--json describes datasets and backbones that are not embedded: leave it out for "
                f"{arguments.name}."
            )
        print(json.dumps(_contents(arguments).as_json()))
        return 0
    if arguments.name == "engine":
        _show(pages.engine())
        return 0
    if arguments.name in cards:
        print(cards[arguments.name].read_text(encoding="utf-8").strip())
        return 0
    if by_path:
        print(harmless(str(_contents(arguments)), lines=True))
        return 0
    if not found:
        names = [page.name for page in every]
        raise unknown("name", arguments.name, [*names, *cards, "engine"])
    for page in found:
        _show(page)
    if holds:
        print(f"\n{harmless(str(_contents(arguments)), lines=True)}")
    return 0


def _is_model(name: str) -> bool:
    """Whether open_clip has a model of this name; it is asked only for names that look like one."""
    if not any(letter.isupper() or letter.isdigit() for letter in name):
        return False
    from harness.towers.catalogue import is_model

    return is_model(name)


def _contents(arguments: argparse.Namespace) -> "Description":
    """What the dataset of a name holds."""
    from harness.images import description

    (plugin,) = options.plugins(arguments.plugin).find("datasets", [arguments.name])
    dataset = config.build(plugin, options.own_bindings(arguments))[0]
    root = arguments.data_root and Path(arguments.data_root)
    return description.describe(plugin.name, dataset, root)


def _show(page: pages.Page) -> None:
    print(f"{page.name}\n\n{page.doc}\n")
    if page.settings:
        print(plain_table(page.settings))
    for line in page.lines:
        print(line)
