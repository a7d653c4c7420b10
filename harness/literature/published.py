"""Published numbers: the sources that come with the harness, and which of them ours compare with.

Whose numbers agree in task, backbone and shots stand beside ours; the others never do.
"""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError, unknown
from harness.literature import arithmetic, printed
from harness.literature.printed import AVERAGE, WHERE, Number, Row
from harness.records.entry import harmonic_mean

# Names of one set of weights: as papers print it, and as the harness calls it.
BACKBONES = {
    "ViT-B/16": ("ViT-B-16-quickgelu:openai", "hf-hub:timm/vit_base_patch16_clip_224.openai"),
    "RN50": ("RN50-quickgelu:openai", "hf-hub:timm/resnet50_clip.openai"),
}
_TEN = ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
        "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101")  # fmt: skip
AVERAGED = {  # what a printed average is over
    "base2new": {"imagenet", *_TEN},
    "few_shot": {"imagenet", *_TEN},
    "cross_dataset": {*_TEN},
    "domain_generalization": {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"},
}
EVERY = "all"  # in a list of names: methods that were not measured, too


@dataclass(frozen=True)
class Source:
    """A csv file of printed numbers."""

    name: str
    path: Path
    rows: Sequence[Row]
    checked: arithmetic.Checked

    @property
    def numbers(self) -> list[Number]:
        return [number for row in self.rows for number in row.numbers.values()]

    @property
    def papers(self) -> list[str]:
        return list(dict.fromkeys(row.where[0] for row in self.rows))

    @property
    def tables(self) -> list[str]:
        return list(dict.fromkeys(row.where[1] for row in self.rows))

    @property
    def urls(self) -> list[str]:
        return list(dict.fromkeys(number.url for number in self.numbers))

    def label(self, row: Row) -> str:
        """Where a row is printed: `dra 1`; of a file of many papers `readmes MMA`."""
        paper, table = row.where[:2]
        return f"{self.name} {paper.partition(' (')[0] if len(self.papers) > 2 else table}"


@dataclass(frozen=True)
class Wanted:
    """Printed rows that were asked for.

    named: methods to be shown whether or not they were measured; None: all.
    """

    rows: Sequence[tuple[Source, Row]]
    named: frozenset[str] | None


def folder() -> Path:
    """Where the files lie: in an installed package, or in a checkout."""
    package = Path(__file__).parents[1] / "published"
    return package if package.is_dir() else Path(__file__).parents[2] / "results" / "published"


@functools.cache
def sources() -> Mapping[str, Source]:
    """By name, in alphabetical order.

    Raises:
        HarnessError: the files are not there.
    """
    found = {}
    for path in sorted(folder().glob("*.csv")):
        rows = printed.read_file(path).rows
        found[path.stem] = Source(path.stem, path, rows, arithmetic.check(rows))
    if not found:
        raise HarnessError(f"{folder()} holds no csv file of published numbers.")
    return found


def table(name: str) -> Path:
    """The file of a path, or of a source's name.

    Raises:
        HarnessError: there is neither.
    """
    path = Path(name)
    if os.path.lexists(path):
        return path
    if name not in sources():
        raise HarnessError(f"{unknown('source', name, sources())} A file {name!r} is not here.")
    return sources()[name].path


def wanted(names: str = "") -> Wanted:
    """The rows of a comma list of sources and methods, and `all`; without sources of every one.

    `dra` is the source. `dra,coop` is what the source prints of coop.

    Raises:
        HarnessError: a name is neither.
    """
    asked = {part.strip() for part in names.split(",") if part.strip()}
    largest_first = sorted(sources().values(), key=lambda each: -len(each.numbers))
    of = [source for source in largest_first if source.name in asked]
    methods = {row.method for source in sources().values() for row in source.rows}
    for name in asked - {*sources(), EVERY}:
        if name not in methods:
            raise HarnessError(
                f"{unknown('source or method', name, {*sources(), *methods, EVERY})} "
                "`python -m harness published` lists the sources."
            )
    named = asked - {*sources(), EVERY}
    rows = [(source, row) for source in of or largest_first for row in source.rows
            if row.task in AVERAGED and (not named or row.method in named)]  # fmt: skip
    return Wanted(rows, None if EVERY in asked else frozenset(named))


def matching(
    rows: Iterable[tuple[Source, Row]], task: str, backbone: str, shots: str
) -> list[tuple[Source, Row]]:
    """The rows of one task, backbone (our name) and number of shots; a row of 0 shots is of no
    training images, and so beside any number."""
    return [
        (source, row)
        for source, row in rows
        if row.task == task
        and backbone in BACKBONES.get(_of(row, "backbone"), ())
        and _of(row, "shots") in (shots, "0")
    ]


def _of(row: Row, name: str) -> str:
    return row.where[WHERE.index(name)]


def available(rows: Iterable[tuple[Source, Row]]) -> str:
    """For which backbones, tasks and shots there are printed numbers."""
    found = dict[str, dict[str, set[int]]]()
    for _, row in rows:
        if (shots := _of(row, "shots")) not in ("", "0"):
            of_backbone = found.setdefault(_of(row, "backbone"), {})
            of_backbone.setdefault(row.task, set()).add(int(shots))
    parts = []
    for name, tasks in found.items():
        each = [f"{task} ({', '.join(map(str, sorted(shots)))} shots)"
                for task, shots in tasks.items()]  # fmt: skip
        ours = " or ".join(BACKBONES.get(name, ()))
        parts.append(f"{name} (--backbone {ours}): {', '.join(each)}" if ours else name)
    return "; ".join(parts) or "none"


def of_average(row: Row, datasets: Iterable[str]) -> tuple[dict[str, Number], bool]:
    """What a row prints of the average of some datasets, and whether it had to be averaged here,
    because the source's average is not printed or is of other datasets. Nothing if the row lacks
    one of them."""
    datasets = [*datasets]
    average = row.of(AVERAGE)
    if {*datasets} == AVERAGED[row.task] and average:
        return average, False
    found = dict[str, Number]()
    for evaluation in ("base", "new", "accuracy"):
        numbers = [row.of(name).get(evaluation) for name in datasets]
        there = [number for number in numbers if number is not None]
        if numbers and len(there) == len(numbers):
            found[evaluation] = _computed(sum(n.value for n in there) / len(there), there[0])
    if {"base", "new"} <= found.keys():
        hm = harmonic_mean(found["base"].value, found["new"].value)
        found["hm"] = _computed(hm, found["base"])
    return found, True


def _computed(value: float, like: Number) -> Number:
    return Number(like.line, f"{value:.{like.decimals}f}", value, like.decimals, url=like.url)


def misfits(source: Source, row: Row, dataset: str) -> dict[str, str]:
    """What does not add up in a row's numbers of a dataset, by evaluation: what follows."""
    return {
        each.evaluation: f"{row.name}, {each.evaluation} {each.printed.text}: "
        f"{each.follows:.{each.printed.decimals}f} is the {each.why} ({source.label(row)})"
        for each in source.checked.misfits
        if each.row is row and each.dataset == dataset
    }
