"""Records to one row a method and dataset: raw accuracies averaged over seeds, both harmonic means.

It never imports torch.
"""

import json
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from harness.errors import HarnessError
from harness.records.entry import TABLES, Entry, entry, harmonic_mean
from harness.records.labels import label, method_label, rows
from harness.records.record import Record
from harness.records.store import CHANGE, one_record_a_key

# pyarrow's texts, which pandas takes where it is installed, hold no names that are not UTF-8
PYTHON_TEXTS = ("mode.string_storage", "python")


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """One row per task, backbone, shots, settings, method and dataset, and one `average` row.

    A method with settings that the user gave is a row of its own; see labels.rows. Of records with
    the same key one counts (store.one_record_a_key). Of a row only records that belong together:
    those with the newest record's code, of a dataset those with its newest hyperparameters, of a
    dataset those with its newest test images, of a dataset and seed those with its newest lists.

    Expected of every row are the datasets and the seeds of the table's finished runs, each with
    each. A stale run counts there, so that an average never shrinks unseen to what was run again. A
    failed run adds neither a dataset nor a seed, unless no run of the table has finished.

    Columns: base, new: means over seeds (fractions); *_std: sample standard deviations (n - 1) over
    seeds, of the average row over the seeds' averages; hm: HM of base and new, of the average row
    that of the averages (what papers print); mean_hm: the mean of the HMs of the datasets in the
    average; n: seeds; runs, expected: finished runs and those that the seeds and datasets of the
    table call for; missing: the seeds that a dataset lacks; failed: runs whose newest record is a
    failure; stale: records left out, because a newer one of the row has other code, hyperparameters
    or images; parameters: trained numbers, of the average row their mean over its datasets;
    averaged: whether the dataset is part of the average, as the source of a transfer task is not;
    applicable: whether the method can serve the dataset, or any; refused: of the average row the
    datasets that it cannot;
    seeds: the table's; given: the settings that the user gave; values: these, and all others that
    are the same in all runs of the row. Scores of incomplete rows are absent: what a dataset has of
    them is in finished_base and so on.
    """
    return as_frame(tables(records))


@pd.option_context(*PYTHON_TEXTS)
def as_frame(found: Mapping[tuple[str, ...], "Table"]) -> pd.DataFrame:
    """See `summarise`."""
    named = ((dict(zip(TABLES, key, strict=True)), each) for key, each in found.items())
    return pd.DataFrame([row | names for names, each in named for row in _of_table(each)])


@dataclass(frozen=True)
class Row:
    """A row of a table: a method with settings that the user gave.

    every: all entries of it; members: those that count, one a dataset and seed.
    """

    label: str
    given: Mapping[str, Any]
    every: Sequence[Entry]
    members: Sequence[Entry]


@dataclass(frozen=True)
class Table:
    """The entries of one table; what every row is expected to have."""

    rows: Sequence[Row]
    datasets: Sequence[str]
    seeds: Sequence[int]
    averaged: Sequence[str]
    evaluations: Sequence[str]
    source: str

    @property
    def entries(self) -> list[Entry]:
        """All of them, once each."""
        return [*{each.record.key: each for row in self.rows for each in row.every}.values()]

    @property
    def main(self) -> str | None:
        """What stands for a row: the HM of base and new, or the first evaluation."""
        if {"base", "new"} <= {*self.evaluations}:
            return "hm"
        return next(iter(self.evaluations), None)


def tables(records: Iterable[Record]) -> dict[tuple[str, ...], Table]:
    """The tables of some records, by the values of TABLES; of one backbone and settings together,
    by increasing shots.

    Raises:
        HarnessError: there are no records.
    """
    found = dict[tuple[str, ...], list[Entry]]()
    for record in one_record_a_key(records):
        each = entry(record)
        found.setdefault(each.table, []).append(each)
    if not found:
        raise HarnessError("there are no records yet. Start with `python -m harness run`.")
    order = list(dict.fromkeys((*key[:3], key[4]) for key in found))
    keys = sorted(found, key=lambda key: (order.index((*key[:3], key[4])), int(key[3])))
    return {key: _table(found[key]) for key in keys}


