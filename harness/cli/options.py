"""Options that several commands have, and what they come to."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import config, registry
from harness.errors import HarnessError
from harness.files import cache_folder
from harness.records.tables import harmless

if TYPE_CHECKING:
    from harness.images.cache import Disk

DEFAULT_BACKBONE = "emoji-mini"
RESULTS = Path("results/runs")
LARGEST_CARD = 2**20  # GiB
MOST, LARGEST = 10_000, 10**9  # of a list such as --seeds


def root(parser: argparse.ArgumentParser) -> None:
    """--data-root."""
    parser.add_argument(
        "--data-root",
        type=Path,
        default=os.environ.get("DATA"),
        metavar="DIR",
        help="folder that holds the datasets in CoOp's layout (default: $DATA)",
    )


def own(parser: argparse.ArgumentParser) -> None:
    """--template, and how the user's own images are read."""
    parser.add_argument(
        "--template", metavar="TEXT", action="append", help="prompt for datasets that are given by "
        "their paths or names (folder:, csv:, hf:, wds:, torchvision:), with {} for the class name "
        "(default: the dataset's own, or 'a photo of a {}.'); given several times, methods that "
        "leave the towers as they are average them, and those without words of their own take the "
        "first",
    )  # fmt: skip
    own_images(parser)


def own_images(parser: argparse.ArgumentParser) -> None:
    """--class-names, and what says how a hf: dataset is read."""
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="csv file with lines `folder,name`, which "
        "renames the classes of folder:, csv:, hf: and wds: datasets",
    )  # fmt: skip
    for name, metavar, text in (
        ("image-column", "NAME", "the column of images (default: the one of that type)"),
        ("label-column", "NAME", "the column of labels (default: the one of that type)"),
        ("configuration", "NAME", "the configuration (default: the only one)"),
        ("splits", "LIST", "its splits: train=train,val=validation,test=test (default: by their "
         "usual names)"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", metavar=metavar, help=f"of a hf: dataset: {text}")


def own_bindings(arguments: argparse.Namespace) -> list[config.Binding]:
    """The settings that the options of `own`, or of `own_images` alone, give.

    Raises:
        HarnessError: a template that names no class.
    """
    columns = {name: getattr(arguments, name)
               for name in ("image_column", "label_column", "configuration", "splits")}  # fmt: skip
    templates = getattr(arguments, "template", None)
    return config.of_own_images(templates, arguments.class_names, **columns)


def bad_images(parser: argparse.ArgumentParser) -> None:
    """--on-bad-image."""
    parser.add_argument(
        "--on-bad-image", choices=("error", "skip"), help="if images cannot be read: stop before "
        "the first fit, or leave them out and record that (default: error)",
    )  # fmt: skip


def class_texts(parser: argparse.ArgumentParser) -> None:
    """--class-texts."""
    parser.add_argument(
        "--class-texts", type=Path, action="append", default=[], metavar="FILE", help="texts of "
        "each class for methods that read them: JSON {class: [text, ...]} as CuPL, CoPrompt and "
        "DCLIP publish it, or ArGue's YAML; one file a dataset, repeatable",
    )  # fmt: skip


def cache(parser: argparse.ArgumentParser) -> None:
    """--cache-dir and --cache-limit."""
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=cache_folder(),
        metavar="DIR",
        help="folder for decoded images and frozen features, which all runs share (default: "
        "$HARNESS_CACHE, or %(default)s)",
    )
    parser.add_argument(
        "--cache-limit", type=float, default=20, metavar="GB",
        help="size of the cache; the least recently used entries are deleted first; 0 turns it off "
        "(default: 20)",
    )  # fmt: skip


def plugin(parser: argparse.ArgumentParser) -> None:
    """--plugin."""
    text = "module or .py file that defines methods, tasks or datasets; repeatable"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=text)


def results(parser: argparse.ArgumentParser) -> None:
    """--results of a command that reads records."""
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[RESULTS], metavar="DIR", help="one or more "
        f"folders of records (default: {RESULTS})",
    )  # fmt: skip


def card(text: str | None) -> float | None:
    """GiB of a card that --memory gives as 80GB; None where it gives none.

    Raises:
        HarnessError: it is no such size.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    if not match or not 0 < float(match[1]) <= LARGEST_CARD:
        raise HarnessError(f"--memory {text[:40]!r} is no size of a card such as 80GB.")
    return float(match[1])


def disk(arguments: argparse.Namespace) -> "Disk":
    """The cache that the options name."""
    from harness.images.cache import Disk

    if not 0 <= arguments.cache_limit < 2**30:  # nan is neither
        raise HarnessError(f"--cache-limit {arguments.cache_limit} is no size in GB; 0: no cache.")
    return Disk(arguments.cache_dir, int(arguments.cache_limit * 2**30))


def plugins(names: list[str]) -> registry.Registry:
    """What is registered, with a warning for what is broken."""
    loaded = registry.load(names)
    for name, reason in loaded.broken.items():
        print(harmless(f"warning: the plugin {name} was left out: {reason}"), file=sys.stderr)
    return loaded


def numbers(option: str, text: str) -> list[int]:
    """The numbers of a list such as 1,2,3 or 1-3."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise HarnessError(f"{option} {text!r} is not a list such as 1,2,3 or 1-3.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise HarnessError(f"{option} {text!r} counts backwards: write {last}-{first}.")
        if last > LARGEST or len(found) + last - first >= MOST:
            raise HarnessError(
                f"{option} {text!r} asks for too much: at most {MOST:,} numbers up to {LARGEST:,}."
            )
        found += range(first, last + 1)
    return list(dict.fromkeys(found))
