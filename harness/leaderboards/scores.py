"""One table of the leaderboard as text: scores, datasets side by side, numbers of shots."""

import json
from collections.abc import Mapping

import pandas as pd

from harness.certainty.intervals import PLACE, Certainty, p_value, signed
from harness.certainty.intervals import shown as shown_interval
from harness.leaderboards import costs
from harness.records.entry import TABLES
from harness.records.store import CHANGE
from harness.records.tables import MISSING, count, format_table, in_shots, percent, wrapped

CHECKS = "python -m harness leaderboard --checks"
MISSING_RUNS = "python -m harness leaderboard --missing"
RANGE = " to "
BRACKETS = "(…): of the finished runs of an incomplete row."


def scores_table(
    part: pd.DataFrame,
    dataset: str,
    title: str,
    form: str,
    certainty: Certainty,
    every_column: bool = False,
    spent: Mapping[str, float] | None = None,
    pareto: str | None = None,
    unlike: str = "",
) -> str:
    """One table: every method's scores on a dataset, or on their average; with the methods' costs
    (`spent`, of the kind `pareto`; `unlike`: in what they were measured otherwise than the scores)
    which of them no other beats.

    Deviations over seeds, the mean of HMs, seeds and runs are shown with `every_column`, or where
    there are no intervals or runs are missing.
    """
    rows = part[part["dataset"] == dataset].dropna(axis="columns", how="all")
    names = evaluations(part)
    both = _paired(part) and dataset == "average"
    best = _unbeaten(rows, _main(part), spent) if spent and names else ()
    sample = certainty.sample if certainty.has(dataset) else None
    sure = sample is not None and not sample.few_units
    deviates = every_column or not sure
    runs = every_column or not sure or _worth_saying(rows)
    swept = _swept(rows) if form in ("markdown", "latex", "html") else []
    shown = []
    for _, row in rows.iterrows():
        line = {"method": row["label"]}
        if swept:
            line = {"method": row["label"].partition("[")[0]}
            line |= {f"{name} =": _short(row["values"].get(name)) for name in swept}
        line |= {"params": _params(part, row)} if every_column or form != "latex" else {}
        line |= {name: _score(row, name, deviates) for name in names}
        line |= {"HM": _score(row, "hm", deviates)} if _paired(part) else {}
        line |= {"mean of HMs": percent(row.get("mean_hm"))} if both and deviates else {}
        if sure:
            line["95%"] = shown_interval(certainty.interval(row["label"], dataset))
        if certainty.against is not None and dataset == "average":
            found = certainty.compared(row["label"])
            line |= {f"- {certainty.against}": signed(found)}
            line |= {"p": p_value(found.adjusted) if found else ""}
        elif certainty.ranks and dataset == "average" and form != "latex":
            first, last = certainty.ranks.get(row["label"], (0, 0))
            line["place"] = f"{first}-{last}" if first < last else str(first or "")
        if pareto and spent:
            if pareto != "params":  # they have a column already
                value = spent.get(row["label"])
                line[pareto] = MISSING if value is None else costs.COSTS[pareto][2](value)
            line["unbeaten"] = "*" * (row["label"] in best)
        line |= {"n": count(row.get("n"))} if deviates else {}
        line |= {"runs": _runs(row)} if runs and (every_column or form != "latex") else {}
        shown.append(line)
    notes = [f"{title}."]
    if deviates:
        notes.append("Top-1 in percent: mean ± sample standard deviation over n seeds.")
    else:
        number = int(rows["n"].max())
        notes.append(f"Top-1 in percent, means over {number} seeds." if number > 1 else
                     "Top-1 in percent, one seed.")  # fmt: skip
    if both:
        notes.append("HM: of the averaged base and new." +
                     " Mean of HMs: over the datasets' HMs." * deviates)  # fmt: skip
    notes += certainty.notes(dataset)
    said = certainty.comparisons() if dataset == "average" else []
    notes += [each for each in said if form != "latex" or not each.startswith(PLACE)]
    if certainty.against is not None and dataset == "average":
        notes.append("p: adjusted for all comparisons of this table (step-down max-T); the "
                     "intervals are not.")  # fmt: skip
    if CHANGE in names:
        notes.append(f"{CHANGE}: mean of accuracy minus zero-shot's over the other datasets that "
                     "all rows were scored on.")  # fmt: skip
    if any(RANGE in line.get("params", "") for line in shown):
        notes.append("params: of the dataset with the fewest and of that with the most.")
    if pareto and spent:
        notes.append(
            f"{pareto}: {costs.COSTS[pareto][0]}; *: of those with a cost "
            "no method's mean is better in one and as good in the other."
        )
        notes += [f"{pareto} was measured otherwise than the scores: {unlike}."] if unlike else []
    if any(str(cell).startswith("(") for line in shown for cell in line.values()):
        notes.append(BRACKETS)
    each = part[part["dataset"] != "average"] if dataset == "average" else rows
    if (each["applicable"].astype(bool) & each["runs"].lt(each["expected"])).any():
        notes.append(f"`{MISSING_RUNS}` prints the commands that make what is missing.")
    if rows["stale"].gt(0).any() and runs:
        notes.append("stale: left out, because newer runs have other code, settings, templates or "
                     "images.")  # fmt: skip
    alone = [str(label) for label in rows.loc[rows["one_template"].gt(0), "label"]]
    if 0 < len(alone) < rows["applicable"].astype(bool).sum():
        notes.append("A dataset's several templates are averaged by all but "
                     f"{', '.join(alone)}.")  # fmt: skip
    odd = rows[_odd(rows)]
    if form == "latex" and runs and not every_column and len(odd):  # they have no column
        said = [f"{row['label']} {_runs(row)}" for _, row in odd.iterrows()]
        notes.append(f"Runs: {'; '.join(said)}.")
    if rows["checks"].gt(0).any():
        notes.append(f"†: runs that look wrong; `{CHECKS}` lists them.")
    bold: dict[str, set[int]] = {"mean of HMs": set()}
    if form == "latex":
        of = {**{name: name for name in names}, "HM": "hm"}
        sure_of = certainty if dataset == "average" else certainty.of_dataset(dataset)
        alike = {c: _bold(rows, n, sure_of) for c, n in of.items() if n in (*names, "hm")}
        bold |= {c: {i for i, label in enumerate(rows["label"]) if label in labels}
                 for c, labels in alike.items()}  # fmt: skip
        if any(alike.values()):
            notes.append("Bold: the best, and what is not told apart from it.")
        notes.append(r"It needs \usepackage{booktabs}.")
    return format_table(shown, form, "\n".join(wrapped(notes)), bold)


