"""`bench`: the engine against the published training loops."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import config
from harness.cli import options
from harness.errors import HarnessError, unknown

METHODS = "coop,cocoop,kgcoop,maple,mma,adapter,dra"
ON_CARD = "coop,cocoop,maple,mma,adapter,dra,lora,zero_shot"


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    text = "compare the engine's speed with that of the published training loops"
    bench = verbs.add_parser(
        "bench",
        help=text,
        description="Compare the engine's speed with the arithmetic of the published training "
        "loops: training steps and evaluation on random images with randomly initialised weights, "
        "then a matrix of complete runs on the embedded default. This takes about an hour on two "
        "processor cores. Run nothing else at the same time.",
    )
    bench.add_argument(
        "--methods", metavar="NAMES", help="see `list methods` (default: "
        f"{METHODS}; of the parts that a card is measured for {ON_CARD})",
    )  # fmt: skip
    bench.add_argument(
        "--classes",
        metavar="LIST",
        help="numbers of classes (default: 100,1000; of the part device on a CPU 10)",
    )
    bench.add_argument(
        "--backbone", default="ViT-B-16-quickgelu:random", metavar="NAME",
        help="backbone of the training steps (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="repetitions of each step (default: %(default)s)",
    )
    bench.add_argument(
        "--parts", default="steps,memory,matrix", metavar="NAMES", help=
        "what to measure: training steps and evaluation, the memory of a step, the matrix of "
        "runs, and dra: what DRA's noise leaves of its order; device: images a second, the "
        "share of the device's arithmetic, and where the rest goes; launches: what compiled "
        "blocks and CUDA graphs gain in small steps; evaluation: a whole one from decoded "
        "images; jobs: several runs at once; and, each alone: coverage: whether intervals hold "
        "what they promise, in worlds made from the records in --results; sequential: whether "
        "`recommend` holds its error rate, in simulated worlds; scale: how long a whole "
        "comparison takes on many devices, from the efficiency records in --results; starts: "
        "what commands take that compute nothing; deploy: what exported fits cost; "
        "records: the leaderboard of 100,000 made-up records, which take 2 GB of the disk "
        "meanwhile (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--memory", type=float, default=5, metavar="GB", help="memory that a step may use in the "
        "part `memory` (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument("--device", metavar="NAME", help="cuda or cpu (default: cuda if available)")
    bench.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="save the measurements here, and the printed text next to it as .md",
    )
    bench.add_argument(
        "--worlds", type=int, default=200, metavar="N", help="simulated worlds of the parts "
        "`coverage` and `sequential` (default: %(default)s)",
    )  # fmt: skip
    options.results(bench)
    options.plugin(bench)
    bench.set_defaults(does=measure)


def measure(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.bench import run as bench
    from harness.runs import plan

    if arguments.repeats < 1:
        raise HarnessError(f"--repeats must be at least 1, not {arguments.repeats}.")
    parts = arguments.parts.split(",")
    for name in parts:
        if name not in bench.PARTS:
            raise unknown("part", name, bench.PARTS)
    alone = {
        "coverage": _coverage, "sequential": _sequential, "scale": _scale, "starts": _starts,
        "deploy": _deploy, "records": _records,
    }  # fmt: skip
    for name, part in alone.items():
        if name in parts and parts != [name]:
            raise HarnessError(f"--parts {name} is measured alone.")
        if name in parts:
            if arguments.worlds < 1:
                raise HarnessError(f"--worlds must be at least 1, not {arguments.worlds}.")
            content, text = part(arguments)
            if arguments.out:
                bench.save(arguments.out, content, text)
            print(text)
            return 0
    of_card = set(parts) <= set(bench.CARD)
    asked = arguments.methods or (ON_CARD if of_card else METHODS)
    chosen = options.plugins(arguments.plugin).find("methods", asked)
    device = plan.usable_device(arguments.device)
    usual = "10" if of_card and not device.startswith("cuda") else "100,1000"
    counts = options.numbers("--classes", arguments.classes or usual)
    if min(counts) < 1:
        raise HarnessError(f"--classes {arguments.classes!r}: at least 1.")
    methods = {
        p.name: config.build(p, [], plan.recipe(p, "base2new", "bench", 16))[0] for p in chosen
    }
    print(bench.run(
        methods, counts, arguments.backbone, device, arguments.repeats, parts, arguments.memory,
        arguments.out, arguments.plugin,
    ))  # fmt: skip
    return 0


def _coverage(arguments: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    from harness.bench import coverage
    from harness.certainty.samples import of_table
    from harness.records.store import read_all
    from harness.records.summary import tables

    found = tables(read_all(arguments.results))
    table = next((each for each in found.values() if each.main == "hm"), None)
    sampled = of_table(table) if table else None
    sample = sampled.sample if sampled else None
    if sampled is None or sample is None or len(sample.seeds) < 2 or len(sample.labels) < 2:
        why = f" ({sampled.why})" if sampled and sampled.why else ""
        raise HarnessError(
            "--parts coverage makes its worlds from records of base2new with their predictions, of "
            f"two methods and two seeds at least; {', '.join(map(str, arguments.results))} has "
            f"none{why}."
        )
    content = coverage.measured(sample, arguments.worlds)
    return content, coverage.table(content)


def _sequential(arguments: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    from harness.bench import sequential

    content = sequential.measured(arguments.worlds)
    return content, sequential.table(content)


def _starts(arguments: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    from harness.bench import starts

    content = starts.measured(arguments.repeats)
    return content, starts.table(content)


def _deploy(arguments: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    from harness.bench import deploy

    content = deploy.measured(arguments.repeats)
    return content, deploy.table(content)


def _records(arguments: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    from harness.bench import records

    content = records.measured()
    return content, records.table(content)


def _scale(arguments: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    from harness.bench import scale
    from harness.records.store import read_all

    records = [r for r in read_all(arguments.results) if r.measures and r.status == "done"]
    devices = {json.dumps(record.run["measured_on"]) for record in records}
    if len(devices) != 1:
        raise HarnessError(
            "--parts scale needs efficiency records of one device: give their folder with "
            f"--results. There are records of {len(devices)} devices."
        )
    known = options.plugins([]).plugins["datasets"].values()
    published = {p.name: p.cls(**p.fixed).published for p in known if not p.lacks_path}
    datasets = {n: (f.classes, f.images["test"]) for n, f in published.items() if f}
    content = scale.measured(records, datasets)
    return content, scale.table(content)
