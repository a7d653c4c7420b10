"""Records to what the report says: plain data, with raw fractions and counts."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.certainty.intervals import PLACE, ZERO_SHOT, Certainty
from harness.errors import HarnessError
from harness.leaderboards.leaderboard import Leaderboard
from harness.literature import cards
from harness.records.entry import TABLES
from harness.records.labels import conditions
from harness.records.record import STATUSES, Record
from harness.records.store import CHANGE, one_record_a_key
from harness.records.summary import PYTHON_TEXTS, Table
from harness.report import datasets, provenance
from harness.report.charts import costs_of, families, losses_of, number, shots_of
from harness.report.comparisons import pairs, places

Picture = Callable[[str, str], str | None]  # of a dataset and a path: a data: address, or nothing
NAMES = {"hm": "HM", CHANGE: "change elsewhere"}
LEVELS = 4  # of colour above and below the reference of the heat map


def no_picture(dataset: str, path: str) -> None:
    """What is shown where no image may be."""


@pd.option_context(*PYTHON_TEXTS)
def report(records: Sequence[Record], picture: Picture = no_picture) -> dict[str, Any]:
    """All that the page shows.

    Args:
        records: with their losses and their whole provenance.
        picture: see Picture; asked at most datasets.MOST_PICTURES times with success.

    Raises:
        HarnessError: there is no record of an accuracy.
    """
    records = one_record_a_key(records)
    scored = [record for record in records if not record.measures]
    if not scored:
        raise HarnessError(
            "there is nothing to report: these folders hold no accuracies. Give folders of records "
            "with --results DIR, or start with `python -m harness run`."
        )
    board = Leaderboard(scored)
    frame = board.frame()
    certain = board.certainties(frame)
    shown = datasets.Pictures(picture)
    chapters = []
    order = sorted(board.tables.items(), key=lambda each: (-_size(each[1]), -int(each[0][3])))
    for place, (key, table) in enumerate(order, 1):
        part = frame[(frame[list(TABLES)].astype(str) == list(key)).all(axis=1)]
        found = chapter(key, table, part, certain[key])
        found["id"] = f"t{place}"
        found["costs"] = costs_of(records, key, part, found["score"])
        found["losses"] = losses_of(table, found["labels"])
        found["sections"] = datasets.sections(table, ranking(found), shown)
        chapters.append(found)
    for each in chapters:
        each["title"] = _title(each, chapters)
    return {
        "about": _about(scored, chapters),
        "chapters": chapters,
        "curves": shots_of(frame, certain),
        "pictures": shown.number,
        "methods": methods(scored),
        "sheets": [],
        "trouble": provenance.trouble(scored, board.tables, frame),
        "provenance": provenance.provenance(records),
    }


def methods(records: Sequence[Record]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The cards of the methods that come with the harness, by name."""
    names = sorted({str(record.run["method"]) for record in records})
    found = {name: cards.card(name) for name in names}
    return [(name, card.lines()) for name, card in found.items() if card]


def _size(table: Table) -> int:
    """The reader sees the largest table first."""
    return len(table.rows) * len(table.datasets)


