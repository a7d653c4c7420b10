"""Several looks at growing data: which methods are beaten beyond doubt, at one error rate for all
looks together.

Every pair of methods at every look has an equal share of the 5%, fixed before the first look. By
Bonferroni's inequality no pair is told apart wrongly with 95%, however the looks depend on each
other, whichever methods sit out, and whenever the looks end. This is a spending function that
spends equal parts (Slud and Wei 1982; Lan and DeMets 1983). The step-down max-T of
`statistics.Pairs` would be a little sharper within one look; but which methods are in a look is
decided by the looks before, and then its level is not known.

It never imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import special

from harness.records.paired import sign_test
from harness.records.statistics import SAME, SURE, Array, Difference, Sample


def share_of(methods: int, looks: int) -> float:
    """The error that one pair may have at one look: of all pairs of the methods that any look could
    compare, and of all looks that there could be."""
    pairs = methods * (methods - 1) // 2
    return (1 - SURE) / (max(1, pairs) * max(1, looks))


@dataclass(frozen=True, eq=False)
class Look:
    """What one look says of the methods in it.

    share: of the error, for each pair.
    """

    sample: Sample
    share: float

    @property
    def labels(self) -> tuple[str, ...]:
        return self.sample.labels

    @cached_property
    def values(self) -> Mapping[str, float]:
        """The accuracy of each method, a fraction."""
        return {n: float(v) for n, v in zip(self.labels, self.sample.values, strict=True)}

    @cached_property
    def leader(self) -> str:
        """The method with the highest accuracy; of equal ones the first."""
        return max(self.labels, key=lambda label: self.values[label])

    def interval(self, label: str) -> Difference:
        """The accuracy of a method, with its 95% interval."""
        return self._seen(self.sample.interval(self.labels.index(label)), 0.0)

    def difference(self, first: str, second: str) -> Difference:
        """By how much the first exceeds the second, with the 95% interval of this pair alone."""
        found = self.sample.difference(self.labels.index(first), self.labels.index(second))
        return self._seen(found, -1.0)

    def _seen(self, found: Difference, least: float) -> Difference:
        """The interval within what is possible; where no unit is an exception, as wide as so few
        allow: of n units without one, less than -log(0.05) / n of all are (the rule of three)."""
        if found.low is None or found.high is None:
            return found
        wider = 0.0 if found.error else self._unseen(1 - SURE)
        low, high = max(least, found.low - wider), min(1.0, found.high + wider)
        return replace(found, low=low, high=high)

    def _unseen(self, error: float) -> float:
        """How much may be different on units like these, where none is here (Hanley and
        Lippman-Hand 1983)."""
        return -math.log(error) / self.sample.units

    def p(self, first: str, second: str) -> float:
        """Two-sided, of no difference: the larger one of Student's t over units and seeds, and of
        the exact sign test over units, without which a dozen images could be told apart by a
        variance that happens to be small."""
        found = self.difference(first, second)
        if found.p is None:
            return 1.0
        better, worse = self._differing(first, second)
        if better is None or worse is None:
            return found.p
        ahead = (better > worse) == (found.value > 0)
        return max(found.p, sign_test(better, worse) if ahead else 1.0)

    @cached_property
    def beaten(self) -> Mapping[str, str]:
        """The methods that another one exceeds beyond doubt, and that one: of several the best."""
        order = sorted(self.labels, key=lambda label: -self.values[label])
        found = {}
        for label in self.labels:
            for other in order[: order.index(label)]:
                if self.values[other] > self.values[label] and self.p(other, label) <= self.share:
                    found[label] = other
                    break
        return found

    def alike(self, first: str, second: str) -> bool:
        """Whether they differ by at most half a point beyond doubt."""
        found = self.difference(first, second)
        if found.error is None or found.degrees is None:
            return False
        half = found.error * float(special.stdtrit(found.degrees, 1 - self.share / 2))
        return abs(found.value) + max(half, self._unseen(self.share)) <= SAME

    def needed(self, first: str, second: str) -> float | None:
        """How many times as many images would tell the two apart, if they differ by as much as they
        do here; None where that cannot be said."""
        found = self.difference(first, second)
        if not found.error or not found.value or found.degrees is None:
            return None
        limit = float(special.stdtrit(found.degrees, 1 - self.share / 2))
        return max(1.0, (limit * found.error / found.value) ** 2)

    def of_images(self, first: str, second: str) -> float | None:
        """The part of the difference's variance that comes from the images, not from the fits."""
        a, b = self.labels.index(first), self.labels.index(second)
        by_unit, by_seed, _ = (
            float((part[..., a, a] + part[..., b, b] - 2 * part[..., a, b]).sum())
            for part in self.sample.products
        )
        return by_unit / (by_unit + by_seed) if by_unit + by_seed > 0 else None

    def _differing(self, first: str, second: str) -> tuple[int | None, int | None]:
        """On how many units the first is right more often, and on how many the second; None where
        there are too many to be kept."""
        a, b = self.labels.index(first), self.labels.index(second)
        signs: list[Array] = []
        for row in self.sample.grid:
            for cell in row:
                if cell.hits is None:
                    return None, None
                signs.append(np.sign(cell.hits[a].sum(0) - cell.hits[b].sum(0)))
        every = np.concatenate(signs)
        return int((every > 0).sum()), int((every < 0).sum())


def best_of(look: Look, among: Sequence[str], cost: Sequence[str]) -> tuple[str, bool]:
    """The method to take of those that are left, and whether all of them are practically the same,
    so that it is the cheapest one.

    Args:
        cost: the labels from the cheapest on.
    """
    leader = max(among, key=lambda label: look.values[label])
    if len(among) > 1 and all(look.alike(leader, other) for other in among if other != leader):
        return min(among, key=cost.index), True
    return leader, False
