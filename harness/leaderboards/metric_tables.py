"""Tables of the metrics beside top-1: the leaderboard's rows, averaged as it averages them.

Over datasets within a seed, then over seeds, and only if every run is there. It never imports
torch.
"""

import itertools
import json
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.leaderboards.leaderboard import Leaderboard
from harness.leaderboards.metrics import METRICS, Measured, measured
from harness.records.entry import TABLES
from harness.records.labels import table_title
from harness.records.store import CHANGE
from harness.records.summary import Row, Table, tables
from harness.records.tables import MISSING, format_table, percent, width

Cells = Mapping[tuple[str, int], Measured]  # of the finished runs, by dataset and seed


@dataclass(frozen=True)
class Line:
    """A row of the table: a method on a dataset or on their average, in one evaluation.

    values: means over seeds by metric, `top1` among them; None where a run or its predictions are
    missing. deviations: sample standard deviations over seeds. lacking: the seeds that datasets
    lack. why: of metrics that are missing though all runs are there. few: datasets with so few
    classes that top-5 says nothing.
    """

    table: tuple[str, ...]  # values of TABLES
    label: str
    dataset: str
    datasets: Sequence[str]
    evaluation: str
    values: Mapping[str, float | None]
    deviations: Mapping[str, float | None]
    runs: int
    expected: int
    applicable: bool
    lacking: Mapping[str, Sequence[int]]
    why: Mapping[str, str]
    few: Sequence[str]

    def raw(self) -> dict[str, Any]:
        """Its numbers, not rounded, by name."""
        row: dict[str, Any] = dict(zip(TABLES, self.table, strict=True))
        row |= {"shots": int(row["shots"]), "settings": json.loads(row["settings"])}
        row |= {"label": self.label, "dataset": self.dataset, "evaluation": self.evaluation}
        for name, value in self.values.items():
            row |= {name: value, f"{name}_std": self.deviations[name]}
        return row | {"runs": self.runs, "expected": self.expected}


def lines(board: Leaderboard, names: Sequence[str]) -> list[Line]:
    """The rows of the leaderboard, for each of them the average and then every dataset.

    Raises:
        HarnessError: there are no records with scores.
    """
    records = [record for record in board.chosen() if not record.measures]
    if not records:
        raise HarnessError("--metrics: these records have no accuracies, only costs.")
    frame = board.frame()
    shown = frame[frame["dataset"] == "average"]
    order = list(zip(*(shown[name] for name in (*TABLES, "label")), strict=True))
    rows = {(*key, row.label): (table, row)
            for key, table in tables(records).items() for row in table.rows}  # fmt: skip
    chosen = {key: rows[key] for key in order}
    found = _measured([row for _, row in chosen.values()], names)
    return [line for key, (table, row) in chosen.items()
            for line in _of_row(key[:-1], table, row, found, names)]  # fmt: skip


def _measured(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[str, str], Measured]:
    """The metrics of all runs, by key and evaluation; of runs that were scored on the same images
    one after the other, because each list of images is long to read."""
    todo = {(each.record.key, evaluation): each for row in rows for each in row.members
            for evaluation in each.scores if evaluation != CHANGE}  # fmt: skip

    def images(which: tuple[str, str]) -> str:
        lists = todo[which].record.run["fingerprints"].get("evaluated") or {}
        return str(lists.get(which[1]))

    return {which: measured(todo[which].record, which[1], names)
            for which in sorted(todo, key=images)}  # fmt: skip


def _of_row(
    key: tuple[str, ...],
    table: Table,
    row: Row,
    found: Mapping[tuple[str, str], Measured],
    names: Sequence[str],
) -> Iterator[Line]:
    for evaluation in [name for name in table.evaluations if name != CHANGE] or [""]:
        cells = {}
        for each in row.members:
            if evaluation in each.scores:
                own = found[each.record.key, evaluation]
                values = {"top1": each.scores[evaluation], **own.values}
                cells[each.cell] = Measured(values, own.why, own.few)
        places = {"average": table.averaged, **{name: [name] for name in table.datasets}}
        for place, datasets in places.items():
            status = {m.record.status for m in row.members if m.dataset in datasets}
            yield _line(
                cells, datasets, table.seeds, ["top1", *names],
                table=key, label=row.label, dataset=place, evaluation=evaluation,
                applicable=status != {"not applicable"},
            )  # fmt: skip


