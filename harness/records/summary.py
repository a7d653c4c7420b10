"""Records to one row a method and dataset: raw accuracies averaged over seeds, both harmonic means.

It never imports torch.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.errors import HarnessError

if TYPE_CHECKING:
    pass
from collections.abc import Sequence

from harness.records.store import CHANGE, Record, digest, method_label

TABLES = ["task", "backbone", "weights", "shots", "settings"]  # what one table is about


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


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run and evaluation; a failed run has one row without an accuracy.

    `version`, `content` and `images` are digests of what must not be mixed in a table: code and
    task of a row, hyperparameters of a row's dataset, lists of a dataset and seed.
    """
    rows = []
    for record in records:
        run, prints = record.run, record.run["fingerprints"]
        fields = run.get("task_fields") or {}
        evaluated = {n: v for n, v in (prints.get("evaluated") or {}).items()
                     if n not in fields.get("others", ())}  # fmt: skip
        shared = {
            "key": record.key,
            "status": record.status,
            "label": method_label(run),
            "time": record.provenance.get("time", ""),
            "parameters": record.cost.get("trainable_parameters"),
            "train_seconds": record.cost.get("train_seconds"),
            "checks": len(record.checks),
            **{k: run[k] for k in ("method", "task", "dataset", "backbone", "shots", "seed")},
            "settings": json.dumps(run["settings"], sort_keys=True),
            "weights": prints["weights"],
            "version": digest([run.get("code"), run.get("task_fields")]),
            "content": digest(run.get("hyperparameters")),
            "source": fields.get("source", ""),
            "images": digest([prints.get("train"), evaluated]),
        }
        scores = {name: s["accuracy"] for name, s in record.scores.items() if "zero_shot" not in s}
        changes = [s["accuracy"] - s["zero_shot"] for s in record.scores.values()
                   if "zero_shot" in s]  # fmt: skip
        scores |= {CHANGE: sum(changes) / len(changes)} if changes else {}
        rows += [
            {**shared, "evaluation": name, "accuracy": accuracy}
            for name, accuracy in (scores or {"": None}).items()
        ]
    return pd.DataFrame(rows)
