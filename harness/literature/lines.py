"""Lines of a comparison: what sources print of a method, and ours of the same."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.certainty.statistics import Difference
from harness.literature import published
from harness.literature.printed import Number, Row
from harness.literature.published import Source

OURS = {"base": "base", "new": "new", "hm": "hm", "accuracy": "test"}  # printed name: our column
Places = Sequence[tuple[Source, Row]]
Numbers = Callable[[Row], tuple[Mapping[str, Number], bool]]  # and whether averaged here


@dataclass(frozen=True)
class Line:
    """Numbers that one or several sources print of a method, and ours if it was measured.

    label: of our row, or the printed method; misfits: by evaluation, what does not add up.
    """

    label: str
    whose: Sequence[str]
    printed: Mapping[str, Number]
    misfits: Mapping[str, str]
    ours: Mapping[str, Difference]

    @property
    def main(self) -> str:
        """The evaluation that is compared: `hm`, or `accuracy`."""
        return "accuracy" if "accuracy" in self.printed else "hm"

    def inside(self, evaluation: str) -> bool | None:
        """Whether the 95% interval of ours holds the printed number; None if there is none."""
        number, ours = self.printed.get(evaluation), self.ours.get(evaluation)
        if number is None or ours is None or ours.low is None or ours.high is None:
            return None
        return ours.low <= number.value / 100 <= ours.high

    def raw(self, alone: bool = False) -> dict[str, Any]:
        """Fractions, as JSON takes them; `text` is what is printed."""
        numbers = dict[str, Any]()
        for name, number in self.printed.items():
            ours = self.ours.get(name)
            numbers[name] = {
                "text": number.text,
                "printed": round(number.value / 100, 10),
                "misfit": self.misfits.get(name),
                "note": number.note,
            }
            if alone:
                continue
            numbers[name] |= {
                "ours": ours.value if ours else None,
                "low": ours.low if ours else None,
                "high": ours.high if ours else None,
                "difference": ours.value - number.value / 100 if ours else None,
                "inside": self.inside(name),
            }
        return {"method": self.label, "printed_in": [*self.whose], "numbers": numbers}


@dataclass(frozen=True)
class Compared:
    """The lines of one of our tables: of a dataset, or of the average of some."""

    title: str
    lines: Sequence[Line]
    notes: Sequence[str] = ()

    def raw(self, alone: bool = False) -> dict[str, Any]:
        """As JSON takes it; `alone`: there are no numbers of ours."""
        rows = [line.raw(alone) for line in self.lines]
        return {"table": self.title, "rows": rows, "notes": [*self.notes]}


def merged(
    label: str, method: str, places: Places, dataset: str,
    numbers: Numbers, ours: Mapping[str, Difference],
) -> list[Line]:  # fmt: skip
    """What is printed of a method: a line for each set of numbers, with all places that have it;
    what most print first."""
    found = list[Line]()
    for source, row in places:
        if row.method != method:
            continue
        printed, computed = numbers(row)
        if not printed:
            continue
        where = source.label(row) + (f" {row.variant}" if row.variant else "")
        where += " (mean)" if computed else ""
        wrong = {} if computed else published.misfits(source, row, dataset)
        for i, line in enumerate(found):
            if _values(printed).items() <= _values(line.printed).items():  # the same, or less
                found[i] = dataclasses.replace(
                    line, whose=[*line.whose, where], misfits={**wrong, **line.misfits}
                )
                break
        else:
            found.append(Line(label, [where], printed, wrong, ours))
    return sorted(found, key=lambda line: -len(line.whose))


def _values(printed: Mapping[str, Number]) -> dict[str, float]:
    """As far as they are printed."""
    return {name: round(number.value, number.decimals) for name, number in printed.items()}


def of_dataset(dataset: str) -> Numbers:
    """What a row prints of a dataset."""
    return lambda row: (row.of(dataset), False)
