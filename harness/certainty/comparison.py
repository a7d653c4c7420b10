"""Is one method better than another? Their difference in each table, at every level of a claim.

It never imports torch.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.certainty.intervals import p_value, signed
from harness.certainty.samples import Sampled, common, of_table
from harness.certainty.statistics import LEVELS, SAME, Difference, Sample
from harness.errors import HarnessError, unknown
from harness.records import apart
from harness.records.labels import table_title
from harness.records.record import Record
from harness.records.summary import Table, tables
from harness.records.tables import count, format_table, harmless, wrapped

NAMES = {"hm": "HM of base and new"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two rows of a table.

    pair: their statistics, of the datasets and seeds that both have; adjusted: the p of this pair
    among all `pairs` of the complete rows of the table, if both are complete; one_template: that
    of the two which alone does not average a dataset's several templates, or nothing.
    """

    about: tuple[str, ...]
    first: str
    second: str
    sampled: Sampled
    adjusted: float | None
    pairs: int
    left_out: int
    one_template: str = ""
    stale: int = 0
    not_alike: Sequence[str] = ()

    @property
    def sample(self) -> Sample | None:
        return self.sampled.sample

    def at(self, level: int) -> Difference:
        """The difference at a level of the claim."""
        assert self.sample is not None
        return self.sample.difference(0, 1, level)

    def __str__(self) -> str:
        return text([self])

    __repr__ = __str__

    def apart(self) -> list[str]:
        """What of either is left out or not alike."""
        are = "runs are" if self.stale > 1 else "run is"
        stale = (f"{self.stale} {are} left out, because newer ones have other code, settings, "
                 "templates or images.")  # fmt: skip
        return [stale, *self.not_alike] if self.stale else [*self.not_alike]

    def sentences(self) -> list[str]:
        """The answer in plain words."""
        sample = self.sample
        if sample is None:
            return [f"Nothing can be said: {self.sampled.why}.", *self.apart()]
        found, statistic = self.at(2), NAMES.get(sample.statistic, f"{sample.statistic} accuracy")
        if found.low is None or found.high is None or found.p is None:
            return ["Nothing can be said: all images of some dataset are one unit."]
        points = f"{100 * abs(found.value):.2f} points"
        ahead = self.first if found.value > 0 else self.second
        other = self.second if found.value > 0 else self.first
        low, high = sorted((abs(found.low), abs(found.high)))
        one_seed = len(sample.seeds) < 2
        where = "on other images" if one_seed else "on other images and seeds"
        if not found.low <= 0 <= found.high:
            said = [
                f"{ahead} is better than {other} by {points} of {statistic}; {where} of these "
                f"datasets, by {100 * low:.2f} to {100 * high:.2f} points (95%)."
            ]
        else:
            here = f"{ahead} is ahead by {points} of {statistic}"
            if not found.value:
                here = f"they have the same {statistic}"
            said = [
                f"They are not told apart: {here}, and {where} of these datasets {self.first} may "
                f"be {_from_to(found)} (95%)."
            ]
            if max(high, low) <= SAME:
                said.append("In practice they are the same: the interval lies within half a point.")
            else:
                said.append("That does not mean that they are equal.")
        if self.adjusted is not None and self.pairs > 1:
            beyond = "holds" if self.adjusted <= 0.05 else "does not hold"
            if found.p <= 0.05:
                said.append(
                    f"Among all {self.pairs} pairs of the table this {beyond} "
                    f"(adjusted p {p_value(self.adjusted)})."
                )
        if self.one_template:
            said.append(
                f"{self.one_template} does not average a dataset's several templates, and the "
                "other does."
            )
        said += self.apart()
        if one_seed:
            said.append("One seed says nothing of other seeds: run more, such as --seeds 1-3.")
        return said