def _bold(rows: pd.DataFrame, name: str, certainty: Certainty) -> set[str]:
    """The best row, and those with an interval that are not told apart from it."""
    alike = certainty.like_the_best(name)
    if not alike:
        return set()
    known = rows.dropna(subset=[name])
    top = str(known["label"].iloc[int(known[name].argmax())])
    there = certainty.sample.labels if certainty.sample else ()
    return alike if top in there else {top}


def _worth_saying(rows: pd.DataFrame) -> bool:
    """Whether a row lacks runs, or some of them failed, are stale or look wrong."""
    return bool(_odd(rows).any())


def _odd(rows: pd.DataFrame) -> pd.Series:
    odd = rows["runs"].lt(rows["expected"])
    for name in ("failed", "stale", "checks"):
        odd = odd | rows[name].gt(0)
    return odd


def _swept(rows: pd.DataFrame) -> list[str]:
    """The settings that tell the rows apart, if they are all of one method."""
    names = {label.partition("[")[0] for label in rows["label"]}
    found = dict.fromkeys(name for given in rows["given"] for name in given)
    return list(found) if len(names) == 1 and len(rows) > 1 else []


def _short(value: object) -> str:
    """A setting's value; nothing where the method's own is taken."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _score(row: pd.Series, name: str, deviates: bool = True) -> str:
    """A mean, perhaps with its deviation; in brackets that of the finished runs of an incomplete
    row."""
    finished = row.get(f"finished_{name}")
    if pd.isna(row.get(name)) and finished is not None and not pd.isna(finished):
        return f"({percent(finished)})"
    return percent(row.get(name), row.get(f"{name}_std") if deviates else None)


def _params(part: pd.DataFrame, row: pd.Series) -> str:
    """A count; of the average row the datasets' fewest and most, if they differ."""
    if row["dataset"] == "average":
        same = part[(part["label"] == row["label"]) & (part["dataset"] != "average")]
        counts = same[same["averaged"].astype(bool)]["parameters"].dropna()
        if counts.nunique() > 1:
            return f"{count(counts.min())}{RANGE}{count(counts.max())}"
    return count(row.get("parameters"))


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
    refused = row.get("refused", 0)
    if refused and not pd.isna(refused):
        text += f", not applicable on {refused:.0f} dataset{'s' * (refused > 1)}"
    text += f", {row['failed']} failed" if row["failed"] else ""
    text += f", {row['stale']} stale" if row["stale"] else ""
    return text + (f" ({row['checks']}†)" if row["checks"] else "")


