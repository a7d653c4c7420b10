"""Records to tables: accuracies averaged from raw values, both harmonic means, what is missing.

It never imports torch.
"""

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from harness.certainty.intervals import Certainty
from harness.errors import HarnessError, unknown
from harness.leaderboards import costs, plot
from harness.leaderboards.scores import (
    by_shots,
    evaluations,
    overview,
    scores_table,
    table_keys,
)
from harness.records import apart
from harness.records.entry import TABLES
from harness.records.labels import method_label, table_title
from harness.records.record import Record
from harness.records.store import one_record_a_key
from harness.records.summary import PYTHON_TEXTS, Table, as_frame, tables
from harness.records.tables import csv_cell, paragraphs

SORTS = {"method": "label", "params": "parameters", "mean of HMs": "mean_hm", "HM": "hm"}
DIGITS = 12  # of fractions in csv: further ones are noise of the sums


@dataclass(frozen=True)
class Leaderboard:
    """The tables of some records: printed as Markdown, shown as HTML in a notebook.

    task: this one alone; by_dataset: one more table for each dataset; pareto: of costs.COSTS;
    methods, datasets, backbone: only those, comma lists with wildcards; sort: by a column, else the
    best first; against: a method that all others are compared with; every_column: also deviations,
    the mean of HMs, seeds and runs.
    """

    records: Sequence[Record]
    task: str | None = None
    by_dataset: bool = False
    pareto: str | None = None
    methods: str | None = None
    datasets: str | None = None
    backbone: str | None = None
    sort: str | None = None
    against: str | None = None
    every_column: bool = False

    @pd.option_context(*PYTHON_TEXTS)
    def text(self, form: str = "markdown") -> str:
        """The tables as `markdown`, `latex`, `csv` or `html`, or accuracy against cost as `svg`.

        Raises:
            HarnessError: there is nothing to show, or nothing to mark or sort by.
        """
        every, chosen = one_record_a_key(self.records), self.chosen()
        if form == "svg":
            only = None if self.methods is None else {*self.frame()["label"]}
            return plot.pareto(replace(self, task=None).chosen(), self.task, self.pareto, only)
        about_costs = costs.tables((record for record in chosen if record.measures), form)
        if chosen and all(record.measures for record in chosen):
            return "\n\n".join(about_costs)
        table = self.frame()
        if form == "csv" and self.pareto:
            raise HarnessError("--pareto marks a table to be read: leave out --format csv.")
        certain = self.certainties(table)
        if form == "json":
            return _json(self.tables, table, certain)
        if form == "csv":
            return "\n\n".join([_csv(_with_intervals(table, certain)), *about_costs])
        spent = (
            costs.costs_by_method(every, self.pareto) if self.pareto not in (None, "params") else {}
        )
        parts = _tables(self, table, certain, form, spent) + about_costs
        return "\n\n".join([*parts, *paragraphs(apart.sentences(self.tables), form)])

    @cached_property
    def tables(self) -> dict[tuple[str, ...], Table]:
        """The tables of the records that were asked for; see summary.tables."""
        return tables(record for record in self.chosen() if not record.measures)

    def certainties(self, table: pd.DataFrame) -> dict[tuple[str, ...], Certainty]:
        """What is known of how sure each table is, of the rows that are shown; a table without the
        row of `against` compares each with each.

        Raises:
            HarnessError: no table has that row, or it has no interval.
        """
        rows = dict[tuple[str, ...], list[str]]()
        for key in self.tables:
            mine = (table[list(TABLES)].astype(str) == list(key)).all(axis=1)
            rows[key] = list(dict.fromkeys(table[mine]["label"]))
        there = {label for labels in rows.values() for label in labels}
        if self.against is not None and self.against not in there:
            hint = " Name it in --methods, too." if self.methods is not None else ""
            raise HarnessError(f"--against: {unknown('row', self.against, there)}{hint}")
        return {
            key: Certainty.of(each, rows[key], self.against if self.against in rows[key] else None)
            for key, each in self.tables.items()
        }

    def chosen(self) -> list[Record]:
        """The records of the task, methods, datasets and backbone that were asked for.

        Raises:
            HarnessError: there are none of a name, with the names that there are.
        """
        records = one_record_a_key(self.records)
        of: dict[str, tuple[str | None, Callable[[Record], Sequence[str]]]] = {
            "task": (self.task, lambda record: [record.run["task"]]),
            "backbone": (self.backbone, lambda record: [record.run["backbone"]]),
            "dataset": (self.datasets, lambda record: [record.run["dataset"]]),
            "method": (self.methods, lambda record: _names_of_method(record.run)),
        }  # fmt: skip
        for kind, (asked, names_of) in of.items():
            if asked is None:
                continue
            names = {name for record in records for name in names_of(record)}
            patterns = [part.strip() for part in asked.split(",") if part.strip()]
            for pattern in patterns:
                if not _matching(names, pattern):
                    raise HarnessError(f"no records are of it: {unknown(kind, pattern, names)}")
            found = {name for pattern in patterns for name in _matching(names, pattern)}
            found |= {name.partition("[")[0] for name in found}  # a row may hold plain runs, too
            records = [record for record in records if found & {*names_of(record)}]
        return records

    def frame(self) -> pd.DataFrame:
        """See `summarise`; sorted, and only with the rows that were asked for."""
        table = as_frame(self.tables)
        if self.methods is not None:
            patterns = [part.strip() for part in self.methods.split(",")]
            asked = [any(_matching([each, each.partition("[")[0]], p) for p in patterns)
                     for each in table["label"]]  # fmt: skip
            table = table[asked].reset_index(drop=True)
        table = _best_first(table)
        return table if self.sort is None else _sorted(table, self.sort)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.text("html")


