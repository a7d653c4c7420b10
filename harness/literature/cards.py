"""A card of each method: where it comes from, what it trains, and how it was checked here.

`methods.csv` holds what no code says. Its rows, by registered name:

    family, year (of the first public version), paper, url
    fixed, per_class: trained numbers on ViT-B/16, of all and of each fitted class (16 shots)
    towers: which of them run in each training step; trained_of_clip: what of CLIP itself is trained
    needs: what must be given or is not possible
    equation: the file of the test against a literal transcription
    released: whether it was run beside the authors' code (see RELEASED); note
"""

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from harness.errors import HarnessError
from harness.literature import published
from harness.literature.printed import AVERAGE, WHERE
from harness.records.tables import in_shots

FILE = Path(__file__).with_name("methods.csv")
RELEASED = {  # what each value of that column says, and no more
    "compared": "compared with the authors' code at version 0.1.0: logits, loss, gradients and "
    "three optimiser steps were equal",
    "not compared": "not run beside the authors' code",
    "none public": "no code of the authors is public",
    "its own code runs": "the layers are those of the package itself",
}
BACKBONE = "ViT-B/16"


@dataclass(frozen=True)
class Card:
    """A row of `methods.csv`."""

    method: str
    family: str
    year: str
    paper: str
    url: str
    fixed: str
    per_class: str
    towers: str
    trained_of_clip: str
    needs: str
    equation: str
    released: str
    note: str

    @property
    def parameters(self) -> str:
        """Trained numbers on ViT-B/16, C classes."""
        if not self.fixed:
            return "as its configuration says"
        parts = [f"{int(self.fixed):,}"] if int(self.fixed) or not int(self.per_class) else []
        return " + ".join([*parts, *[f"{int(self.per_class):,} C"] * bool(int(self.per_class))])

    @property
    def cost(self) -> str:
        """The class of its training cost."""
        if not self.towers:
            return "as its configuration says"
        if self.towers != "none":
            both = " and " in self.towers
            return f"the {self.towers} tower{'s run' if both else ' runs'} in each step"
        trains = int(self.fixed) or int(self.per_class)
        return "trained on kept features" if trains else "nothing is trained"

    @property
    def frozen(self) -> str:
        """What of CLIP stays as it is."""
        return f"all but {self.trained_of_clip}" if self.trained_of_clip else "all of CLIP"

    @property
    def verified(self) -> str:
        """How this implementation was checked."""
        return f"equation test ({self.equation}); {RELEASED[self.released]}"

    def lines(self) -> list[tuple[str, str]]:
        """What the card says, by its heading."""
        said = [
            ("family", self.family),
            ("paper", f"{self.paper} ({self.year}){f', {self.url}' if self.url else ''}"),
            (
                "trained",
                f"{self.parameters} numbers on {BACKBONE}" if self.fixed else self.parameters,
            ),
            ("frozen", self.frozen),
            ("training", self.cost),
            ("needs", self.needs or "no more than class names and shots"),
            ("verified", self.verified),
            ("note", self.note),
            *(("published", each) for each in averages(self.method)),
        ]
        return [(heading, text) for heading, text in said if text]


@functools.cache
def cards() -> Mapping[str, Card]:
    """By registered name."""
    names = [each.name for each in fields(Card)]
    with FILE.open(encoding="utf-8", newline="") as file:
        found = [Card(**{name: row[name] for name in names}) for row in csv.DictReader(file)]
    return {card.method: card for card in found}


def card(name: str) -> Card | None:
    """Of a method or a variant: `peft-*` have that of `peft`; None for what is a user's own."""
    return cards().get(name) or (cards().get("peft") if name.startswith("peft-") else None)


def averages(name: str) -> list[str]:
    """Printed average accuracies on ViT-B/16, with their sources; of equal ones one line. Where the
    folder of published numbers is missing, that is the line."""
    found = dict[str, list[str]]()
    try:
        sources = published.sources()
    except HarnessError as error:
        return [str(error)]
    for source in sources.values():
        for row in source.rows:
            numbers = {key: each for key, each in row.numbers.items() if key[0] == AVERAGE}
            where = dict(zip(WHERE, row.where, strict=True))
            asked = row.method == name and where["backbone"] == BACKBONE
            if not (asked and numbers and row.task in published.AVERAGED):
                continue
            shots = f", {in_shots(where['shots'])}" if where["shots"] else ""
            said = ", ".join(f"{key[1]} {each.text}" for key, each in numbers.items())
            note = _notes({key[1]: each.note for key, each in numbers.items()})
            found.setdefault(f"{row.task}{shots}: {said}", []).append(source.label(row) + note)
    return [f"{said} ({'; '.join(dict.fromkeys(where))})" for said, where in found.items()]


def _notes(notes: Mapping[str, str]) -> str:
    """What is said of some numbers, by their names; of which of them, if not of all."""
    found = dict[str, list[str]]()
    for name, note in notes.items():
        for part in note.split("; ") if note else ():
            found.setdefault(part, []).append(name)
    said = [note if len(names) == len(notes) else f"{' and '.join(names)}: {note}"
            for note, names in found.items()]  # fmt: skip
    return f": {', '.join(said)}" if said else ""
