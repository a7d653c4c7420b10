"""Where things stand in a picture: axes, dots with their names, lines; in pixels, y downwards."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.leaderboards import placement
from harness.leaderboards.placement import Box
from harness.leaderboards.plot import ticks
from harness.records.tables import harmless

WIDTH, HEIGHT = 760, 440
AREA: Box = (48, 24, 752, 396)  # left, top, right, bottom of what is drawn
COLOURS, DASHES = 8, 4  # a line is known by both
LONGEST = 32  # letters of a name in a picture
NAMED = 40  # dots at most have their names beside them; of more those on the front, one a place
ZERO = 0.07  # of the width: where 0 stands before a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """From values to pixels, with the ticks."""

    place: Callable[[float], float]
    marks: Sequence[Mapping[str, Any]]


def axis(
    values: Iterable[float],
    start: float,
    end: float,
    shown: Callable[[float], str],
    unit: float = 1,
    wide: bool = False,
) -> Axis:
    """A linear axis, or with `wide` a logarithmic one if the values span more than a factor 20; a
    zero then stands apart at its start."""
    values = list(values)
    low, high = min(values), max(values)
    positive = [value for value in values if value > 0]
    if wide and low >= 0 and positive and high > 20 * min(positive):
        return _logarithmic(positive, low == 0, start, end, shown)
    at = ticks(low, high, unit)

    def place(value: float) -> float:
        return round(start + (end - start) * (value - at[0]) / (at[-1] - at[0]), 1)

    return Axis(place, [{"at": place(value), "text": shown(value)} for value in at])


def _logarithmic(
    values: Sequence[float], zero: bool, start: float, end: float, shown: Callable[[float], str]
) -> Axis:
    low, high = math.log10(min(values)), math.log10(max(values))
    first = start + (end - start) * ZERO if zero else start
    margin = (high - low) * 0.04
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        if value <= 0:
            return round(start + (end - start) * ZERO / 4, 1)
        return round(first + (end - first) * (math.log10(value) - low) / (high - low), 1)

    steps = range(math.ceil(low), math.floor(high) + 1)
    at = [10.0**power for power in steps]
    if len(at) < 3:
        at = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        at = [value for value in at if low <= math.log10(value) <= high]
    marks = [{"at": place(value), "text": shown(value)} for value in at]
    return Axis(place, [{"at": place(0), "text": shown(0)}] * zero + marks)


def short(label: str) -> str:
    """A name as a picture shows it: of a long one the beginning and the end."""
    text = harmless(label)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[1 - half :]}"


def scatter(
    dots: Sequence[tuple[str, float, float, bool]], shown: Callable[[float], str], unit: float
) -> dict[str, Any]:
    """Dots (label, cost, accuracy in percent, whether on the front) with their names and the front.

    Args:
        shown: a cost as text; unit: of its ticks.
    """
    left, top, right, bottom = AREA
    across = axis([cost for _, cost, _, _ in dots], left, right, shown, unit, wide=True)
    up = axis([accuracy for _, _, accuracy, _ in dots], bottom, top, lambda v: f"{v:g}")
    points = {label: (across.place(cost), up.place(accuracy)) for label, cost, accuracy, _ in dots}
    front = sorted(points[label] for label, _, _, best in dots if best)
    path, steps = f"M{front[0][0]:g},{front[0][1]:g}", list[Box]()
    for (x0, y0), (x1, y1) in zip(front, [*front[1:], (right, front[-1][1])], strict=True):
        path += f"H{x1:g}V{y1:g}"
        steps += [(x0, y0 - 2, x1, y0 + 2), (x1 - 2, y1, x1 + 2, y0)]
    named = points
    if len(dots) > NAMED:
        places = {points[label]: label for label, _, _, best in reversed(dots) if best}
        named = {label: point for point, label in [*places.items()][:NAMED]}
    others = [point for label, point in points.items() if label not in named]
    free = steps + [(x - 3, y - 3, x + 3, y + 3) for x, y in others]
    keys = dict[str, str]()  # as long as what is shown, of each label another
    for label in named:
        keys[label] = short(label)
        while list(keys.values()).count(keys[label]) > 1:
            keys[label] += " "
    boxes = placement.labels(
        {keys[label]: point for label, point in named.items()},
        (left + 2, top, right, bottom),
        free,
    )
    found = []
    for label, cost, accuracy, best in dots:
        x, y = points[label]
        dot = {"label": label, "x": x, "y": y, "best": best, "cost": cost, "accuracy": accuracy,
               "left": None, "base": None, "to": None}  # fmt: skip
        if label in named:
            near = boxes[keys[label]]
            dot |= {"left": round(near[0], 1), "base": round(near[1] + 12, 1)}
            end = min(max(x, near[0]), near[2]), min(max(y, near[1]), near[3])
            if math.dist(end, (x, y)) > 2 * placement.RADIUS:
                dot |= {"to": (round(end[0], 1), round(end[1], 1))}
        found.append(dot)
    return {"x": across.marks, "y": up.marks, "dots": found, "front": path}


def lines(
    given: Mapping[str, Sequence[tuple[float, float]]],
    across: Axis,
    up: Axis,
    order: Sequence[str],
    lit: Iterable[str],
) -> dict[str, Any]:
    """A line for each label, with the number of its colour and dashes; `lit` are drawn strongly."""
    lit = {*lit}
    found = []
    for place, label in enumerate(order):
        if label in given:
            points = " ".join(f"{across.place(x):g},{up.place(y):g}" for x, y in given[label])
            found.append({
                "label": label, "points": points, "colour": place % COLOURS,
                "dash": place // COLOURS % DASHES, "lit": label in lit,
            })  # fmt: skip
    return {"x": across.marks, "y": up.marks, "lines": found}


def spans(marks: Sequence[Sequence[int | None]], mark: int, cell: float) -> str:
    """The cells of a matrix with one mark, as a path of horizontal strokes as wide as a cell."""
    path = []
    for row, values in enumerate(marks):
        column = 0
        while column < len(values):
            end = column
            while end < len(values) and values[end] == mark:
                end += 1
            if end > column:
                path.append(f"M{column * cell:g},{(row + 0.5) * cell:g}h{(end - column) * cell:g}")
            column = max(end, column + 1)
    return "".join(path)
