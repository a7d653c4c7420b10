"""What does not add up in printed tables: harmonic means, and averages over datasets.

A number follows from others only up to their rounding, half a unit of the last decimal each. A
printed HM h agrees if h ± e_h meets [HM(b - e_b, n - e_n), HM(b + e_b, n + e_n)]; a printed average
agrees if it is no farther from the mean than its own e and the mean of the others'.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.literature.printed import AVERAGE, Number, Row
from harness.records.entry import harmonic_mean

SOURCE = "imagenet"  # of the transfer tasks: it is no target, and not in their averages
TRANSFER = ("cross_dataset", "domain_generalization")
SLACK = 1e-9


@dataclass(frozen=True)
class Misfit:
    """A printed number, what follows from the others, and how far they may be apart."""

    row: Row
    dataset: str
    evaluation: str
    printed: Number
    follows: float
    tolerance: float
    why: str


@dataclass(frozen=True)
class Checked:
    """The misfits, and how many numbers were compared; averages that could not be, and why."""

    misfits: Sequence[Misfit]
    harmonic: int
    averages: int
    unchecked: Sequence[str]


def check(rows: Iterable[Row]) -> Checked:
    """Every HM against its base and new, every average against the printed datasets."""
    tables = dict[tuple[str, ...], list[Row]]()
    for row in rows:
        tables.setdefault(row.where, []).append(row)
    misfits, counts, unchecked = list[Misfit](), [0, 0], list[str]()
    for table in tables.values():
        for evaluation in ("base", "new", "accuracy"):
            every = {name for row in table for name, e in row.numbers if e == evaluation}
            for row in table:
                if (AVERAGE, evaluation) not in row.numbers:
                    continue
                if lacking := every - {name for name, e in row.numbers if e == evaluation}:
                    unchecked.append(f"{row.name}, {evaluation}: lacks {len(lacking)} datasets")
                    continue
                compared = _average(row, evaluation)
                counts[1] += compared is not None
                misfits += [each for each in compared or () if each]
        for row in table:
            for dataset in dict.fromkeys(name for name, _ in row.numbers):
                if {"base", "new", "hm"} <= row.of(dataset).keys():
                    counts[0] += 1
                    misfits += _harmonic(row, dataset)
    misfits.sort(key=lambda each: each.printed.line)
    return Checked(misfits, counts[0], counts[1], unchecked)


def _harmonic(row: Row, dataset: str) -> list[Misfit]:
    base, new, printed = (row.numbers[dataset, each] for each in ("base", "new", "hm"))
    low = harmonic_mean(max(0.0, base.value - base.half), max(0.0, new.value - new.half))
    high = harmonic_mean(base.value + base.half, new.value + new.half)
    if low - printed.half - SLACK <= printed.value <= high + printed.half + SLACK:
        return []
    follows = harmonic_mean(base.value, new.value)
    tolerance = max(follows - low, high - follows) + printed.half
    why = f"HM of base {base.text} and new {new.text}"
    means = [number for (name, e), number in row.numbers.items() if e == "hm" and name != AVERAGE]
    if dataset == AVERAGE and len(means) > 1:
        mean, allowed = _mean(means, printed)
        if abs(printed.value - mean) <= allowed:
            why += f"; {printed.text} is the mean of the {len(means)} printed HMs instead"
    return [Misfit(row, dataset, "hm", printed, follows, tolerance, why)]


def _average(row: Row, evaluation: str) -> list[Misfit] | None:
    """None if there are not two datasets to average."""
    printed = row.numbers[AVERAGE, evaluation]
    each = {name: number for (name, e), number in row.numbers.items()
            if e == evaluation and name != AVERAGE}  # fmt: skip
    targets = {name: number for name, number in each.items() if name.casefold() != SOURCE}
    if row.task in TRANSFER:
        each = targets
    if len(each) < 2:
        return None
    choices = [each, targets] if not row.task and evaluation == "accuracy" else [each]
    for chosen in choices:
        mean, tolerance = _mean([*chosen.values()], printed)
        if chosen and abs(printed.value - mean) <= tolerance:
            return []
    mean, tolerance = _mean([*each.values()], printed)
    why = f"mean of the {len(each)} printed {'targets' if row.task in TRANSFER else 'datasets'}"
    return [Misfit(row, AVERAGE, evaluation, printed, mean, tolerance, why)]


def _mean(numbers: Sequence[Number], printed: Number) -> tuple[float, float]:
    """The mean of printed numbers, and how far a printed average may be from it."""
    if not numbers:
        return 0.0, -1.0
    mean = sum(number.value for number in numbers) / len(numbers)
    half = sum(number.half for number in numbers) / len(numbers)
    return mean, half + printed.half + SLACK
