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
    options.plugin(listing)
    listing.set_defaults(does=listed)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser(
        "show", help="describe a method, task, dataset, backbone or `engine`, with all its settings"
    )
    show.add_argument("name", help="a name from `list`, `engine`, or a dataset such as folder:PATH")
    show.add_argument("--json", action="store_true", help="of a dataset: print it as JSON")
    options.own(show)
    options.root(show)
    options.plugin(show)
    show.set_defaults(does=describe)


def listed(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.all and arguments.kind != "backbones":
        raise HarnessError("--all lists backbones: write `list backbones --all`, or leave it out.")
    if arguments.all:
        from harness.towers.catalogue import listed as every_pair

        rows = [
            {"backbone": name, **({"image tower": f"refused: {it}"} if isinstance(it, str) else
                                  it.about())}
            for name, it in every_pair()
        ]  # fmt: skip
        print(plain_table(rows))
        return 0
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
        {kind: page.name, "what it is": page.summary, "source": page.source}
        for page in pages.pages(arguments.plugin)
        if page.kind == arguments.kind
    ]
    print(plain_table(rows))
    return 0


def describe(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.json:
        print(json.dumps(_contents(arguments).as_json()))
        return 0
    if arguments.name == "engine":
        _show(pages.engine())
        return 0
    cards = {card.parent.name: card for card in sorted(BACKBONES.glob("*/README.md"))}
    if arguments.name in cards:
        print(cards[arguments.name].read_text(encoding="utf-8").strip())
        return 0
    every = pages.pages(arguments.plugin)
    found = [page for page in every if page.name == arguments.name]
    known = [page.name for page in every if page.kind == "datasets"]
    family, _, path = arguments.name.partition(":")
    if path and family in known:
        print(harmless(str(_contents(arguments)), lines=True))
        return 0
    if not found and path:
        return _show_backbone(arguments.name, arguments.plugin)
    if not found:
        names = [page.name for page in every]
        raise unknown("name", arguments.name, [*names, *cards, "engine"])
    for page in found:
        _show(page)
    if any(page.kind == "datasets" for page in found) and arguments.name not in PATHS:
        print(f"\n{harmless(str(_contents(arguments)), lines=True)}")
    return 0


def _contents(arguments: argparse.Namespace) -> "Description":
    """What the dataset of a name holds."""
    from harness.images import description

    (plugin,) = options.plugins(arguments.plugin).find("datasets", [arguments.name])
    dataset = config.build(plugin, options.own_bindings(arguments))[0]
    root = arguments.data_root and Path(arguments.data_root)
    return description.describe(plugin.name, dataset, root)


def _show_backbone(name: str, plugin: list[str]) -> int:
    """Prints the towers of a pair of open_clip's list, and which methods they can carry."""
    from harness.dataset import Classes
    from harness.fitting.needs import lacking
    from harness.towers.catalogue import Unloaded
    from harness.towers.catalogue import listed as pairs

    found = dict(pairs(name.removesuffix(":random")))
    if not found:
        raise HarnessError(
            f"{name!r} is no pair of open_clip's list. `list backbones --all` shows all of them."
        )
    for each, it in found.items():
        if not isinstance(it, Unloaded):
            print(f"{each} is refused: {it}")
            continue
        print(each + "\n")
        print(plain_table([{"": key, "what": value} for key, value in it.about().items()]))
        classes = Classes("any", ("a", "b"), "a photo of a {}.")
        can, cannot = list[str](), list[str]()
        for method, entry in options.plugins(plugin).plugins["methods"].items():
            if entry.by_name_only:
                continue
            try:
                missing = lacking(it, entry.cls(**entry.fixed), classes)
            except HarnessError as error:
                missing = [str(error)]
            (cannot if missing else can).append(method)
        print("\nmethods: " + (", ".join(sorted(can)) or "none"))
        print("refused: " + (", ".join(sorted(cannot)) or "none"))
    return 0


def _show(page: pages.Page) -> None:
    print(f"{page.name}\n\n{page.doc}\n")
    if page.settings:
        print(plain_table(page.settings))
    for line in page.lines:
        print(line)
