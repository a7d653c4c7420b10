"""Records to tables: accuracies averaged from raw values, both harmonic means, what is missing.

It never imports torch.
"""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.errors import HarnessError
from harness.records import costs, plot
from harness.records.store import CHANGE, Record
from harness.records.summary import TABLES, frame, summarise
from harness.records.tables import MISSING, count, format_table, percent

CHECKS = "python -m harness leaderboard --checks"


@dataclass(frozen=True)
class Leaderboard:
    """The tables of some records: printed as Markdown, shown as HTML in a notebook.

    task: this one alone; by_dataset: one more table for each dataset; pareto: of costs.COSTS.
    """

    records: Sequence[Record]
    task: str | None = None
    by_dataset: bool = False
    pareto: str | None = None

    def text(self, form: str = "markdown") -> str:
        """The tables as `markdown`, `latex`, `csv` or `html`.

        Raises:
            HarnessError: there is nothing to show, or nothing to mark by.
        """
        return render(self.records, form, self.task, self.by_dataset, self.pareto)

    def frame(self) -> pd.DataFrame:
        """See `summarise`."""
        return summarise(self.records)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.text("html")


def render(
    records: Iterable[Record],
    form: str = "markdown",
    task: str | None = None,
    by_dataset: bool = False,
    pareto: str | None = None,
) -> str:
    """The leaderboards of `records` as text; with `by_dataset` one more table for each dataset;
    with `pareto` (of costs.COSTS) a mark at methods that no other beats in accuracy and that cost.

    Raises:
        HarnessError: there is nothing to show, or nothing to mark by.
    """
    every = list(records)
    if form == "svg":
        return plot.pareto(every, task, pareto)
    chosen = [record for record in every if task in (None, record.run["task"])]
    if task is not None and not chosen:
        raise HarnessError(f"there are no records of the task {task!r} yet.")
    spent = costs.of_methods(every, pareto) if pareto not in (None, "params") else {}
    records = [record for record in chosen if not costs.measures(record)]
    about_costs = costs.tables((r for r in chosen if costs.measures(r)), form)
    if chosen and not records:
        return "\n\n".join(about_costs) or "nothing was measured."
    table = summarise(records)
    if form == "csv":
        if pareto:
            raise HarnessError("--pareto marks a table to be read: leave out --format csv.")
        scores = table.drop(columns="evaluations").to_csv(index=False).rstrip("\n")
        return "\n\n".join([scores, *about_costs])
    parts, compared = list[str](), False
    for key, part in table.groupby(TABLES, sort=False):
        task_name, backbone, weights, shots, settings = map(str, key)
        like = table[(table["task"] == task_name) & (table["backbone"] == backbone)]
        title = f"{task_name}, {backbone}, {shots} shots"
        pool = json.loads(settings).get("views", 0)
        title += f", {pool} views an image" if pool else ""
        title += f", weights {weights}" if like["weights"].nunique() > 1 else ""
        title += f", settings {settings}" if like["settings"].nunique() > 1 else ""
        datasets = [name for name in part["dataset"].drop_duplicates() if name != "average"]
        averaged = [name for name in datasets if part[part["dataset"] == name]["averaged"].all()]
        mine = {each[-1]: c for each, c in spent.items()
                if each[:-1] == (backbone, weights, task_name, shots)}  # fmt: skip
        if pareto == "params":
            counts = part.dropna(subset="parameters")
            mine = dict(zip(counts["label"], counts["parameters"], strict=True))
        heading = f"{title}, {_number(averaged)}"
        compared = compared or bool(mine)
        parts.append(_scores(part, "average", heading, form, mine, pareto))
        if len(datasets) > 1:
            parts.append(_overview(part, datasets, form))
        if by_dataset:
            parts += [_scores(part, name, f"{title}, {name}", form) for name in datasets]
    if pareto and not compared:
        raise HarnessError(
            f"--pareto {pareto}: no measurement is of these backbones, weights, tasks and shots. "
            "Measure with --tasks efficiency, --shots and --set efficiency.like=TASK."
        )
    for key, part in table.groupby([name for name in TABLES if name != "shots"], sort=False):
        if part["shots"].nunique() > 1:
            parts.append(_by_shots(part, f"{key[0]}, {key[1]}", form))
    parts += about_costs
    if form == "markdown":
        parts += [textwrap.fill(each, 100) for each in differing(records, task)]
    return "\n\n".join(parts)


def differing(records: Iterable[Record], task: str | None = None) -> list[str]:
    """A sentence for each dataset whose records were made on different lists of images, and so are
    not averaged together: the tables hold the newest."""
    found = []
    rows = frame(records).sort_values("time", kind="stable")
    for key, part in rows.groupby([*TABLES, "dataset", "seed"], sort=False):
        lists = part.groupby("images", sort=False)["label"].unique()
        if len(lists) < 2 or task not in (None, key[0]):
            continue
        newest = part["images"].iloc[-1]
        others = "; ".join(
            f"{', '.join(sorted(labels))} on {images}"
            for images, labels in lists.items()
            if images != newest
        )
        found.append(
            f"Left out, {key[0]}, {key[-2]}, seed {key[-1]}: the lists of images differ, and are "
            f"not averaged. Shown is the newest, {newest}; left out: {others}."
        )
    return found


