"""Accuracy against a cost as an SVG picture: one dot a method, and the front that none beats.

Like `leaderboard` it never imports torch.
"""

import json
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from harness.errors import HarnessError
from harness.leaderboards import costs
from harness.leaderboards.placement import RADIUS, Box, Point, labels
from harness.records.entry import TABLES
from harness.records.labels import conditions
from harness.records.record import Record
from harness.records.summary import summarise
from harness.records.tables import in_shots

WIDTH, HEIGHT = 840, 560
LEFT, RIGHT, TOP, BOTTOM = 60, 800, 62, 490  # the area of the dots
STYLE = """
.ground { fill: #ffffff } text { fill: #1f2328; font-size: 12px }
text { font-family: ui-monospace, Menlo, Consolas, monospace }
.label { stroke: #ffffff; stroke-width: 3; paint-order: stroke; stroke-linejoin: round }
.words { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
.title { font-size: 15px; font-weight: 600 } .faint { fill: #59636e }
.grid { stroke: #d1d9e0 } .leader { stroke: #818b98; stroke-width: 0.8 } .dot { fill: #818b98 }
.best { fill: #0969da } .front { fill: none; stroke: #0969da; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } text { fill: #f0f6fc } .label { stroke: #0d1117 }
.faint { fill: #9198a1 }
.grid { stroke: #3d444d } .leader { stroke: #656c76 } .dot { fill: #9198a1 }
.best { fill: #4493f8 } .front { stroke: #4493f8 }
}
"""


@dataclass(frozen=True)
class Dot:
    """A method: its accuracy in percent and its cost, and whether no other beats it in both."""

    label: str
    cost: float
    accuracy: float
    best: bool


def pareto(
    records: Iterable[Record],
    task: str | None,
    kind: str | None,
    only: Collection[str] | None = None,
) -> str:
    """An SVG of the accuracy (HM where there are base and new) against the cost `kind`.

    Args:
        task: draw this one; needed where the records are of several.
        kind: of costs.COSTS.
        only: the rows to draw, all if None.

    Raises:
        HarnessError: no cost was named, the records make several tables, or no method has both.
    """
    if kind is None:
        raise HarnessError(
            f"--format svg draws accuracy against a cost. Add --pareto {'|'.join(costs.COSTS)}."
        )
    every = list(records)
    scored = [r for r in every if not r.measures and task in (None, r.run["task"])]
    if not scored:
        raise HarnessError(f"there are no scores to draw{f' of the task {task!r}' * bool(task)}.")
    table = summarise(scored)
    if len(table[TABLES].drop_duplicates()) > 1:
        raise HarnessError(
            "--format svg draws one table, and these records make several. Choose a task with "
            "--task, or a folder that holds one backbone and one number of shots."
        )
    rows = table[table["dataset"] == "average"]
    rows = rows if only is None else rows[rows["label"].isin(only)]
    backbone, weights, of_task, shots = map(
        str, rows[["backbone", "weights", "task", "shots"]].iloc[0]
    )
    key = backbone, weights, of_task, shots
    spent = costs.costs_by_method(every, kind) if kind != "params" else _parameters(rows, key)
    paired = "hm" in rows and rows["hm"].notna().any()
    score = "hm" if paired else rows["evaluations"].iloc[0].split()[0]
    found = {
        str(row["label"]): (100 * row[score], spent[*key, row["label"]])
        for _, row in rows.iterrows()
        if (*key, row["label"]) in spent and not pd.isna(row.get(score))
    }
    if not found:
        raise HarnessError(
            f"no method has both an accuracy and a cost. Measure it with --tasks efficiency, and "
            f"the same backbone and shots, and --set efficiency.like={key[2]}."
        )
    marks = costs.unbeaten(list(found.values()))
    dots = [Dot(name, cost, value, best)
            for (name, (value, cost)), best in zip(found.items(), marks, strict=True)]  # fmt: skip
    names = table[table["averaged"].eq(True)]["dataset"].drop_duplicates()
    limits = conditions(json.loads(rows["settings"].iloc[0]))
    over = names.iloc[0] if len(names) == 1 else f"average of {len(names)} datasets"
    return _draw(
        dots,
        f"{key[2]}, {key[0]}, {in_shots(key[3])}{limits}, {over}",
        "HM of base and new, in percent" if paired else f"{score}, top-1 in percent",
        kind,
        measured(every, kind, key, json.loads(rows["settings"].iloc[0])),
        [str(label) for label in rows["label"] if label not in found],
    )


