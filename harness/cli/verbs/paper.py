"""`paper`: the tables and figures of a paper, each by one command."""

import argparse
import contextlib
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import config
from harness.cli import options
from harness.cli.verbs import run
from harness.errors import HarnessError
from harness.literature import papers
from harness.literature.papers import Exhibit, Paper, Part
from harness.records.store import Record
from harness.records.tables import harmless, plain_table, width

MEASURED_ON = "caltech101"  # of the paper's datasets, where it names none
FIGURES = Path("results/figures")
OF_FIGURES = {  # options that some figures alone read
    "ranks": ("figure3",), "blocks": ("figure3",), "images": ("figure4",), "texts": ("figure4",),
    "fit": ("figure4",), "block": ("figure4",), "out": ("figure3", "figure4"),
}  # fmt: skip


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    paper = verbs.add_parser(
        "paper",
        help="make the tables and figures of a paper",
        description="Make a table or a figure of a paper: run what is missing, then print it in "
        "the paper's form with the numbers that the paper prints. Without names it lists them.",
        epilog="The datasets are those of the paper where there is a --data-root and the backbone "
        "is not the embedded one, and else the embedded ones.",
    )
    paper.add_argument("paper", nargs="?", metavar="PAPER", help="without it: list the papers")
    paper.add_argument(
        "exhibit", nargs="?", metavar="EXHIBIT", help="such as table1 or figure3; without it: list "
        "those of the paper",
    )  # fmt: skip
    run.shared(paper)
    paper.set_defaults(seeds="1-3")
    paper.add_argument("--json", action="store_true", help="print raw numbers as JSON")
    paper.add_argument("--ranks", metavar="LIST", help="figure3: values of r (default: 4 to 64)")
    paper.add_argument(
        "--blocks", metavar="LIST", help="figure3: values of h, counted from 1 (default: 1 to 11)"
    )
    paper.add_argument(
        "--images", nargs="+", type=Path, metavar="FILE", help="figure4: images (default: two of "
        "the dataset of the fit)",
    )  # fmt: skip
    paper.add_argument("--texts", nargs="+", metavar="TEXT", help="figure4: texts, each quoted")
    paper.add_argument(
        "--fit", type=Path, metavar="FILE", help="figure4: a record or a file of weights of dra "
        "(default: the fit is made)",
    )  # fmt: skip
    paper.add_argument(
        "--block", type=int, metavar="N", help="figure4: block whose tokens are drawn, counted "
        "from 1 (default: the last)",
    )  # fmt: skip
    paper.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder for the pictures (default: {FIGURES})"
    )
    paper.set_defaults(does=make)