def _scores(
    part: pd.DataFrame,
    dataset: str,
    title: str,
    form: str,
    spent: Mapping[str, float] | None = None,
    pareto: str | None = None,
) -> str:
    """One table: every method's scores on a dataset, or on their average; with the methods' costs
    (`spent`, of the kind `pareto`) which of them no other beats."""
    rows = part[part["dataset"] == dataset].dropna(axis="columns", how="all")
    both = _paired(part) and dataset == "average"
    best = _unbeaten(rows, "hm" if _paired(part) else _evaluations(part)[0], spent) if spent else ()
    shown = []
    for _, row in rows.iterrows():
        line = {"method": row["label"], "params": count(row.get("parameters"))}
        line |= {n: percent(row.get(n), row.get(f"{n}_std")) for n in _evaluations(part)}
        line |= {"HM": percent(row.get("hm"))} if _paired(part) else {}
        line |= {"mean of HMs": percent(row.get("mean_hm"))} if both else {}
        if pareto and spent:
            if pareto != "params":  # they have a column already
                value = spent.get(row["label"])
                line[pareto] = MISSING if value is None else costs.COSTS[pareto][2](value)
            line["unbeaten"] = "*" * (row["label"] in best)
        line |= {"n": count(row.get("n")), "runs": _runs(row)}
        shown.append(line)
    notes = [f"{title}.", "Top-1 in percent: mean ± sample standard deviation over n seeds."]
    if both:
        notes.append("HM: of the averaged base and new. Mean of HMs: over the datasets' HMs.")
    if CHANGE in _evaluations(part):
        notes.append(f"{CHANGE}: mean over the other datasets of accuracy minus zero-shot's.")
    if pareto and spent:
        notes.append(f"{pareto}: {costs.COSTS[pareto][0]}; *: no method's mean is better in both.")
    if rows["checks"].gt(0).any():
        notes.append(f"†: runs that look wrong; `{CHECKS}` lists them.")
    return format_table(shown, form, "\n".join(notes))


def _unbeaten(rows: pd.DataFrame, score: str, spent: Mapping[str, float]) -> set[str]:
    """The methods that no other beats in score and cost, of those with both."""
    both = [
        (row["label"], (row[score], spent[row["label"]]))
        for _, row in rows.iterrows()
        if row["label"] in spent and not pd.isna(row.get(score))
    ]
    marks = costs.unbeaten([point for _, point in both])
    return {label for (label, _), mark in zip(both, marks, strict=True) if mark}


def _runs(row: pd.Series) -> str:
    if not row["applicable"]:
        return "not applicable"
    text = f"{row['runs']}/{row['expected']}"
    text += " incomplete" if row["runs"] < row["expected"] else ""
    text += f", {row['failed']} failed" if row["failed"] else ""
    text += f", {row['stale']} stale" if row["stale"] else ""
    return text + (f" ({row['checks']}†)" if row["checks"] else "")


def _overview(part: pd.DataFrame, names: list[str], form: str) -> str:
    """Methods by datasets: the HM, or the only score."""
    column = "hm" if _paired(part) else _evaluations(part)[0]
    prefix = _common_prefix(names)
    shown = []
    for label, mine in part.groupby("label", sort=False):
        values = mine.set_index("dataset")[column]
        shown.append(
            {"method": str(label)} | {n.removeprefix(prefix): percent(values[n]) for n in names}
        )
    title = "HM of each dataset's base and new" if column == "hm" else f"{column} of each dataset"
    return format_table(shown, form, f"{title} ({prefix}…)." if prefix else f"{title}.")


def _by_shots(part: pd.DataFrame, title: str, form: str) -> str:
    """Methods by shots: the average of the datasets."""
    column = "hm" if _paired(part) else _evaluations(part)[0]
    averages = part[part["dataset"] == "average"]
    shots = sorted(averages["shots"].unique(), key=int)
    shown = []
    for label, mine in averages.groupby("label", sort=False):
        values = mine.set_index("shots")[column]
        row = {number: percent(values.get(number)) for number in shots}
        shown.append({"method": str(label)} | row)
    name = "HM" if column == "hm" else column
    return format_table(shown, form, f"{title}: {name} by shots, average of the datasets.")


def _evaluations(part: pd.DataFrame) -> list[str]:
    return part["evaluations"].iloc[0].split()


def _paired(part: pd.DataFrame) -> bool:
    """Whether the table has base and new, and so harmonic means."""
    return {"base", "new"} <= set(_evaluations(part))


def _number(datasets: list[str]) -> str:
    return datasets[0] if len(datasets) == 1 else f"average of {len(datasets)} datasets"


def _common_prefix(names: list[str]) -> str:
    first = names[0].partition("_")[0] + "_"
    return first if len(names) > 1 and all(name.startswith(first) for name in names) else ""