def _names_of_method(run: Mapping[str, Any]) -> list[str]:
    return [run["method"], method_label(run)]


def _matching(names: Iterable[str], pattern: str) -> set[str]:
    return {name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)}


def render(
    records: Iterable[Record],
    form: str = "markdown",
    task: str | None = None,
    by_dataset: bool = False,
    pareto: str | None = None,
) -> str:
    """The leaderboards of `records` as text; see Leaderboard."""
    return Leaderboard([*records], task, by_dataset, pareto).text(form)


def _tables(
    board: Leaderboard,
    table: pd.DataFrame,
    certain: Mapping[tuple[str, ...], Certainty],
    form: str,
    spent: Mapping[costs.Compared, float],
) -> list[str]:
    """The tables as text; with `by_dataset` one more for each dataset; with `pareto` (of
    costs.COSTS) a mark at methods that no other beats in accuracy and that cost, `spent`.

    Raises:
        HarnessError: there is nothing to mark by.
    """
    parts, compared, pareto = list[str](), False, board.pareto
    beside = table_keys(table)
    every_column = board.every_column
    for key, part in table.groupby(TABLES, sort=False):
        task_name, backbone, weights, shots, settings = map(str, key)
        title = table_title((task_name, backbone, weights, shots, settings), beside)
        datasets = [name for name in part["dataset"].drop_duplicates() if name != "average"]
        averaged = [name for name in datasets if part[part["dataset"] == name]["averaged"].all()]
        mine = {each[-1]: c for each, c in spent.items()
                if each[:-1] == (backbone, weights, task_name, shots)}  # fmt: skip
        if pareto == "params":
            counts = part[part["dataset"] == "average"].dropna(subset="parameters")
            mine = dict(zip(counts["label"], counts["parameters"], strict=True))
        about = averaged[0] if len(averaged) == 1 else f"average of {len(averaged)} datasets"
        heading = f"{title}, {about}"
        compared = compared or bool(mine)
        sure = certain[tuple(map(str, key))]
        of = (backbone, weights, task_name, shots)
        timed = mine and pareto != "params"
        unlike = costs.unlike(board.records, of, json.loads(settings)) if timed else ""
        shown = scores_table(
            part, "average", heading, form, sure, every_column, mine, pareto, unlike
        )
        parts.append(shown)
        if len(datasets) > 1:
            parts.append(overview(part, datasets, form, sure))
        if board.by_dataset:
            parts += [
                scores_table(part, name, f"{title}, {name}", form, sure, every_column)
                for name in datasets
            ]
    if pareto and not compared:
        raise HarnessError(
            f"--pareto {pareto}: no measurement is of these backbones, weights, tasks and shots. "
            "Measure with --tasks efficiency, --shots and --set efficiency.like=TASK."
        )
    for key, part in table.groupby([name for name in TABLES if name != "shots"], sort=False):
        if part["shots"].nunique() > 1 and evaluations(part):
            task_name, backbone, weights, settings = map(str, key)
            about = table_title((task_name, backbone, weights, "", settings), beside)
            parts.append(by_shots(part, about, form))
    return parts


def _with_intervals(
    table: pd.DataFrame, certain: Mapping[tuple[str, ...], Certainty]
) -> pd.DataFrame:
    """With the bounds of each row's main score, and of the average rows their ranks; those of one
    dataset alone have them, too."""
    rows = []
    for *key, label, dataset, alone in zip(
        *(table[name].astype(str) for name in (*TABLES, "label", "dataset")), _alone(table),
        strict=True,
    ):  # fmt: skip
        sure = certain[tuple(key)]
        found = sure.interval(label, dataset)
        ranked = dataset == "average" or alone
        first, last = sure.ranks.get(label, (None, None)) if ranked else (None, None)
        rows.append((found.low if found else None, found.high if found else None, first, last))
    columns = ("low", "high", "place_first", "place_last")
    more = pd.DataFrame(rows, columns=list(columns), index=table.index, dtype=object)
    return pd.concat([table, more.apply(pd.to_numeric)], axis=1)


