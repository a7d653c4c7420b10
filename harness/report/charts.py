"""The report's pictures from records: accuracy against costs, losses, accuracy against shots."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.certainty.intervals import ZERO_SHOT, Certainty
from harness.errors import HarnessError
from harness.leaderboards import costs, plot
from harness.leaderboards.scores import evaluations, not_the_same, table_keys
from harness.records.entry import TABLES
from harness.records.labels import table_title
from harness.records.record import Record
from harness.records.summary import Table
from harness.report.geometry import AREA, Axis, axis, lines, scatter

LIT = 5  # methods whose lines are drawn strongly before the reader chooses
SHARES = (0, 0.25, 0.5, 0.75, 1)  # of the training, that have a tick
POINTS = 24  # of a line of losses at most
LEFT, TOP, RIGHT, BOTTOM = AREA


def number(value: Any) -> float | None:
    """A number, or nothing where there is none."""
    return None if value is None or pd.isna(value) else float(value)


def families(labels: Sequence[str]) -> dict[str, str]:
    """By label the method that it is a variant of: the shortest name there is that its own begins
    with, before a hyphen, an underscore or a setting."""
    names = sorted({label.partition("[")[0] for label in labels}, key=lambda n: (len(n), n))
    found = {}
    for label in labels:
        name = label.partition("[")[0]
        found[label] = next(n for n in names if name == n or name.startswith((f"{n}-", f"{n}_")))
    return found


def leading(order: Sequence[str]) -> list[str]:
    """The first of each of the LIT first families."""
    first = dict[str, str]()
    for label, family in families(order).items():
        first.setdefault(family, label)
    return [*first.values()][:LIT]


def costs_of(
    records: Sequence[Record], key: Sequence[str], part: pd.DataFrame, score: str | None
) -> list[dict[str, Any]]:
    """Accuracy against each cost of costs.COSTS for one table, or why there is no such picture."""
    task, backbone, weights, shots, settings = key
    of = backbone, weights, task, shots
    mine = [record for record in records if record.measures and costs.compared(record) == of]
    average = part[part["dataset"] == "average"]
    scores = {str(row["label"]): number(row.get(score)) for _, row in average.iterrows()}
    found = []
    for kind, (title, _, shown) in costs.COSTS.items():
        chart: dict[str, Any] = {"kind": kind, "title": title, "where": "", "missing": []}
        found.append(chart)
        try:
            spent = _spent(mine, kind, average)
        except HarnessError as error:
            chart["why"] = str(error).removeprefix(f"--pareto {kind}: ")
            continue
        both = [(n, spent[n], 100 * v) for n, v in scores.items() if v is not None and n in spent]
        if not both:
            chart["why"] = (
                "No method has both a score and this cost."
                if spent
                else "It was not measured: `run --tasks efficiency` with the same methods, shots "
                f"and `--set efficiency.like={task}` measures it."
            )
            continue
        marks = costs.unbeaten([(accuracy, cost) for _, cost, accuracy in both])
        base = max((b for b in (1, 2**10, 2**20, 2**30) if b <= max(c for _, c, _ in both)),
                   default=1)  # fmt: skip
        dots = [(*each, best) for each, best in zip(both, marks, strict=True)]
        chart |= scatter(dots, shown, base if kind == "memory" else 1)
        for dot in chart["dots"]:
            dot["text"] = shown(dot["cost"])
        chart["where"] = plot.measured(mine, kind, of, json.loads(settings)).strip(" ()")
        chart["missing"] = [label for label in scores if label not in {n for n, _, _ in both}]
    return found


def _spent(records: Sequence[Record], kind: str, average: pd.DataFrame) -> dict[str, float]:
    """A cost by label."""
    if kind == "params":
        counted = average.dropna(subset="parameters")
        return dict(zip(counted["label"], counted["parameters"].map(float), strict=True))
    if not any(record.status == "done" for record in records):
        return {}
    return {key[-1]: value for key, value in costs.costs_by_method(records, kind).items()}


def losses_of(table: Table, labels: Sequence[str]) -> dict[str, Any]:
    """Training losses by the share of the training that is over: means over seeds for each dataset,
    and over datasets; or why there are none.

    Runs of different length are brought to the same POINTS shares at most, by linear interpolation.
    """
    runs = dict[tuple[str, str], list[Sequence[float]]]()
    for row in table.rows:
        for each in row.members:
            losses = _losses(each.record.cost.get("epoch_losses"))
            if each.counts and len(losses) > 1:
                runs.setdefault((each.dataset, row.label), []).append(losses)
    if not runs:
        return {"why": "no run of this table kept the losses of two epochs or more"}
    longest = max(len(losses) for every in runs.values() for losses in every)
    grid = np.linspace(0, 1, min(POINTS, longest))
    means = {key: np.mean([_resampled(each, grid) for each in every], axis=0)
             for key, every in runs.items()}  # fmt: skip
    average = {
        label: np.mean([means[d, label] for d in table.datasets if (d, label) in means], axis=0)
        for label in labels
        if any((d, label) in means for d in table.datasets)
    }
    values = [float(v) for mean in means.values() for v in mean]
    across = Axis(lambda share: round(LEFT + (RIGHT - LEFT) * share, 1), [
        {"at": LEFT + (RIGHT - LEFT) * share, "text": f"{share:.0%}"} for share in SHARES
    ])  # fmt: skip
    up = axis(values, BOTTOM, TOP, lambda v: f"{v:g}", wide=True)
    given = {label: list(zip(grid.tolist(), mean.tolist(), strict=True))
             for label, mean in average.items()}  # fmt: skip
    order = [label for label in labels if label in given]
    by_dataset = {
        dataset: {label: [round(up.place(float(v))) for v in means[dataset, label]]
                  for label in order if (dataset, label) in means}
        for dataset in table.datasets
    }  # fmt: skip
    at = [round(across.place(float(share))) for share in grid]
    return {**lines(given, across, up, order, leading(order)), "at": at, "by_dataset": by_dataset,
            "points": len(grid), "longest": longest}  # fmt: skip


def _losses(given: Any) -> list[float]:
    """Those of the epochs, if that is what a record holds."""
    numbers = isinstance(given, list) and all(type(each) in (int, float) for each in given)
    return given if numbers else []


def _resampled(losses: Sequence[float], grid: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.interp(grid, np.linspace(0, 1, len(losses)), losses)


def shots_of(
    frame: pd.DataFrame, certain: Mapping[tuple[str, ...], Certainty]
) -> list[dict[str, Any]]:
    """Accuracy against the number of shots, where tables differ in that alone."""
    found = []
    names = [name for name in TABLES if name != "shots"]
    for key, every in frame.groupby(names, sort=False):
        part = every[every["dataset"] == "average"]
        if part["shots"].nunique() > 1 and (score := _score(part)) is not None:
            task, backbone, weights, settings = map(str, key)
            about = task, backbone, weights, "", settings
            title = table_title(about, table_keys(frame))
            curves = _curves(title, part, score, certain)
            if apart := not_the_same(every, sorted(part["shots"].unique(), key=int)):
                curves["why"] = f"its numbers are not of the same datasets or seeds: {apart}"
            found.append(curves)
    return found


def _score(part: pd.DataFrame) -> str | None:
    names = evaluations(part)
    return "hm" if {"base", "new"} <= {*names} else next(iter(names), None)


def _curves(
    title: str,
    part: pd.DataFrame,
    score: str,
    certain: Mapping[tuple[str, ...], Certainty],
) -> dict[str, Any]:
    shots = sorted({int(each) for each in part["shots"]})
    cells = dict[str, dict[int, dict[str, Any]]]()
    for _, row in part.iterrows():
        label, value = str(row["label"]), number(row.get(score))
        sure = certain[tuple(str(row[name]) for name in TABLES)].interval(label)
        if value is not None:
            cells.setdefault(label, {})[int(row["shots"])] = {
                "value": value,
                "low": sure.low if sure else None,
                "high": sure.high if sure else None,
            }
    result: dict[str, Any] = {
        "why": None, "title": title, "shots": shots, "score": "HM" if score == "hm" else score,
    }  # fmt: skip
    if not cells:
        return result | {"why": "no row is complete"}
    order = sorted(cells, key=lambda label: -cells[label][max(cells[label])]["value"])
    low, high = math.log2(shots[0]), math.log2(shots[-1])

    def place(number: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (math.log2(number) - low) / (high - low), 1)

    values = [100 * cell["value"] for each in cells.values() for cell in each.values()]
    across = Axis(place, [{"at": place(n), "text": str(n)} for n in shots])
    up = axis(values, BOTTOM, TOP, lambda v: f"{v:g}")
    given = {label: [(n, 100 * each[n]["value"]) for n in sorted(each)] * (1 + (len(each) == 1))
             for label, each in cells.items()}  # fmt: skip
    lit = [*leading(order), *([ZERO_SHOT] if ZERO_SHOT in order else [])]
    rows = [{"label": label, "cells": [cells[label].get(n) for n in shots]} for label in order]
    return result | lines(given, across, up, order, lit) | {"rows": rows}
