"""`data`: find, download and check datasets; inspect the cache."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.cli import options
from harness.errors import HarnessError
from harness.records.tables import plain_table


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
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
        options.own_images(parser)
        options.root(parser)
        options.plugin(parser)
    text = "write the few-shot lists of datasets, one file for each number of shots and seed"
    lists = whats.add_parser(
        "lists", help=text, description=f"{text}: path, label, class, split and the image's "
        "fingerprint (SHA-256 of its file, or of its pixels where it has none) a line. "
        "`run --lists DIR` trains on them.",
    )  # fmt: skip
    lists.add_argument("--datasets", required=True, metavar="NAMES", help="see `list datasets`")
    lists.add_argument("--shots", default="16", metavar="LIST", help="images a class: 1,2,4 "
                       "(default: 16)")  # fmt: skip
    lists.add_argument("--seeds", default="1", metavar="LIST", help="1,2,3 or 1-3 (default: 1)")
    lists.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the files"
    )
    options.own_images(lists)
    options.root(lists)
    options.plugin(lists)
    text = "show how much the cache of decoded images and frozen features holds"
    cache = whats.add_parser("cache", help=text, description=text)
    cache.add_argument("--clear", action="store_true", help="delete everything in it")
    options.cache(cache)
    data.set_defaults(does=look)


def look(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness import config
    from harness.images import download, library

    if arguments.what == "cache":
        return _cache(arguments)
    if arguments.what == "lists":
        return _lists(arguments)
    plugins = options.plugins(arguments.plugin)
    chosen = plugins.find("datasets", ",".join(arguments.names) or "*")
    bindings = options.own_bindings(arguments)
    chosen = [replace(p, fixed={**p.fixed, **config.build(p, bindings)[1]}) for p in chosen]
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


def _lists(arguments: argparse.Namespace) -> int:
    from harness import config
    from harness.images import list_files

    chosen = options.plugins(arguments.plugin).find("datasets", arguments.datasets)
    bindings = options.own_bindings(arguments)
    root = arguments.data_root and Path(arguments.data_root)
    shots, seeds = (options.numbers(f"--{name}", getattr(arguments, name))
                    for name in ("shots", "seeds"))  # fmt: skip
    if min(shots) < 1:
        raise HarnessError(f"--shots must be at least 1, not {min(shots)}.")
    files = [
        path
        for plugin in chosen
        for path in list_files.write(
            plugin.name, config.build(plugin, bindings)[0], root, shots, seeds, arguments.out
        )
    ]
    print(f"{len(files)} lists in {arguments.out}, such as {files[0].name}.")
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    disk = options.disk(arguments)
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