def overview(part: pd.DataFrame, names: list[str], form: str, certainty: Certainty) -> str:
    """Methods by datasets: the HM, or the first score; in LaTeX bold where a method is not told
    apart from the dataset's best."""
    column, prefix = _main(part), _common_prefix(names)
    short = [name.removeprefix(prefix) for name in names]
    shown = []
    for label, mine in part.groupby("label", sort=False):
        lines = {row["dataset"]: row for _, row in mine.iterrows()}
        cells = [_score(lines[name], column, deviates=False) for name in names]
        shown.append({"method": str(label)} | dict(zip(short, cells, strict=True)))
    title = "HM of each dataset's base and new" if column == "hm" else f"{column} of each dataset"
    title += f" ({prefix}…)." if prefix else "."
    if any(cell.startswith("(") for line in shown for cell in line.values()):
        title += f"\n{BRACKETS}"
    bold: dict[str, set[int]] = {each: set() for each in short}
    if form == "latex":
        for name, each in zip(names, short, strict=True):
            alike = _bold(part[part["dataset"] == name], column, certainty.of_dataset(name))
            bold[each] = {i for i, line in enumerate(shown) if line["method"] in alike}
    return format_table(shown, form, title, bold)


def by_shots(part: pd.DataFrame, title: str, form: str) -> str:
    """Methods by shots: the average of the datasets."""
    column = _main(part)
    averages = part[part["dataset"] == "average"]
    shots = sorted(averages["shots"].unique(), key=int)
    shown = []
    for label, mine in averages.groupby("label", sort=False):
        values = dict(zip(mine["shots"], mine.get(column, []), strict=False))
        row = {number: percent(values.get(number)) for number in shots}
        shown.append({"method": str(label)} | row)
    name = "HM" if column == "hm" else column
    caption = f"{title}: {name} by shots, average of the datasets."
    if apart := not_the_same(part, shots):
        caption += f"\nNot of the same datasets or seeds: {apart}."
    return format_table(shown, form, caption, dict.fromkeys(shots, ()))


def not_the_same(part: pd.DataFrame, shots: list[str]) -> str:
    """Over what each number of shots is averaged, if that is not the same for all."""
    found = dict[str, tuple[int, str]]()
    lists = set[tuple[object, ...]]()
    for number in shots:
        mine = part[(part["shots"] == number) & (part["dataset"] != "average")]
        averaged = mine[mine["averaged"].astype(bool)]
        datasets = sorted(averaged["dataset"].unique())
        seeds = str(averaged["seeds"].iloc[0])
        found[number] = len(datasets), seeds
        lists.add((*datasets, seeds))
    if len(lists) < 2:
        return ""
    return "; ".join(
        f"{in_shots(number)}: {datasets} dataset{'s' * (datasets > 1)}, "
        f"seed{'s' * (' ' in seeds)} {seeds.replace(' ', ', ')}"
        for number, (datasets, seeds) in found.items()
    )


def _main(part: pd.DataFrame) -> str:
    """The column that stands for a row."""
    return "hm" if _paired(part) else [*evaluations(part), "n"][0]


def table_keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The tables of a frame, each as the values of TABLES."""
    keys = zip(*(table[name].astype(str) for name in TABLES), strict=True)
    return list(dict.fromkeys(keys))


def evaluations(part: pd.DataFrame) -> list[str]:
    """Of one table, or of several that differ in shots."""
    texts = part["evaluations"].drop_duplicates()
    return list(dict.fromkeys(name for text in texts for name in text.split()))


def _paired(part: pd.DataFrame) -> bool:
    """Whether the table has base and new, and so harmonic means."""
    return {"base", "new"} <= set(evaluations(part))


def _common_prefix(names: list[str]) -> str:
    first = names[0].partition("_")[0] + "_"
    shared = len(names) > 1 and all(name.startswith(first) for name in names)
    return first if shared and f"{first}method" not in names else ""  # a column has that name