def _json(
    tables: Mapping[tuple[str, ...], Table],
    table: pd.DataFrame,
    certain: Mapping[tuple[str, ...], Certainty],
) -> str:
    """A list of tables: what each is about, its rows with raw fractions, all its pairs, and what is
    said below it."""
    found = []
    table = _with_intervals(table, certain)
    for key, part in table.groupby(list(TABLES), sort=False):
        rows = [
            {name: _plain(value) for name, value in row.items()
             if name not in (*TABLES, "evaluations", "seeds")}
            for row in part.to_dict("records")
        ]  # fmt: skip
        names = map(str, key)
        about = dict(zip(TABLES, names, strict=True)) | {
            "shots": int(str(key[3])), "settings": json.loads(str(key[-1])),
        }  # fmt: skip
        mine = tuple(map(str, key))
        found.append({**about, "certainty": certain[mine].as_json(), "rows": rows,
                      "notes": apart.sentences({mine: tables[mine]})})  # fmt: skip
    return json.dumps(found, indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    """As JSON has it; nothing where there is no number."""
    if isinstance(value, (list, dict, str, bool)) or value is None:
        return value
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _best_first(table: pd.DataFrame) -> pd.DataFrame:
    """The methods of each table by what stands for a row of it; rows without it last, in their
    order."""
    parts = []
    for _, part in table.groupby(list(TABLES), sort=False):
        names = evaluations(part)
        paired = {"base", "new"} <= {*names}
        main = next((name for name in ("hm" if paired else "", *names) if name in part.columns
                     and part[name].notna().any()), None)  # fmt: skip
        parts.append(part if main is None else _sorted(part, main))
    return pd.concat(parts, ignore_index=True) if parts else table


def _csv(table: pd.DataFrame) -> str:
    """All rows with raw fractions, a column for each setting that was given, and no average of one
    dataset."""
    table = table[(table["dataset"] != "average") | ~_alone(table)]
    names = dict.fromkeys(name for settings in table["given"] for name in settings)
    shown = table.drop(
        columns=["evaluations", "seeds", "given", "values", "missing", "refused"]
    ).round(DIGITS)
    for place, name in enumerate(names, 1):
        column = name if name not in shown.columns else f"set_{name}"
        values = [settings.get(name) for settings in table["values"]]
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        shown.insert(place, column, texts)
    for name in shown.columns:
        if not pd.api.types.is_numeric_dtype(shown[name]):
            shown[name] = pd.Series([_cell(v) for v in shown[name]], shown.index, dtype=object)
    return shown.to_csv(index=False, lineterminator="\n").rstrip("\n")


def _alone(table: pd.DataFrame) -> "pd.Series[bool]":
    """Of each row whether its table is of one dataset."""
    datasets = table["dataset"].where(table["dataset"] != "average")
    return datasets.groupby([table[name] for name in TABLES]).transform("nunique").eq(1)


def _cell(value: Any) -> Any:
    """Texts as a spreadsheet may have them; what is absent stays absent, and a number a number."""
    return csv_cell(value) if isinstance(value, str) else value


def _sorted(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The methods of each table in the order of a column's value in the average row: scores from
    the highest, names, parameters and seconds from the lowest; rows without a value last.

    Raises:
        HarnessError: no table has that column, with those that there are.
    """
    names = {name.lower(): of for name, of in SORTS.items()}
    numbers = table.select_dtypes("number").columns
    names |= {str(name).lower(): str(name) for name in numbers}
    names |= {each: each for texts in table["evaluations"] for each in texts.split()}
    name = names.get(column, names.get(column.lower(), ""))
    if name not in table.columns:
        columns = [of for of, each in names.items() if each in table.columns]
        raise HarnessError(f"--sort: {unknown('column', column, columns)}")
    ascending = name in ("label", "parameters", "train_seconds")
    average = table[table["dataset"] == "average"]
    average = average.sort_values(name, ascending=ascending, kind="stable", na_position="last")
    place = {key: i for i, key in enumerate(zip(*(average[c] for c in (*TABLES, "label")),
                                                strict=True))}  # fmt: skip
    rows = list(zip(*(table[c] for c in (*TABLES, "label")), strict=True))
    first = {key[:-1]: i for i, key in reversed(list(enumerate(rows)))}
    order = sorted(range(len(rows)), key=lambda i: (first[rows[i][:-1]], place[rows[i]], i))
    return table.iloc[order].reset_index(drop=True)