def _table(entries: Sequence[Entry]) -> Table:
    oldest_first = sorted(entries, key=lambda each: (each.record.time, each.record.key))
    # which lists are the newest, finished runs say if there are any
    voting = sorted(oldest_first, key=lambda each: each.counts)
    current = _newest(voting, lambda each: each.dataset, lambda each: each.tested)
    current = _newest(current, lambda each: each.cell, lambda each: each.images)
    kept = {each.record.key for each in current}
    found = []
    by_method: dict[str, list[Entry]] = {each.record.run["method"]: [] for each in entries}
    for each in oldest_first:
        by_method[each.record.run["method"]].append(each)
    for method, own in by_method.items():
        for given, records in rows([each.record for each in own]):
            keys = {record.key for record in records}
            every = [each for each in own if each.record.key in keys]
            members = _together([each for each in every if each.record.key in kept])
            found.append(Row(label(method, given), given, every, members))
    found = _same_others(found)
    counting = [each for each in oldest_first if each.counts] or oldest_first
    datasets = sorted({each.dataset for each in counting})
    return Table(
        rows=found,
        datasets=datasets,
        seeds=sorted({each.seed for each in counting}),
        averaged=[name for name in datasets if name != entries[0].source] or datasets,
        evaluations=list(dict.fromkeys(name for each in counting for name in each.scores)),
        source=entries[0].source,
    )


def _same_others(found: Sequence[Row]) -> list[Row]:
    """The rows, with the change elsewhere over the other datasets, of the same images, that every
    row and seed of a dataset was scored on."""
    shared = dict[str, set[str]]()
    for row in found:
        for each in row.members:
            if each.elsewhere:
                mine = shared.setdefault(each.dataset, {*each.elsewhere})
                mine &= {*each.elsewhere}
    if not shared:
        return [*found]

    def restricted(each: Entry) -> Entry:
        if not each.elsewhere:
            return each
        scores = {name: value for name, value in each.scores.items() if name != CHANGE}
        changes = [each.elsewhere[name] for name in sorted(shared[each.dataset])]
        return replace(
            each, scores=scores | ({CHANGE: statistics.mean(changes)} if changes else {})
        )

    return [replace(row, members=[*map(restricted, row.members)]) for row in found]


def _of_table(table: Table) -> list[dict[str, Any]]:
    """The rows of a data frame."""
    result = []
    for each in table.rows:
        shared = {
            "label": each.label, "given": each.given, "values": _values(each),
            "evaluations": " ".join(table.evaluations), "seeds": " ".join(map(str, table.seeds)),
            "applicable": not each.members
            or any(member.record.status != "not applicable" for member in each.members),
        }  # fmt: skip
        per_dataset = []
        for dataset in table.datasets:
            mine = [member for member in each.members if member.dataset == dataset]
            known = [member for member in each.every if member.dataset == dataset]
            row = {**shared, "dataset": dataset, "averaged": dataset in table.averaged}
            row |= _of_dataset(mine, table.seeds, table.evaluations)
            refused = bool(mine) and all(m.record.status == "not applicable" for m in mine)
            row["applicable"] = shared["applicable"] and not refused
            per_dataset.append(row | _counts(mine, known))
        inner = [row for row in per_dataset if row["averaged"]]
        beyond = sum(not row["applicable"] for row in inner) if shared["applicable"] else 0
        average = {**shared, "dataset": "average", "refused": beyond}
        average |= _average(inner, each.members, table.evaluations)
        result += [average | _counts(each.members, each.every) | _parameters(inner), *per_dataset]
    return result


def _values(row: Row) -> dict[str, Any]:
    """The hyperparameters that are the same in all runs of a row."""
    every = [each.record.run.get("hyperparameters") or {} for each in row.every]
    first = every[0] if every else {}
    return {n: v for n, v in first.items() if all(o.get(n) == v for o in every)} | {**row.given}


def _together(entries: list[Entry]) -> list[Entry]:
    """Of a row's records those that belong together, one a dataset and seed, oldest first."""
    entries = _newest(entries, lambda each: "", lambda each: each.version)
    entries = _newest(entries, lambda each: each.dataset, lambda each: each.content)
    return _newest(entries, lambda each: each.cell, lambda each: each.record.key)


def _newest(
    entries: Iterable[Entry], group: Callable[[Entry], Hashable], of: Callable[[Entry], str]
) -> list[Entry]:
    """Those with the same value as the newest (last) one of their group."""
    entries = list(entries)
    last = {group(each): of(each) for each in entries}
    return [each for each in entries if of(each) == last[group(each)]]