def make(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.paper is None:
        return _list(papers.PAPERS.values(), arguments.json)
    paper = papers.named(arguments.paper)
    if arguments.exhibit is None:
        if not arguments.json:
            print(textwrap.fill(paper.title, width()))
        code = _list(paper.exhibits, arguments.json)
        if paper.remark and not arguments.json:
            print("\n" + textwrap.fill(paper.remark, width()))
        return code
    exhibit = _swept(paper.exhibit(arguments.exhibit), arguments)
    _check(exhibit, arguments)
    if exhibit.name == "figure4":
        from harness.cli.token_figure import draw

        request = request_of(exhibit.parts[0], exhibit, arguments)
        return draw(request, arguments.out or FIGURES, f"{paper.name}-{exhibit.name}")
    done = list[tuple[Part, Sequence[Record]]]()
    for part in exhibit.parts:
        with _quiet(arguments):
            records = run.carried_out(request_of(part, exhibit, arguments))
        if records is not None:
            done.append((part, records))
    if not done:
        return 0
    _print(paper, exhibit, done, arguments)
    return run.failures(record for _, records in done for record in records)


def _list(named: Any, as_json: bool) -> int:
    if as_json:
        print(json.dumps({each.name: each.title for each in named}, indent=1))
    else:
        print(plain_table([{"name": each.name, "what": each.title} for each in named]))
    return 0


def _swept(exhibit: Exhibit, arguments: argparse.Namespace) -> Exhibit:
    """The exhibit with the values of --ranks and --blocks."""
    asked = {
        "dra.rank": ("--ranks", arguments.ranks),
        "dra.first_block": ("--blocks", arguments.blocks),
    }
    return exhibit.swept(
        {name: options.numbers(*given) for name, given in asked.items() if given[1] is not None}
    )


def _check(exhibit: Exhibit, arguments: argparse.Namespace) -> None:
    """Raises HarnessError for an option that this table or figure does not read."""
    for name, readers in OF_FIGURES.items():
        if getattr(arguments, name) is not None and exhibit.name not in readers:
            raise HarnessError(
                f"--{name} is read by {' and '.join(readers)}, not by {exhibit.name}. Leave it out."
            )
    swept = {part.sweep for part in exhibit.parts}
    for text in arguments.settings:
        setting = config.read_set(text)
        if setting.setting == "few_shot.forgetting" and any(p.forgetting for p in exhibit.parts):
            raise HarnessError(f"--set {text}: {exhibit.name} says that itself. Leave it out.")
        if swept == {setting.setting}:
            raise HarnessError(
                f"--set {text}: {exhibit.name} has a row for each value of its own. Leave it out, "
                f"or use `run` with --sweep {setting.target}.{setting.name}=..."
            )


def request_of(part: Part, exhibit: Exhibit, arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments of `run` for a part of a table: the paper's methods, task, shots and sweep,
    with everything else as it was given."""
    others = {each.task for each in exhibit.parts} - {part.task}
    asked = argparse.Namespace(**vars(arguments))
    asked.methods, asked.tasks, asked.shots = part.methods, part.task, part.shots
    asked.sweep, asked.forgetting = part.sweeps, part.forgetting
    own = {each.setting for each in config.read_sweeps(part.sweeps)[0]}
    asked.settings = [text for text in arguments.settings
                      if (each := config.read_set(text)).target.replace("-", "_") not in others
                      and each.setting not in own]  # fmt: skip
    if part.once:
        asked.seeds = str(options.numbers("--seeds", arguments.seeds)[0])
        asked.datasets = asked.datasets and _first(asked)
    if arguments.datasets is None:
        papers_own = arguments.data_root and arguments.backbone != options.DEFAULT_BACKBONE
        if papers_own:
            asked.datasets = MEASURED_ON if part.once else ",".join(part.datasets)
        elif part.task in papers.TRANSFERS:
            source = f"{part.task}.source"
            if source not in (config.read_set(text).setting for text in asked.settings):
                asked.settings = [f"{source}=emoji", *asked.settings]
    return asked


def _first(arguments: argparse.Namespace) -> str:
    """The first of the datasets that were given."""
    found = options.plugins(arguments.plugin).find("datasets", arguments.datasets)
    given = [part.strip() for part in arguments.datasets.split(",") if ":" in part]
    return given[0] if ":" in found[0].name else found[0].name


@contextlib.contextmanager
def _quiet(arguments: argparse.Namespace) -> Any:
    """With --json the plan and the progress go to standard error."""
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        yield


def _print(
    paper: Paper,
    exhibit: Exhibit,
    done: Sequence[tuple[Part, Sequence[Record]]],
    arguments: argparse.Namespace,
) -> None:
    from harness.literature import paper_tables, paper_text

    tables = paper_tables.filled(paper, exhibit, done)
    title = f"{paper.name} {exhibit.name}: {exhibit.title}"
    others = {"--config": arguments.config, "--views": arguments.views,
              "--on-bad-image": arguments.on_bad_image}  # fmt: skip
    given = [*arguments.settings, *(f"{name} {value}" for name, value in others.items() if value)]
    how = f"{paper.title}. Made with {arguments.backbone}."
    if arguments.backbone in config.profiles():
        how += " It comes with settings of methods that are not the published ones: see "
        how += f"`show {arguments.backbone}` and configs/{arguments.backbone}.gin."
    if given:
        how += f" Settings that were given: {', '.join(given)}."
    files = list[Path]()
    if exhibit.name == "figure3":
        from harness.literature.figures import curves

        files = curves(tables).save(arguments.out or FIGURES, f"{paper.name}-{exhibit.name}")
    if arguments.json:
        raw = [paper_tables.raw(each) | {"notes": paper_text.notes(each)} for each in tables]
        content = {"paper": paper.name, "title": title, "backbone": arguments.backbone,
                   "settings": given, "tables": raw,
                   "files": [str(path) for path in files]}  # fmt: skip
        print(json.dumps(content, indent=1, allow_nan=False))
        return
    print(f"\n{title}\n{textwrap.fill(harmless(how), width(), break_on_hyphens=False)}\n")
    print("\n\n".join(paper_text.text(each) for each in tables))
    for path in files:
        print(f"written: {harmless(path)}")
