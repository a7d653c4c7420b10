"""Records to tables: accuracies averaged from raw values, both harmonic means, what is missing.

It never imports torch.
"""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness import costs
from harness.errors import HarnessError
from harness.results import CHANGE, Record, frame
from harness.tables import MISSING, count, laid_out, percent

TABLES = ["task", "backbone", "weights", "shots", "settings"]  # what one table is about
CHECKS = "python -m harness leaderboard --checks"


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """One row per task, backbone, shots, settings, method and dataset, and one `average` row.

    Columns: base, new: means over seeds (fractions); *_std: sample standard deviations (n - 1) over
    seeds, of the average row over the seeds' averages; hm: HM of base and new, of the average row
    that of the averages (what papers print); mean_hm: the mean of the datasets' HMs; n: seeds;
    runs, expected: finished runs and those that the seeds and datasets of the table call for;
    failed: runs whose newest record is a failure; stale: records left out, because a newer one of
    the row has other code, hyperparameters or images; averaged: whether the dataset is part of the
    average, as the source of a transfer task is not. Scores of incomplete rows are absent.
    """
    rows = frame(records)
    if rows.empty:
        raise HarnessError("there are no records yet. Start with `python -m harness run`.")
    parts = [
        _table(part).assign(**dict(zip(TABLES, map(str, key), strict=True)))
        for key, part in rows.groupby(TABLES, sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    datasets, seeds = sorted(rows["dataset"].unique()), sorted(rows["seed"].unique())
    averaged = [name for name in datasets if name != rows["source"].iloc[0]] or datasets
    current = _newest(rows)
    evaluations = [name for name in rows["evaluation"].drop_duplicates() if name]
    wide = current.pivot(
        index=["label", "dataset", "seed"], columns="evaluation", values="accuracy"
    )
    wide = wide.reindex(columns=evaluations).dropna(how="all")
    empty: dict[str, Any] = dict.fromkeys(_statistics(wide, evaluations), None)
    result = []
    for label in rows["label"].drop_duplicates():
        mine = current[current["label"] == label]
        scores = wide.loc[[label]].droplevel("label") if label in wide.index else wide.iloc[:0]
        shared = {
            "label": label,
            "evaluations": " ".join(evaluations),
            "parameters": mine["parameters"].max(),
            "applicable": not (len(mine) and (mine["status"] == "not applicable").all()),
        }
        every = rows[rows["label"] == label]
        per_dataset = []
        for dataset in datasets:
            of_dataset = scores[scores.index.get_level_values("dataset") == dataset]
            row = {**shared, "dataset": dataset, "runs": len(of_dataset), "expected": len(seeds)}
            row["averaged"] = dataset in averaged
            row |= _counts(mine[mine["dataset"] == dataset], every[every["dataset"] == dataset])
            whole = len(of_dataset) == len(seeds)
            per_dataset.append(row | (_statistics(of_dataset, evaluations) if whole else empty))
        average = {**shared, "dataset": "average", **empty, **_counts(mine, every)}
        for column in ("runs", "expected"):
            average[column] = sum(row[column] for row in per_dataset if row["averaged"])
        if average["runs"] == average["expected"]:
            counted = scores[scores.index.get_level_values("dataset").isin(averaged)]
            average |= _statistics(counted.groupby(level="seed").mean(), evaluations)
            if "hm" in average:
                average["mean_hm"] = sum(row["hm"] for row in per_dataset) / len(per_dataset)
        result += [average, *per_dataset]
    return pd.DataFrame(result)


def _counts(current: pd.DataFrame, every: pd.DataFrame) -> dict[str, Any]:
    """What is worth knowing of a row's records beside their scores."""
    runs = current.drop_duplicates("key")
    return {
        "train_seconds": runs["train_seconds"].mean(),
        "checks": int(runs["checks"].gt(0).sum()),
        "failed": int((runs["status"] == "failed").sum()),
        "stale": every["key"].nunique() - len(runs),
    }


def _newest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each row of the table only records that belong together: those like the newest one."""
    rows = rows.sort_values("time", kind="stable")
    for group, columns in (
        (["dataset", "seed"], ["images"]),
        (["label"], ["version"]),
        (["label", "dataset"], ["content"]),
        (["label", "dataset", "seed"], ["key", "time"]),
    ):
        for column in columns:
            rows = rows[rows[column] == rows.groupby(group)[column].transform("last")]
    return rows


def _statistics(by_seed: pd.DataFrame, evaluations: Sequence[str]) -> dict[str, float]:
    """Means and sample standard deviations over seeds (rows), by evaluation (columns)."""
    values: dict[str, float] = {"n": len(by_seed)}
    for name in evaluations:
        values[name] = by_seed[name].mean()
        values[f"{name}_std"] = by_seed[name].std(ddof=1)
    if {"base", "new"} <= set(evaluations):
        values["hm"] = harmonic_mean(values["base"], values["new"])
    return values


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
    return laid_out(shown, form, "\n".join(notes))


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
    return laid_out(shown, form, f"{title} ({prefix}…)." if prefix else f"{title}.")


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
    return laid_out(shown, form, f"{title}: {name} by shots, average of the datasets.")


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