def _parameters(rows: pd.DataFrame, key: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    counted = rows.dropna(subset="parameters")
    return {(*key, row["label"]): row["parameters"] for _, row in counted.iterrows()}


def measured(records: list[Record], kind: str, key: costs.Of, settings: Mapping[str, Any]) -> str:
    """Where the costs were measured, and in what otherwise than the scores of `settings`;
    `costs.costs_by_method` has refused several places."""
    if kind == "params":
        return ""
    first = next(
        r for r in records
        if r.measures and r.status == "done" and costs.compared(r) == key
    )  # fmt: skip
    device, threads = first.run["measured_on"]
    where = device if first.cost.get("cuda") else f"{device}, {threads} thread{'s' * (threads > 1)}"
    unlike = costs.unlike([first], key, settings)
    return f" ({where}, {first.run['dataset']}{f'; unlike the scores: {unlike}' * bool(unlike)})"


def _draw(
    dots: Sequence[Dot], title: str, upward: str, kind: str, where: str, missing: Sequence[str]
) -> str:
    name, _, shown = costs.COSTS[kind]
    base = max((b for b in (1, 2**10, 2**20, 2**30) if b <= max(d.cost for d in dots)), default=1)
    across = ticks(0, max(d.cost for d in dots), base if kind == "memory" else 1)
    up = ticks(min(d.accuracy for d in dots), max(d.accuracy for d in dots), 1)

    def place(cost: float, accuracy: float) -> Point:
        x = LEFT + (RIGHT - LEFT) * (cost - across[0]) / (across[-1] - across[0])
        return x, BOTTOM - (BOTTOM - TOP) * (accuracy - up[0]) / (up[-1] - up[0])

    svg = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img"
    )
    ElementTree.SubElement(svg, "title").text = _clean(f"{title}: accuracy against {name}")
    ElementTree.SubElement(svg, "style").text = STYLE
    _add(svg, "rect", "ground", width=WIDTH, height=HEIGHT, rx=6)
    _text(svg, (20, 28), title, "words title")
    _text(svg, (20, 48), upward, "words faint")
    for value in across:
        x, _ = place(value, up[0])
        _add(svg, "line", "grid", x1=x, y1=TOP, x2=x, y2=BOTTOM)
        _text(svg, (x, BOTTOM + 18), shown(value), "words faint", "middle")
    for value in up:
        _, y = place(across[0], value)
        _add(svg, "line", "grid", x1=LEFT, y1=y, x2=RIGHT, y2=y)
        _text(svg, (LEFT - 8, y + 4), f"{value:g}", "words faint", "end")
    _text(svg, (RIGHT, BOTTOM + 38), name + where, "words faint", "end")
    _text(svg, (20, BOTTOM + 38), "● no method's mean is better in both", "words best")
    if missing:
        names = textwrap.shorten(", ".join(missing), 100, placeholder=" …")
        _text(svg, (20, BOTTOM + 58), f"no score or no cost: {names}", "words faint")
    front = sorted((place(d.cost, d.accuracy) for d in dots if d.best), key=lambda p: p[0])
    path, steps = f"M{front[0][0]:.1f},{front[0][1]:.1f}", list[Box]()
    for (x0, y0), (x1, y1) in zip(front, [*front[1:], (RIGHT, front[-1][1])], strict=True):
        path += f"H{x1:.1f}V{y1:.1f}"
        steps += [(x0, y0 - 2, x1, y0 + 2), (x1 - 2, y1, x1 + 2, y0)]
    _add(svg, "path", "front", d=path)
    points = {dot.label: place(dot.cost, dot.accuracy) for dot in dots}
    boxes = labels(points, (LEFT + 2, TOP, RIGHT, BOTTOM), steps)
    for label, (left, top, right, bottom) in boxes.items():
        x, y = points[label]
        near = min(max(x, left), right), min(max(y, top), bottom)
        if math.dist(near, (x, y)) > 2 * RADIUS:
            _add(svg, "line", "leader", x1=x, y1=y, x2=near[0], y2=near[1])
    for dot in dots:
        x, y = points[dot.label]
        _add(svg, "circle", "best" if dot.best else "dot", cx=x, cy=y, r=RADIUS)
        left, top, _, _ = boxes[dot.label]
        _text(svg, (left, top + 12), dot.label, "label best" if dot.best else "label")
    ElementTree.indent(svg, " ")
    return ElementTree.tostring(svg, encoding="unicode")


def ticks(low: float, high: float, unit: float) -> list[float]:
    """Round numbers (of `unit`) from below `low` to above `high`, about eight of them."""
    span = (high - low) / unit or abs(high) / unit or 1.0
    size = 10.0 ** math.floor(math.log10(span / 8))
    step = next(m * size for m in (1, 2, 5, 10) if span / (m * size) <= 8) * unit
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return [step * i for i in range(first, last + 1)]


def _clean(text: str) -> str:
    """Names come from users: what XML cannot hold, and what is not seen, is shown as a mark."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _add(parent: ElementTree.Element, tag: str, css: str, **given: float | str) -> None:
    attributes = {k: v if isinstance(v, str) else f"{v:.6g}" for k, v in given.items()}
    ElementTree.SubElement(parent, tag, {"class": css, **attributes})


def _text(
    parent: ElementTree.Element, where: Point, text: str, css: str, anchor: str = "start"
) -> None:
    at = {"x": f"{where[0]:.1f}", "y": f"{where[1]:.1f}"}
    at |= {"text-anchor": anchor} if anchor != "start" else {}
    at |= {"class": css} if css else {}
    ElementTree.SubElement(parent, "text", at).text = _clean(text)