def _about(records: Sequence[Record], chapters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    of = {name: sorted({str(record.run[name]) for record in records})
          for name in ("method", "dataset", "task", "backbone")}  # fmt: skip
    times = sorted(record.time for record in records if record.time)
    return {
        "methods": len(of["method"]), "datasets": len(of["dataset"]), "tasks": of["task"],
        "backbones": of["backbone"], "runs": len(records),
        **{status: sum(record.status == status for record in records) for status in STATUSES},
        "seeds": len({record.run["seed"] for record in records}),
        "first": times[0][:10] if times else "", "last": times[-1][:10] if times else "",
    }  # fmt: skip


def _title(chapter: Mapping[str, Any], chapters: Sequence[Mapping[str, Any]]) -> str:
    """Task, backbone and shots of a table; weights and settings where they tell it from others."""
    title = f"{chapter['task']}, {chapter['backbone']}, {chapter['shots']} shot"
    title += "s" * (chapter["shots"] != "1")
    like = [each for each in chapters
            if all(each[n] == chapter[n] for n in ("task", "backbone", "shots"))]  # fmt: skip
    if len({each["weights"] for each in like}) > 1:
        title += f", weights {chapter['weights']}"
    every = [json.loads(each["settings"]) for each in like]
    return title + conditions(json.loads(chapter["settings"]), every)


def chapter(
    key: Sequence[str], table: Table, part: pd.DataFrame, certain: Certainty
) -> dict[str, Any]:
    """What is said of one table, without its pictures."""
    average = part[part["dataset"] == "average"]
    labels = [str(label) for label in average["label"]]
    score = table.main
    evaluations = [name for name in table.evaluations if name != score]
    result: dict[str, Any] = dict(zip(TABLES, key, strict=True))
    result |= {
        "labels": labels, "families": families(labels), "score": score,
        "score_name": NAMES.get(score or "", score or "score"),
        "columns": [*[(n, NAMES.get(n, n)) for n in evaluations]],
        "datasets": list(table.datasets), "averaged": list(table.averaged),
        "seeds": list(table.seeds), "source": table.source,
    }  # fmt: skip
    of = {
        name: [_cells(row, name, score, evaluations, certain) for row in each.to_dict("records")]
        for name, each in part.groupby("dataset", sort=False)
    }
    for each in of.values():
        assert len(each) == len(labels)  # every row has every dataset, in the same order
    result["scores"] = of
    result["rows"] = [_row(row) for row in average.to_dict("records")]
    result["notes"] = certain.notes()
    result["findings"] = [each for each in certain.comparisons() if not each.startswith(PLACE)]
    result["places"] = places(labels, certain)
    result["heat"] = heat(labels, table, of)
    result["pairs"] = pairs(labels, certain)
    return result


def _cells(
    row: Mapping[Any, Any],
    dataset: Any,
    score: str | None,
    evaluations: Sequence[str],
    certain: Certainty,
) -> dict[str, Any]:
    """A row's numbers of one dataset or of the average; `finished` where seeds or datasets lack."""
    value = number(row.get(score or ""))
    finished = value is None and number(row.get(f"finished_{score}")) is not None
    start = "finished_" if finished else ""
    interval = certain.interval(str(row["label"]), str(dataset))
    return {
        "value": number(row.get(f"{start}{score}")), "finished": finished,
        "low": interval.low if interval else None, "high": interval.high if interval else None,
        "others": [number(row.get(f"{start}{name}")) for name in evaluations],
    }  # fmt: skip


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    state = []
    if not row["applicable"]:
        state.append("not applicable")
    elif row["runs"] < row["expected"]:
        state.append(f"incomplete, {row['runs']} of {row['expected']}")
    if refused := number(row.get("refused")):
        state.append(f"not applicable on {refused:.0f} dataset{'s' * (refused > 1)}")
    if row["failed"]:
        state.append(f"{row['failed']} failed")
    if row["checks"]:
        state.append(f"{row['checks']} run{'s' * (row['checks'] != 1)} failed a check")
    return {
        "label": row["label"], "parameters": number(row["parameters"]),
        "seconds": number(row["train_seconds"]), "state": state,
    }  # fmt: skip


def ranking(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of each dataset the methods that have a score there, the highest first; those that lack runs
    last."""
    of = {}
    for dataset in found["datasets"]:
        scores = dict(zip(found["labels"], found["scores"][dataset], strict=True))
        there = [label for label, cell in scores.items() if cell["value"] is not None]
        of[dataset] = sorted(there, key=lambda n: (scores[n]["finished"], -scores[n]["value"]))
    return of


def heat(
    labels: Sequence[str], table: Table, of: Mapping[Any, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Scores by method and dataset, and how far each is from zero-shot or else from the median.

    level: from -LEVELS to LEVELS, or None; step: points of one level.
    """
    frozen = ZERO_SHOT in labels and any(
        of[dataset][labels.index(ZERO_SHOT)]["value"] is not None for dataset in table.datasets
    )
    columns = []
    for dataset in table.datasets:
        values = [cell["value"] for cell in of[dataset]]
        there = pd.Series([v for v in values if v is not None], dtype=float)
        reference = values[labels.index(ZERO_SHOT)] if frozen else number(there.median())
        columns.append((dataset, of[dataset], reference))
    if not any(cell["value"] is not None for _, cells, _ in columns for cell in cells):
        return {"why": "no run of this table has a score"}
    far = [abs(cell["value"] - reference) for _, cells, reference in columns for cell in cells
           if cell["value"] is not None and reference is not None]  # fmt: skip
    step = max(0.01, float(pd.Series(far, dtype=float).quantile(0.95)) / LEVELS)
    rows = []
    for place, label in enumerate(labels):
        cells = []
        for _, each, reference in columns:
            value = each[place]["value"]
            level = None  # there is nothing to be far from
            if value is not None and reference is not None:
                level = max(-LEVELS, min(LEVELS, round((value - reference) / step)))
            cells.append({"value": value, "finished": each[place]["finished"], "level": level})
        rows.append({"label": label, "cells": cells})
    return {"datasets": [name for name, _, _ in columns], "rows": rows, "step": step,
            "reference": "zero-shot" if frozen else "the median"}  # fmt: skip