def compare(
    records: Iterable[Record], first: str, second: str, task: str | None = None
) -> list[Comparison]:
    """Both rows in every table that has both.

    Raises:
        HarnessError: a row is in no table, or no table has both.
    """
    if first == second:
        raise HarnessError(f"compare needs two methods, not {first!r} twice.")
    every = tables(record for record in records if not record.measures)
    if task is not None:
        chosen = {key: table for key, table in every.items() if key[0] == task}
        if not chosen:
            raise unknown("task", task, {key[0] for key in every})
        every = chosen
    labels = {row.label for table in every.values() for row in table.rows}
    for each in (first, second):
        if each not in labels:
            raise HarnessError(f"no records are of it: {unknown('method', each, labels)}")
    found = [
        _compared(key, table, first, second)
        for key, table in every.items()
        if {first, second} <= {row.label for row in table.rows}
    ]
    if not found:
        raise HarnessError(
            f"no task, backbone and number of shots has records of both {first} and {second}. "
            "Run both with the same --tasks, --backbone and --shots."
        )
    return found


def _compared(key: tuple[str, ...], table: Table, first: str, second: str) -> Comparison:
    shared = common(table, (first, second))
    ordered = sorted(shared.rows, key=lambda row: row.label != first)
    sampled = of_table(Table(ordered, shared.datasets, shared.seeds, shared.averaged,
                             table.evaluations, table.source))  # fmt: skip
    if sampled.sample is not None and len(sampled.sample.labels) < 2:
        reason = "; ".join(f"{name}: {why}" for name, why in (sampled.left_out or {}).items())
        sampled = Sampled(None, reason or "one of them has no finished runs")
    elif not shared.averaged:
        why = "no seed is there of both on every dataset that they share"
        if table.source in shared.datasets:
            why = f"they share {table.source} alone, where they were fitted, and no other dataset"
        sampled = Sampled(None, why)
    whole = of_table(table).sample
    adjusted, number = None, 1
    if whole is not None and {first, second} <= {*whole.labels} and not whole.few_units:
        a, b = sorted((whole.labels.index(first), whole.labels.index(second)))
        pairs = whole.all_pairs
        place = int(np.flatnonzero((pairs.first == a) & (pairs.second == b))[0])
        adjusted, number = float(pairs.adjusted[place]), len(pairs.first)
    finished = sum(each.counts and each.dataset in table.averaged
                   for row in shared.rows for each in row.members)  # fmt: skip
    used = len(shared.averaged) * len(shared.seeds)
    alone = [row.label for row in shared.rows
             if any(each.record.run.get("one_template") for each in row.members)]  # fmt: skip
    return Comparison(
        key, first, second, sampled, adjusted, number, finished - 2 * used,
        alone[0] if len(alone) == 1 else "",
        stale=sum(len(row.every) - len(row.members) for row in shared.rows),
        not_alike=apart.sentences({key: shared}),
    )  # fmt: skip


def _from_to(found: Difference) -> str:
    assert found.low is not None
    assert found.high is not None
    return f"from {_points(found.low)} to {_points(found.high)}"


def _points(value: float) -> str:
    return f"{100 * abs(value):.2f} points {'better' if value > 0 else 'worse'}"


def text(found: Sequence[Comparison], by_dataset: bool = True) -> str:
    """For a reader: a sentence, the levels, and each dataset."""
    return "\n\n".join(_one(each, _title(each, found), by_dataset) for each in found)


def _title(each: Comparison, found: Sequence[Comparison]) -> str:
    """With weights and settings where these tell tables apart."""
    title = table_title(each.about, [other.about for other in found])
    return f"{each.first} - {each.second}: {title}."


