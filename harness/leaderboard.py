"""Records to tables: accuracies averaged from raw values, both harmonic means, what is missing.

Percent and rounding happen here and nowhere else. It never imports torch.
"""

from collections.abc import Iterable

import pandas as pd
from tabulate import tabulate

from harness.errors import HarnessError
from harness.results import Record, frame

FORMATS = ("markdown", "csv", "latex")
MISSING = "–"


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """One row per task, backbone, shots, settings, method and dataset, and one `average` row.

    Columns: base, new: means over seeds (fractions); *_std: sample standard deviations (n - 1) over
    seeds, of the average row over the seeds' averages; hm: HM of base and new, of the average row
    that of the averages (what papers print); mean_hm: the mean of the datasets' HMs; n: seeds;
    runs, expected: finished runs and those that the seeds and datasets of the table call for.
    Scores of incomplete rows are absent.

    Of records of the same cell the newest counts.
    """
    rows = frame(records)
    if rows.empty:
        raise HarnessError("there are no records yet. Start with `python -m harness run`.")
    tables = ["task", "backbone", "weights", "shots", "settings"]
    parts = [_table(part).assign(**dict(zip(tables, map(str, key), strict=True)))
             for key, part in rows.groupby(tables, sort=False)]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    datasets, seeds = sorted(rows["dataset"].unique()), sorted(rows["seed"].unique())
    cell = ["label", "dataset", "seed", "evaluation"]
    newest = rows.sort_values("time").drop_duplicates(["label", "dataset", "seed", "evaluation"],
                                                      keep="last")  # fmt: skip
    done = newest[newest["accuracy"].notna()]
    wide = done.pivot(index=cell[:3], columns="evaluation", values="accuracy")
    result = []
    for label in rows["label"].drop_duplicates():
        mine = rows[rows["label"] == label]
        scores = wide.loc[[label]].droplevel("label") if label in wide.index else None
        cost = {
            "label": label,
            "parameters": mine["parameters"].max(),
            "train_seconds": mine["train_seconds"].mean(),
            "checks": int(_runs(newest, label)["checks"].gt(0).sum()),
            "failed": int((mine.groupby(["dataset", "seed"])["accuracy"].count() == 0).sum()),
        }  # fmt: skip
        per_dataset = []
        for dataset in datasets:
            have = 0 if scores is None else int((scores.index.get_level_values(0) == dataset).sum())
            row = {"dataset": dataset, "runs": have, "expected": len(seeds), **cost}
            if scores is not None and have == len(seeds):
                row |= _statistics(scores.loc[dataset])
            per_dataset.append(row)
        average = {
            "dataset": "average",
            "runs": sum(row["runs"] for row in per_dataset),
            "expected": sum(row["expected"] for row in per_dataset),
            **cost,
        }
        if scores is not None and average["runs"] == average["expected"]:
            average |= _statistics(scores.groupby(level="seed").mean())
            if "hm" in average:
                average["mean_hm"] = sum(row["hm"] for row in per_dataset) / len(per_dataset)
        result += [average, *per_dataset]
    return pd.DataFrame(result)