def _of_dataset(
    entries: Sequence[Entry], seeds: Sequence[int], evaluations: Sequence[str]
) -> dict[str, Any]:
    """A dataset's row: scores if all seeds are there, else what is finished of them."""
    scores = {each.seed: each.scores for each in entries if each.counts}
    missing = [seed for seed in seeds if seed not in scores]
    columns = {name: [s[name] for _, s in sorted(scores.items()) if name in s]
               for name in evaluations}  # fmt: skip
    row: dict[str, Any] = {"runs": len(scores), "expected": len(seeds), "missing": missing}
    if missing:
        values = _statistics(columns)
        finished = {n: v for n, v in values.items() if n != "n" and not n.endswith("_std")}
        return row | dict.fromkeys(values) | {f"finished_{n}": v for n, v in finished.items()}
    return row | _statistics({n: v for n, v in columns.items() if len(v) == len(seeds)})


def _average(
    counted: Sequence[Mapping[str, Any]], entries: Sequence[Entry], evaluations: Sequence[str]
) -> dict[str, Any]:
    """The average row: over datasets within each seed, then over seeds, if every run is there."""
    row: dict[str, Any] = {n: sum(each[n] for each in counted) for n in ("runs", "expected")}
    if row["runs"] < row["expected"]:
        alone = counted[0] if len(counted) == 1 else {}
        return row | {name: value for name, value in alone.items() if name.startswith("finished_")}
    names = {each["dataset"] for each in counted}
    seeds = sorted({each.seed for each in entries if each.counts and each.dataset in names})
    columns = {}
    for name in evaluations:
        scores = [[each.scores[name] for each in entries if name in each.scores
                   and each.dataset in names and each.seed == seed] for seed in seeds]  # fmt: skip
        if all(len(of_seed) == len(names) for of_seed in scores):
            columns[name] = [statistics.mean(of_seed) for of_seed in scores]
    row |= _statistics(columns)
    if "hm" in row:
        row["mean_hm"] = statistics.mean(each["hm"] for each in counted)
    return row


def _statistics(columns: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Means and sample standard deviations over seeds, by evaluation."""
    values: dict[str, Any] = {"n": max(map(len, columns.values()), default=0)}
    for name, each in columns.items():
        if each:
            values[name] = statistics.mean(each)
            values[f"{name}_std"] = statistics.stdev(each) if len(each) > 1 else None
    if {"base", "new"} <= values.keys() and len(columns["base"]) == len(columns["new"]):
        values["hm"] = harmonic_mean(values["base"], values["new"])
    return values


def _counts(current: Sequence[Entry], every: Sequence[Entry]) -> dict[str, Any]:
    """What is worth knowing of a row's records beside their scores."""
    costs = [each.record.cost for each in current]
    seconds = [cost["train_seconds"] for cost in costs if cost.get("train_seconds") is not None]
    counts = [c["trainable_parameters"] for c in costs if c.get("trainable_parameters") is not None]
    return {
        "parameters": max(counts, default=None),
        "train_seconds": statistics.mean(seconds) if seconds else None,
        "checks": sum(bool(each.record.checks) for each in current),
        "failed": sum(each.record.status == "failed" for each in current),
        "one_template": sum(bool(each.record.run.get("one_template")) for each in current),
        "stale": len(every) - len(current),
    }


def _parameters(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    counts = [row["parameters"] for row in rows if row["parameters"] is not None]
    return {"parameters": statistics.mean(counts) if counts else None}


@pd.option_context(*PYTHON_TEXTS)
def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run and evaluation; a failed run has one row without an accuracy."""
    result = []
    for each in map(entry, one_record_a_key(records)):
        run, record = each.record.run, each.record
        shared = {
            "key": record.key, "status": record.status, "label": method_label(run),
            "time": record.time,
            "parameters": record.cost.get("trainable_parameters"),
            "train_seconds": record.cost.get("train_seconds"),
            "checks": len(record.checks),
            **{k: run[k] for k in ("method", "task", "dataset", "backbone", "shots", "seed")},
            "settings": json.dumps(run["settings"], sort_keys=True),
            "weights": run["fingerprints"]["weights"], "source": each.source,
            "version": each.version, "content": each.content, "images": each.images,
        }  # fmt: skip
        scores: dict[str, Any] = {**each.scores} or {"": None}
        result += [{**shared, "evaluation": n, "accuracy": value} for n, value in scores.items()]
    return pd.DataFrame(result)
