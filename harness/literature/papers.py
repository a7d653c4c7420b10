"""What the tables and figures of a paper hold, as data: rows, runs, and the numbers it prints."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from harness.errors import HarnessError, unknown
from harness.literature.published import folder

HEADINGS = {  # of the datasets, as the papers write them
    "imagenet": "ImageNet", "caltech101": "Caltech101", "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars", "oxford_flowers": "Flowers102", "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft", "sun397": "SUN397", "dtd": "DTD", "eurosat": "EuroSAT",
    "ucf101": "UCF101", "imagenetv2": "-V2", "imagenet_sketch": "-S", "imagenet_a": "-A",
    "imagenet_r": "-R",
}  # fmt: skip
ELEVEN = tuple(HEADINGS)[:11]
DOMAINS = ("imagenet", *tuple(HEADINGS)[11:])
TRANSFERS = ("cross_dataset", "domain_generalization")  # from the first dataset to the others


@dataclass(frozen=True)
class Line:
    """A row of a table.

    label: as the paper writes it; method: what is run; value: of the setting that the part sweeps;
    cells: further cells before the numbers; printed, note: how the published numbers name the row,
    where that is not the method.
    """

    label: str
    method: str
    value: Any = None
    cells: Mapping[str, str] = field(default_factory=dict)
    printed: str = ""
    note: str = ""


@dataclass(frozen=True)
class Part:
    """Runs that are asked for together: a task, its rows, and a setting that they sweep.

    datasets: the paper's; none: the paper names none. shots: as of --shots; once: whether the first
    seed is enough.
    """

    task: str
    lines: Sequence[Line]
    datasets: Sequence[str] = ELEVEN
    sweep: str = ""
    shots: str = "16"
    forgetting: bool = False
    once: bool = False

    @property
    def methods(self) -> str:
        """As of --methods."""
        return ",".join(dict.fromkeys(line.method for line in self.lines))

    @property
    def sweeps(self) -> list[str]:
        """As of --sweep."""
        values = ",".join(repr(line.value) for line in self.lines)
        return [f"{self.sweep}={values}"] if self.sweep else []


@dataclass(frozen=True)
class Exhibit:
    """A table or a figure of a paper.

    by_dataset: a block for each dataset, and not the average alone; remarks: whether the
    published numbers have notes that are about single cells.
    """

    name: str
    title: str
    parts: Sequence[Part]
    by_dataset: bool = False
    remarks: bool = False

    def swept(self, values: Mapping[str, Sequence[int]]) -> "Exhibit":
        """The exhibit with other values of the settings that its parts sweep."""
        return replace(
            self,
            parts=[
                replace(part, lines=_swept(part.lines[0].method, values[part.sweep]))
                if part.sweep in values else part
                for part in self.parts
            ],
        )  # fmt: skip


@dataclass(frozen=True)
class Paper:
    """A paper: its exhibits, and the file of the numbers that it prints, if they are known."""

    name: str
    title: str
    exhibits: Sequence[Exhibit]
    numbers: str = ""
    backbone: str = "ViT-B/16 of CLIP"
    backbones: Sequence[str] = (  # our names of it
        "ViT-B-16-quickgelu:openai", "hf-hub:timm/vit_base_patch16_clip_224.openai",
    )  # fmt: skip
    remark: str = ""

    def exhibit(self, name: str) -> Exhibit:
        """The exhibit of that name.

        Raises:
            HarnessError: there is none.
        """
        found = {each.name: each for each in self.exhibits}
        if name not in found:
            raise unknown(f"table or figure of {self.name}", name, found)
        return found[name]

    def printed(self, exhibit: Exhibit) -> list[dict[str, str]]:
        """The rows that are known of what a table prints: `method`, `dataset`, `evaluation`,
        `value`, `note` and others; none where the file is not there."""
        path = folder() / self.numbers
        if not self.numbers or not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if row["table"] == exhibit.name.removeprefix("table")]


def number(text: str) -> float | None:
    """A printed number in percent as a fraction; None if it is none."""
    return scaled(text, -2)


def scaled(text: str, places: int) -> float | None:
    """A printed number times ten to the power of `places`; None if it is none."""
    try:
        return float(Decimal(text).scaleb(places))
    except InvalidOperation:
        return None


def _lines(*pairs: tuple[str, str]) -> list[Line]:
    return [Line(label, method) for label, method in pairs]


def _swept(method: str, values: Sequence[int]) -> list[Line]:
    return [Line(str(value), method, value) for value in values]


def _ratios(*ratios: float) -> Line:
    shown = f"[{', '.join(map(str, ratios))}]"
    return Line(f"{len(ratios)} {shown}", "dra", ratios, note=f"K={len(ratios)} e={shown}")


def _component(label: str, method: str, cr: bool, reg: bool, printed: str = "") -> Line:
    cells = {"CR": "✓" if cr else "", "L_reg": "✓" if reg else ""}
    return Line(label, method, cells=cells, printed=printed)


_ONE = _lines(
    ("CLIP", "zero_shot"), ("CoOp", "coop"), ("CoCoOp", "cocoop"), ("ProDA", "proda"),
    ("KgCoOp", "kgcoop"), ("LFA", "lfa"), ("MaPLe", "maple"), ("MetaPrompt", "metaprompt"),
    ("TCP", "tcp"), ("MMA", "mma"), ("DRA", "dra"),
)  # fmt: skip
_TWO = _lines(("CoOp", "coop"), ("CoCoOp", "cocoop"), ("MaPLe", "maple"), ("TCP", "tcp"),
              ("MMA", "mma"), ("DRA", "dra"))  # fmt: skip
_THREE = _lines(
    ("CLIP", "zero_shot"), ("CoOp", "coop"), ("CoCoOp", "cocoop"), ("KgCoOp", "kgcoop"),
    ("MaPLe", "maple"), ("MMA", "mma"), ("DRA", "dra"),
)  # fmt: skip
_FOUR = [
    _component("Baseline", "adapter", False, False, "dra-baseline"),
    _component("DRA-T", "dra-t", True, True),
    _component("DRA-V", "dra-v", True, True),
    _component("DRA-T&V", "dra-none", False, False),
    _component("DRA-T&V", "dra-cr", True, False),
    _component("DRA-T&V", "dra-reg", False, True),
    _component("DRA-T&V", "dra", True, True),
]
_FIVE = [_ratios(1.0, 0.5), _ratios(1.0, 0.25), _ratios(1.0, 0.7, 0.4), _ratios(1.0, 0.6, 0.2),
         _ratios(1.0, 0.8, 0.6, 0.4), _ratios(1.0, 0.7, 0.4, 0.1),
         _ratios(1.0, 0.8, 0.6, 0.4, 0.2)]  # fmt: skip
_SIX = _lines(("CoOp", "coop"), ("CoCoOp", "cocoop"), ("KgCoOp", "kgcoop"), ("MaPLe", "maple"),
              ("DRA", "dra"))  # fmt: skip
_CURVE = _lines(("CLIP", "zero_shot"), ("LoRA", "lora"), ("Comp-LoRA", "comp_lora"))

DRA = Paper(
    "dra",
    "Dynamic Rank Adaptation for Vision-Language Models (arXiv 2507.05668)",
    [
        Exhibit("table1", "base-to-new generalisation", [Part("base2new", _ONE)], True, True),
        Exhibit("table2", "cross-dataset evaluation", [Part("cross_dataset", _TWO)], True),
        Exhibit("table3", "domain generalization",
                [Part("domain_generalization", _THREE, DOMAINS)], True),
        Exhibit("table4", "components: branches, channel response (CR), regulariser (L_reg)",
                [Part("base2new", _FOUR)], remarks=True),
        Exhibit("table5", "groups of tokens (K) and rank ratios",
                [Part("base2new", _FIVE, sweep="dra.ratios")]),
        Exhibit("table6", "computational efficiency",
                [Part("efficiency", _SIX, (), once=True), Part("base2new", _SIX)], remarks=True),
        Exhibit("figure3", "intermediate dimension r and first block h",
                [Part("base2new", _swept("dra", (4, 8, 16, 32, 64)), sweep="dra.rank"),
                 Part("base2new", _swept("dra", (1, 3, 5, 7, 9, 11)), sweep="dra.first_block")]),
        Exhibit("figure4", "importance and rank of each token of images and texts",
                [Part("base2new", _lines(("DRA", "dra")), once=True)]),
    ],
    "dra.csv",
)  # fmt: skip
COMP_LORA = Paper(
    "comp-lora",
    "Complementary Subspace Low-Rank Adaptation of Vision-Language Models for Few-Shot "
    "Classification (arXiv 2501.15040)",
    [
        Exhibit("curve", "few-shot accuracy by shots",
                [Part("few_shot", _CURVE, shots="1,2,4,8,16")]),
        Exhibit("forgetting", "few-shot accuracy, and the change on the other datasets",
                [Part("few_shot", _CURVE, forgetting=True)]),
    ],
    remark="No table of this paper is known here: the rows are this project's choice, and nothing "
    "printed stands beside them. The abstract alone has numbers: about 1.0 points of accuracy more "
    "than LoRA, and about 1.3 of the zero-shot accuracy.",
)  # fmt: skip
PAPERS = {paper.name: paper for paper in (DRA, COMP_LORA)}


def named(name: str) -> Paper:
    """The paper of that name.

    Raises:
        HarnessError: there is none.
    """
    if name.replace("_", "-") not in PAPERS:
        raise HarnessError(str(unknown("paper", name, PAPERS)))
    return PAPERS[name.replace("_", "-")]