def _runs(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    return rows[rows["label"] == label].drop_duplicates("key")


def _statistics(by_seed: pd.DataFrame) -> dict[str, float]:
    """Means and sample standard deviations over seeds (rows), by evaluation (columns)."""
    values: dict[str, float] = {"n": len(by_seed)}
    for name in by_seed.columns:
        values[str(name)] = by_seed[name].mean()
        values[f"{name}_std"] = by_seed[name].std(ddof=1)
    if {"base", "new"} <= set(by_seed.columns):
        values["hm"] = harmonic_mean(values["base"], values["new"])
    return values


def render(
    records: Iterable[Record],
    form: str = "markdown",
    task: str | None = None,
    methods: Iterable[str] | None = None,
) -> str:
    """The leaderboards of `records` as text.

    Raises:
        HarnessError: there is nothing to show.
    """
    table = summarise(records)
    if task is not None:
        table = table[table["task"] == task]
        if table.empty:
            raise HarnessError(f"there are no records of the task {task!r} yet.")
    if form == "csv":
        return table.to_csv(index=False)
    parts = []
    keys = ["task", "backbone", "weights", "shots", "settings"]
    for (task_name, backbone, _, shots, settings), part in table.groupby(keys, sort=False):
        title = f"{task_name}, {backbone}, {shots} shots"
        if table.groupby(["task", "backbone", "shots"])["settings"].nunique().max() > 1:
            title += f", settings {settings}"
        parts.append(_averages(part, title, form))
        if part["dataset"].nunique() > 2:
            parts.append(_by_dataset(part, form))
    return "\n\n".join(parts)


def _averages(part: pd.DataFrame, title: str, form: str) -> str:
    rows = part[part["dataset"] == "average"]
    scores = _evaluations(part)
    datasets = part["dataset"].nunique() - 1
    shown = []
    for _, row in rows.iterrows():
        line = {"method": row["label"], "params": _count(row["parameters"])}
        line |= {name: _percent(row.get(name), row.get(f"{name}_std")) for name in scores}
        if "hm" in part:
            line |= {"HM": _percent(row.get("hm")), "mean of HMs": _percent(row.get("mean_hm"))}
        line["runs"] = f"{row['runs']}/{row['expected']}"
        if row["runs"] < row["expected"]:
            line["runs"] += (
                f" incomplete, {row['failed']} failed" if row["failed"] else " incomplete"
            )
        if row["checks"]:
            line["runs"] += f" ({row['checks']}†)"
        shown.append(line)
    notes = [
        f"{title}; top-1 in percent, averaged over {datasets} dataset{'s'[: datasets != 1]}; "
        "mean ± sample standard deviation over seeds."
    ]
    if "hm" in part:
        notes.append("HM: harmonic mean of the averaged base and new.")
        notes.append("mean of HMs: mean of the datasets' harmonic means.")
    if rows["checks"].gt(0).any():
        notes.append(f"†: runs that did not train well; `{CHECKS}` lists them.")
    return _text(shown, form, " ".join(notes))


CHECKS = "python -m harness leaderboard --checks"


def _by_dataset(part: pd.DataFrame, form: str) -> str:
    rows = part[part["dataset"] != "average"]
    column = "hm" if "hm" in part else _evaluations(part)[0]
    names = list(rows["dataset"].drop_duplicates())
    prefix = _common_prefix(names)
    shown = []
    for label, mine in rows.groupby("label", sort=False):
        values = mine.set_index("dataset").get(column, pd.Series(dtype=float))
        shown.append(
            {"method": label} | {n.removeprefix(prefix): _percent(values.get(n)) for n in names}
        )
    title = "HM of each dataset's base and new" if column == "hm" else f"{column} of each dataset"
    return _text(shown, form, f"{title} ({prefix}…)." if prefix else f"{title}.")


def _evaluations(part: pd.DataFrame) -> list[str]:
    other = {"hm", "mean_hm"}
    names = [c.removesuffix("_std") for c in part.columns if c.endswith("_std")]
    return [name for name in names if name not in other]


def _text(rows: list[dict[str, str]], form: str, caption: str) -> str:
    style = {"markdown": "pipe", "latex": "latex_booktabs"}[form]
    align = ["left"] + ["right"] * (len(rows[0]) - 1)
    if form == "markdown":
        rows = [{k: str(v).replace("|", "\\|") for k, v in row.items()} for row in rows]
    table = tabulate(rows, headers="keys", tablefmt=style, colalign=align, disable_numparse=True)
    comment = "% " if form == "latex" else ""
    return f"{comment}{caption}\n\n{table}"


def _percent(mean: float | None, deviation: float | None = None) -> str:
    if mean is None or pd.isna(mean):
        return MISSING
    text = f"{100 * mean:.2f}"
    if deviation is not None and not pd.isna(deviation):
        text += f" ± {100 * deviation:.2f}"
    return text


def _count(value: float | None) -> str:
    return MISSING if value is None or pd.isna(value) else f"{int(value):,}"


def _common_prefix(names: list[str]) -> str:
    first = names[0].partition("_")[0] + "_"
    return first if len(names) > 1 and all(name.startswith(first) for name in names) else ""
