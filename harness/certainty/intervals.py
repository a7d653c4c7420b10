"""What the tables say of certainty: intervals, ranks, and which methods are not told apart.

It never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from harness.certainty.samples import INCOMPLETE, Sampled, of_table
from harness.certainty.statistics import LEVELS, Difference, Pairs, Sample
from harness.errors import HarnessError, unknown
from harness.records.summary import Table
from harness.records.tables import count

ZERO_SHOT = "zero_shot"
PLACE = "place:"  # begins the sentence on a column that LaTeX leaves out


@dataclass(frozen=True, eq=False)
class Certainty:
    """The statistics of one table, or why there are none.

    against: a row that all others are compared with, instead of each with each.
    """

    sampled: Sampled
    against: str | None = None

    @classmethod
    def of(cls, table: Table, labels: Sequence[str], against: str | None = None) -> "Certainty":
        """Of the rows with some labels.

        Raises:
            HarnessError: there is no row to compare with, or it has no interval.
        """
        sampled = of_table(table, labels)
        if against is not None:
            there = sampled.sample.labels if sampled.sample else ()
            if against not in there:
                reason = sampled.why or (sampled.left_out or {}).get(against)
                if reason and against in labels:
                    raise HarnessError(f"--against {against}: it has no interval: {reason}.")
                raise HarnessError(f"--against: {unknown('row', against, there)}")
        return cls(sampled, against)

    @property
    def sample(self) -> Sample | None:
        return self.sampled.sample

    @cached_property
    def pairs(self) -> Pairs | None:
        """All pairs, or those with one method; nothing if units are too few or methods one."""
        sample = self.sample
        if sample is None or len(sample.labels) < 2 or sample.few_units:
            return None
        if self.against is not None:
            return sample.against(sample.labels.index(self.against))
        return sample.all_pairs

    @cached_property
    def ranks(self) -> Mapping[str, tuple[int, int]]:
        """By label; of all pairs alone."""
        if self.sample is None or self.pairs is None or self.against is not None:
            return {}
        return dict(zip(self.sample.labels, self.pairs.ranks(), strict=True))

    def interval(self, label: str, dataset: str = "average") -> Difference | None:
        """A row's value with its interval; of one dataset or of the average."""
        sample = self.sample
        if sample is None or label not in sample.labels:
            return None
        if dataset != "average":
            sample = self._by_dataset.get(dataset)
        return None if sample is None else sample.interval(sample.labels.index(label))

    def has(self, dataset: str) -> bool:
        """Whether there are intervals of a dataset, or of the average."""
        return self.sample is not None and dataset in ("average", *self._by_dataset)

    @cached_property
    def _by_dataset(self) -> Mapping[str, Sample]:
        """The statistics of each dataset alone, which every row is asked for."""
        sample = self.sample
        return {name: sample.of_dataset(name) for name in sample.datasets} if sample else {}

    def of_dataset(self, dataset: str) -> "Certainty":
        """The same of one dataset alone."""
        if dataset not in self._by_dataset:
            return Certainty(Sampled(None, f"nothing is known of {dataset} alone"))
        return Certainty(replace(self.sampled, sample=self._by_dataset[dataset]))

    def compared(self, label: str) -> Difference | None:
        """By how much a row exceeds the one that all are compared with."""
        if self.sample is None or self.pairs is None or self.against in (None, label):
            return None
        labels = self.sample.labels
        if label not in labels:
            return None
        mine, other = labels.index(label), labels.index(self.against)
        place = list(self.pairs.second).index(mine)
        found = self.sample.difference(mine, other)
        return replace(found, adjusted=float(self.pairs.adjusted[place]))

    def like_the_best(self, statistic: str | None = None) -> set[str]:
        """The best row and those that are not told apart from it, by the table's statistic or by
        one of its evaluations."""
        sample = self.sample
        if sample is None or sample.few_units:
            return set()
        if statistic not in (None, sample.statistic):
            if statistic not in sample.evaluations:
                return set()
            sample = replace(sample, statistic=statistic, cells={
                key: cell for key, cell in sample.cells.items() if key[1] == statistic
            })  # fmt: skip
        best = int(sample.values.argmax())
        if len(sample.labels) < 2:
            return {sample.labels[best]}
        told_apart = sample.all_pairs.beats()[best]
        return {label for label, apart in zip(sample.labels, told_apart, strict=True) if not apart}

    def notes(self, dataset: str = "average") -> list[str]:
        """Sentences for the caption of a table."""
        sample = self.sample
        left_out = self.sampled.left_out or {}
        without = [f"{label}: {why}" for label, why in left_out.items() if why != INCOMPLETE]
        lines = [f"No interval: {'; '.join(without)}."] if without else []
        if sample is None:
            return lines or [f"No intervals: {self.sampled.why}."]
        if not self.has(dataset):
            return [f"No intervals: {dataset} is not part of the average."]
        if dataset != "average":
            sample = self._by_dataset[dataset]
        level = (
            LEVELS[2] if len(sample.seeds) > 1 else "other images; one seed says nothing of seeds"
        )
        units = f" in {count(sample.units)} units" if sample.units < sample.images else ""
        about = f"95%: interval for {level} ({count(sample.images)} images{units})."
        if sample.few_units:
            return [*lines, "No intervals: all images of some dataset are one unit."]
        if not self.sampled.units_known:
            about += " Images are taken as independent: older records do not say which are not."
        return [about, *lines]

    def comparisons(self) -> list[str]:
        """Sentences on all pairs of the table."""
        sample, pairs = self.sample, self.pairs
        if sample is None or pairs is None:
            return []
        told, number = int(pairs.told_apart.sum()), len(pairs.first)
        needs = f"a typical pair needs {100 * pairs.needed:.1f} points"
        if self.against is not None:
            return [f"{told} of {number} are told apart from {self.against}, with 95% for all at "
                    f"once; {needs}."]  # fmt: skip
        part = f" of the {len(sample.labels)} rows with an interval" * bool(self.sampled.left_out)
        said = [
            f"{PLACE} where a method may stand{' among those' if part else ''}; all hold at once "
            "with 95%.",
            f"{told} of {number} pairs{part} are told apart, with 95% for all at once; {needs}.",
        ]
        best = sample.labels[int(sample.values.argmax())]
        alike = [each for each in sample.labels if each in self.like_the_best() - {best}]
        if alike:
            said.append(f"Not told apart from the best{part}, {best}: {', '.join(alike)}.")
        else:
            said.append(
                f"The best{part}, {best}, is told apart from all others{' of them' * bool(part)}."
            )
        if ZERO_SHOT in sample.labels:
            frozen = sample.labels.index(ZERO_SHOT)
            below = pairs.beats()[frozen]
            names = [each for each, worse in zip(sample.labels, below, strict=True) if worse]
            said += (
                [f"Below zero-shot, and told apart from it: {', '.join(names)}."] if names else []
            )
        return said

    def as_json(self) -> dict[str, Any]:
        """Raw numbers."""
        sample, pairs = self.sample, self.pairs
        if sample is None:
            return {"intervals": None, "why": self.sampled.why}
        content: dict[str, Any] = {
            "level": LEVELS[2] if len(sample.seeds) > 1 else "other images, these seeds",
            "statistic": sample.statistic, "images": sample.images, "units": sample.units,
            "units_known": self.sampled.units_known, "seeds": list(sample.seeds),
            "without_interval": dict(self.sampled.left_out or {}),
        }  # fmt: skip
        if pairs is not None:
            content |= {
                "critical_z": pairs.critical, "needed": pairs.needed,
                "pairs": [
                    {
                        "first": sample.labels[a], "second": sample.labels[b],
                        "difference": float(difference), "error": float(error),
                        "adjusted_p": float(p), "told_apart": bool(apart),
                    }
                    for a, b, difference, error, p, apart in zip(
                        pairs.first, pairs.second, pairs.differences, pairs.errors,
                        pairs.adjusted, pairs.told_apart, strict=True,
                    )
                ],
            }  # fmt: skip
        return content


def shown(found: Difference | None) -> str:
    """An interval in percent, without its value."""
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:.1f}-{100 * found.high:.1f}"


def signed(found: Difference | None) -> str:
    """A difference in points, with its interval."""
    if found is None:
        return ""
    text = f"{100 * found.value:+.2f}"
    if found.low is not None and found.high is not None:
        text += f" ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    return text


def p_value(p: float | None) -> str:
    """Four digits at most, and more where they would not tell on which side of 0.05 it is."""
    if p is None:
        return ""
    if p < 0.0001:
        return "< 0.0001"
    if p < 0.01:
        return f"{p:.2g}"
    if not 0.045 <= p < 0.055:
        return f"{p:.2f}"
    return f"{p:.4f}" if abs(p - 0.05) > 5e-5 else f"{p:.7f}"
