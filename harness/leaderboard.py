"""Records to tables: accuracies averaged from raw values, both harmonic means, what is missing.

Percent and rounding happen here and nowhere else. It never imports torch.
"""

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from harness.errors import HarnessError
from harness.results import CHANGE, Record, frame

FORMATS = ("markdown", "csv", "latex")
MISSING = "–"
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
) -> str:
    """The leaderboards of `records` as text; with `by_dataset` one more table for each dataset.

    Raises:
        HarnessError: there is nothing to show.
    """
    records = list(records)
    table = summarise(records)
    if task is not None:
        table = table[table["task"] == task]
        if table.empty:
            raise HarnessError(f"there are no records of the task {task!r} yet.")
    if form == "csv":
        return table.drop(columns="evaluations").to_csv(index=False).rstrip("\n")
    parts = []
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
        parts.append(_scores(part, "average", f"{title}, {_number(averaged)}", form))
        if len(datasets) > 1:
            parts.append(_overview(part, datasets, form))
        if by_dataset:
            parts += [_scores(part, name, f"{title}, {name}", form) for name in datasets]
    for key, part in table.groupby([name for name in TABLES if name != "shots"], sort=False):
        if part["shots"].nunique() > 1:
            parts.append(_by_shots(part, f"{key[0]}, {key[1]}", form))
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


def _scores(part: pd.DataFrame, dataset: str, title: str, form: str) -> str:
    """One table: every method's scores on a dataset, or on their average."""
    rows = part[part["dataset"] == dataset].dropna(axis="columns", how="all")
    both = _paired(part) and dataset == "average"
    shown = []
    for _, row in rows.iterrows():
        line = {"method": row["label"], "params": _count(row.get("parameters"))}
        line |= {n: _percent(row.get(n), row.get(f"{n}_std")) for n in _evaluations(part)}
        line |= {"HM": _percent(row.get("hm"))} if _paired(part) else {}
        line |= {"mean of HMs": _percent(row.get("mean_hm"))} if both else {}
        line |= {"n": _count(row.get("n")), "runs": _runs(row)}
        shown.append(line)
    notes = [f"{title}.", "Top-1 in percent: mean ± sample standard deviation over n seeds."]
    if both:
        notes.append("HM: of the averaged base and new. Mean of HMs: over the datasets' HMs.")
    if CHANGE in _evaluations(part):
        notes.append(f"{CHANGE}: mean over the other datasets of accuracy minus zero-shot's.")
    if rows["checks"].gt(0).any():
        notes.append(f"†: runs that look wrong; `{CHECKS}` lists them.")
    return _text(shown, form, "\n".join(notes))


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
            {"method": str(label)} | {n.removeprefix(prefix): _percent(values[n]) for n in names}
        )
    title = "HM of each dataset's base and new" if column == "hm" else f"{column} of each dataset"
    return _text(shown, form, f"{title} ({prefix}…)." if prefix else f"{title}.")


def _by_shots(part: pd.DataFrame, title: str, form: str) -> str:
    """Methods by shots: the average of the datasets."""
    column = "hm" if _paired(part) else _evaluations(part)[0]
    averages = part[part["dataset"] == "average"]
    shots = sorted(averages["shots"].unique(), key=int)
    shown = []
    for label, mine in averages.groupby("label", sort=False):
        values = mine.set_index("shots")[column]
        row = {number: _percent(values.get(number)) for number in shots}
        shown.append({"method": str(label)} | row)
    name = "HM" if column == "hm" else column
    return _text(shown, form, f"{title}: {name} by shots, average of the datasets.")


def _evaluations(part: pd.DataFrame) -> list[str]:
    return part["evaluations"].iloc[0].split()


def _paired(part: pd.DataFrame) -> bool:
    """Whether the table has base and new, and so harmonic means."""
    return {"base", "new"} <= set(_evaluations(part))


def _text(rows: list[dict[str, str]], form: str, caption: str) -> str:
    style = {"markdown": "pipe", "latex": "latex_booktabs"}[form]
    align = ["left"] + ["right"] * (len(rows[0]) - 1)
    if form == "markdown":
        rows = [{k: str(v).replace("|", "\\|") for k, v in row.items()} for row in rows]
    else:
        caption = "".join(f"% {line}\n" for line in caption.splitlines())
    table = tabulate(rows, headers="keys", tablefmt=style, colalign=align, disable_numparse=True)
    return f"{caption}\n\n{table}" if form == "markdown" else f"{caption}{table}"


def _percent(mean: float | None, deviation: float | None = None) -> str:
    if mean is None or pd.isna(mean):
        return MISSING
    text = f"{100 * mean:.2f}"
    if deviation is not None and not pd.isna(deviation):
        text += f" ± {100 * deviation:.2f}"
    return text


def _count(value: float | None) -> str:
    return MISSING if value is None or pd.isna(value) else f"{int(value):,}"


def _number(datasets: list[str]) -> str:
    return datasets[0] if len(datasets) == 1 else f"average of {len(datasets)} datasets"


def _common_prefix(names: list[str]) -> str:
    first = names[0].partition("_")[0] + "_"
    return first if len(names) > 1 and all(name.startswith(first) for name in names) else ""