def _one(each: Comparison, title: str, by_dataset: bool) -> str:
    lines = [harmless(title), *wrapped(each.sentences())]
    sample = each.sample
    if sample is None:
        return "\n".join(lines)
    units = f" in {count(sample.units)} units" if sample.units < sample.images else ""
    seeds = f"{len(sample.seeds)} seed{'s' * (len(sample.seeds) > 1)}"
    datasets = f"{len(sample.datasets)} dataset{'s' * (len(sample.datasets) > 1)}"
    lines += wrapped([f"{datasets}, {seeds}, {count(sample.images)} images{units}."])
    if not each.sampled.units_known:
        lines += wrapped(["Images are taken as independent: older records do not say which are "
                          "not."])  # fmt: skip
    if each.left_out:
        are = "runs are" if each.left_out > 1 else "run is"
        lines += wrapped([f"{each.left_out} {are} left out: both methods are compared on the same "
                          "datasets, with the same seeds on all of them."])  # fmt: skip
    rows = []
    levels = LEVELS | ({} if len(sample.seeds) > 1 else {2: "other images, this seed"})
    for level, what in levels.items():
        one = each.at(level)
        row = {"what may be another": f"({level}) {what}", "difference": signed(one),
               "p": p_value(one.p)}  # fmt: skip
        if one.low is None:
            alike = "one seed" if len(sample.seeds) < 2 else "the same with every seed"
            why = {1: alike, 2: "all images of some dataset are one unit", 3: (
                "one dataset" if len(sample.datasets) < 2 else "the same on every dataset"
            )}  # fmt: skip
            row["difference"] = f"{100 * one.value:+.2f} (no interval: {why[level]})"
        row["adjusted p"] = p_value(each.adjusted) if level == 2 else ""
        rows.append(row)
    parts = [
        "\n".join(lines),
        format_table(rows, "markdown", "Points of the difference, with 95%."),
    ]
    seeded, images = (_width(each.at(level)) for level in (1, 2))
    if seeded and images and seeded > images:
        parts.append("\n".join(wrapped([
            f"(1) is wider than (2) here, although it allows less: {seeds} say little of the "
            "spread over seeds, so that its t has few degrees of freedom."
        ])))  # fmt: skip
    if len(sample.datasets) > 1:
        worse, same, better = sample.practically(0, 1)
        parts.append("\n".join(wrapped([
            f"On another dataset like these, {each.first} is better by more than half a point with "
            f"{better:.0%}, within half a point with {same:.0%}, worse with {worse:.0%} (Bayesian "
            "signed-rank test)."
        ])))  # fmt: skip
        if by_dataset:
            parts.append(format_table(_datasets(each), "markdown", "By dataset."))
    return "\n\n".join(parts)


def _width(found: Difference) -> float | None:
    return None if found.low is None or found.high is None else found.high - found.low


def _datasets(each: Comparison) -> list[dict[str, str]]:
    sample = each.sample
    assert sample is not None
    rows = []
    for name in sample.datasets:
        alone = sample.of_dataset(name)
        found = alone.difference(0, 1)
        first, second = (f"{100 * value:.2f}" for value in alone.values)
        rows.append({"dataset": name, each.first: first, each.second: second,
                     "difference": signed(found), "p": p_value(found.p)})  # fmt: skip
    return rows


def as_json(found: Sequence[Comparison]) -> str:
    """Raw numbers."""
    return json.dumps([_content(each) for each in found], indent=1, allow_nan=False)


def _content(each: Comparison) -> dict[str, Any]:
    task, backbone, weights, shots, settings = each.about
    about = {"task": task, "backbone": backbone, "weights": weights, "shots": int(shots),
             "settings": json.loads(settings), "first": each.first,
             "second": each.second}  # fmt: skip
    sample = each.sample
    if sample is None:
        return about | {"why": each.sampled.why, "sentences": each.sentences()}
    about |= {
        "statistic": sample.statistic, "datasets": list(sample.datasets),
        "seeds": list(sample.seeds), "images": sample.images, "units": sample.units,
        "units_known": each.sampled.units_known, "adjusted_p": each.adjusted, "pairs": each.pairs,
        "values": [float(value) for value in sample.values],
        "levels": {str(level): _finite(each.at(level)) for level in LEVELS},
        "by_dataset": {name: _finite(sample.of_dataset(name).difference(0, 1))
                       for name in sample.datasets},
        "left_out": each.left_out, "stale": each.stale, "sentences": each.sentences(),
    }  # fmt: skip
    if len(sample.datasets) > 1:
        worse, same, better = sample.practically(0, 1)
        about["other_datasets"] = {"worse": worse, "same": same, "better": better}
    return about


def _finite(found: Difference) -> dict[str, float | None]:
    values = asdict(found)
    return {name: v if v is None or np.isfinite(v) else None for name, v in values.items()}
