"""`recommend`: which method for my images?"""

import argparse
import sys
from pathlib import Path
from typing import Any

from harness import config
from harness.cli import options
from harness.errors import HarnessError
from harness.records.store import Store
from harness.records.tables import harmless

# not among the runs: folds are no datasets of a leaderboard
RESULTS = Path("results/recommend")


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "recommend",
        help="say which method suits your own images, and how sure that is",
        description="Say which method suits your own images. A few methods are compared on folds "
        "of the training images, at first with few images and then with more, until one is told "
        "apart from all others or the time is spent. The test images are not scored: their files "
        "are only compared with the training images, to find copies. Finished runs are kept, so "
        "the same command continues where it stopped.",
        epilog="Example: recommend --datasets folder:PATH --budget 10m "
        "--backbone ViT-B-16-quickgelu:openai",
    )
    parser.add_argument(
        "--datasets", required=True, metavar="NAME", help="folder:PATH or csv:FILE, your own "
        "images; see `list datasets`",
    )  # fmt: skip
    options.own(parser)
    options.bad_images(parser)
    parser.add_argument(
        "--budget", default="10m", metavar="TIME", help="time that may be spent: 90s, 10m or 2h "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", default="", metavar="NAMES", help="methods to compare; see `list methods` "
        "(default: zero_shot, tip_adapter, linear_probe, tip_adapter_f, lfa, tcp, lora)",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", default=options.DEFAULT_BACKBONE, metavar="NAME",
        help="pretrained model; see `list backbones` (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--shots", default="16", metavar="N", help="most training images per class (default: 16)"
    )
    options.root(parser)
    parser.add_argument(
        "--device", metavar="NAME", help="cuda, cuda:1 or cpu (default: cuda if available)"
    )
    options.cache(parser)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="folder for the "
        "records (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print raw numbers as JSON")
    options.plugin(parser)
    parser.set_defaults(does=answer)


def answer(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.cli import recommend_numbers, recommend_text
    from harness.runs.budget import seconds_of
    from harness.runs.plan import Request
    from harness.runs.recommend import recommend

    budget = seconds_of(arguments.budget)
    shots = options.numbers("--shots", arguments.shots)
    if len(shots) != 1:
        raise HarnessError(f"--shots {arguments.shots!r}: recommend takes one number, the most.")
    bindings = options.own_bindings(arguments)
    if arguments.on_bad_image:
        bindings.append(
            config.bind("engine.on_bad_image", arguments.on_bad_image, "--on-bad-image")
        )
    request = Request(
        methods=arguments.methods, tasks="few_shot", datasets=arguments.datasets,
        backbone=arguments.backbone, shots=shots, seeds=[1], root=arguments.data_root,
        bindings=bindings,
        device=arguments.device, disk=options.disk(arguments),
    )  # fmt: skip
    store, registry = Store(arguments.results), options.plugins(arguments.plugin)
    found = recommend(request, registry, store, budget)
    for line in recommend_text.remarks(found, request.root):
        print(harmless(line), file=sys.stderr)
    if arguments.json:
        print(recommend_numbers.as_json(found))
    else:
        print("\n" + harmless(recommend_text.text(found, _same(arguments)), lines=True))
    return 0


def _same(arguments: argparse.Namespace) -> list[str]:
    """The options that a command on the same data needs, too."""
    given = ["--datasets", arguments.datasets, "--backbone", arguments.backbone]
    for template in arguments.template or ():
        given += ["--template", template]
    for name in ("class_names", "image_column", "label_column", "configuration", "splits",
                 "on_bad_image", "device"):  # fmt: skip
        if getattr(arguments, name) is not None:
            given += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    if arguments.data_root is not None and ":" not in arguments.datasets:
        given += ["--data-root", str(arguments.data_root)]
    return [*given, *(f"--plugin={each}" for each in arguments.plugin)]