def _line(
    cells: Cells, datasets: Sequence[str], seeds: Sequence[int], names: Sequence[str], **about: Any
) -> Line:
    lacking = {d: [seed for seed in seeds if (d, seed) not in cells] for d in datasets}
    expected = len(datasets) * len(seeds)
    runs = expected - sum(map(len, lacking.values()))
    here = [cells[cell] for cell in itertools.product(datasets, seeds) if cell in cells]
    values, deviations = dict[str, float | None](), dict[str, float | None]()
    why = dict[str, str]()
    for name in names:
        reasons = [each.why[name] for each in here if name in each.why]
        if runs == expected and reasons:
            why[name] = reasons[0]
        complete = runs == expected and not reasons
        means = [statistics.mean(cells[d, seed].values[name] for d in datasets)
                 for seed in seeds if complete]  # fmt: skip
        values[name] = statistics.mean(means) if means else None
        deviations[name] = statistics.stdev(means) if len(means) > 1 else None
    return Line(
        values=values, deviations=deviations, runs=runs, expected=expected, why=why,
        lacking={dataset: missing for dataset, missing in lacking.items() if missing},
        datasets=datasets, few=[d for d in datasets if any((d, s) in cells and cells[d, s].few
                                                           for s in seeds)],
        **about,
    )  # fmt: skip


def text(board: Leaderboard, names: Sequence[str], form: str) -> str:
    """The tables as `markdown`, `latex` or `html`; as `csv` all rows with raw numbers.

    Raises:
        HarnessError: there are no records with scores, or another kind of table was asked for.
    """
    if form == "svg" or board.pareto:
        raise HarnessError("--metrics is a table of its own: leave out --pareto and --format svg.")
    every = lines(board, names)
    if form == "csv":
        rows = [{name: "" if value is None else str(value) for name, value in line.raw().items()}
                for line in every]  # fmt: skip
        return format_table(rows, "csv", "")
    parts = []
    by_table = itertools.groupby(every, key=lambda line: line.table)
    keys = {line.table for line in every}
    for key, group in by_table:
        mine = list(group)
        places = [name for name in dict.fromkeys(line.dataset for line in mine)
                  if name == "average" or board.by_dataset]  # fmt: skip
        for place in places:
            shown = [line for line in mine if line.dataset == place]
            parts.append(_table(table_title(key, keys), shown, names, form))
    return "\n\n".join(parts)


def _table(title: str, shown: Sequence[Line], names: Sequence[str], form: str) -> str:
    """One table: all methods in the first evaluation, then all in the next."""
    evaluations = list(dict.fromkeys(line.evaluation for line in shown))
    rows = []
    for line in sorted(shown, key=lambda each: evaluations.index(each.evaluation)):
        row = {"method": line.label} | (
            {"evaluation": line.evaluation} if len(evaluations) > 1 else {}
        )
        row["top-1"] = percent(line.values["top1"], line.deviations["top1"])
        for name in names:
            metric = METRICS[name]
            row[metric.title] = metric.shown(line.values[name], line.deviations[name])
        rows.append(row | {"runs": _runs(line)})
    one = shown[0]
    about = one.dataset if one.dataset != "average" else f"average of {len(one.datasets)} datasets"
    about = one.datasets[0] if len(one.datasets) == 1 else about
    notes = [f"{title}, {about}: top-1 and what else the predictions tell.",
             "Mean ± sample standard deviation over seeds. Top-1 in percent."]  # fmt: skip
    notes += [METRICS[name].what for name in names]
    notes += _few(shown) if "top5" in names else []
    notes += [*_incomplete(shown), *_why(shown)]
    filled = (textwrap.fill(note, width(), break_on_hyphens=False, break_long_words=False)
              for note in notes)  # fmt: skip
    return format_table(rows, form, "\n".join(filled))


def _runs(line: Line) -> str:
    if not line.applicable:
        return "not applicable"
    return f"{line.runs}/{line.expected}" + " incomplete" * (line.runs < line.expected)


def _few(shown: Sequence[Line]) -> list[str]:
    found = dict.fromkeys(f"{name} ({line.evaluation})" for line in shown for name in line.few)
    if not found:
        return []
    return [f"Top-5 of fewer than 6 classes is 100 and says nothing: {', '.join(found)}."]


def _incomplete(shown: Sequence[Line]) -> list[str]:
    """What rows lack, rows that lack the same in one sentence."""
    found = dict[str, dict[str, None]]()
    for line in shown:
        if line.applicable and line.lacking:
            what = "; ".join(f"{dataset}, {'seeds' if len(seeds) > 1 else 'seed'} "
                             f"{', '.join(map(str, seeds))}"
                             for dataset, seeds in line.lacking.items())  # fmt: skip
            found.setdefault(what, {})[line.label] = None
    return [f"Incomplete, and not averaged: {', '.join(labels)}: no finished run on {what}."
            for what, labels in found.items()]  # fmt: skip


def _why(shown: Sequence[Line]) -> list[str]:
    """Why complete rows have no value of some metrics, a sentence a reason."""
    found = dict[str, tuple[dict[str, None], dict[str, None]]]()
    for line in shown:
        for name, reason in line.why.items():
            titles, labels = found.setdefault(reason, ({}, {}))
            titles[METRICS[name].title] = None
            labels[line.label] = None
    every = {line.label for line in shown if line.applicable}
    return [
        f"{MISSING}: no {', '.join(titles)} of "
        f"{'any method' if {*labels} == every and len(every) > 1 else ', '.join(labels)}: {reason}."
        for reason, (titles, labels) in found.items()
    ]
