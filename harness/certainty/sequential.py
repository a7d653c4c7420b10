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

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import special

from harness.certainty.paired import sign_test
from harness.certainty.statistics import (
    NONE,
    SAME,
    SURE,
    Array,
    Difference,
    Sample,
    between,
    unrounded,
)

MOST_DIFFERING = 10**9  # units, of which no sign test needs more


def share_of(methods: int, looks: int) -> float:
    """The error that one pair may have at one look: of all pairs of the methods that any look could
    compare, and of all looks that there could be."""
    pairs = methods * (methods - 1) // 2
    return (1 - SURE) / (max(1, pairs) * max(1, looks))


@dataclass(frozen=True)
class Spread:
    """How far a value may be from what it is on average, in two independent parts: that of units
    and that of fits, each a variance with its degrees of freedom.

    A value lies within a sum of two Student's t (Behrens and Fisher). With two seeds the part of
    the fits has few degrees, and it may be small by chance: Satterthwaite's single t believes that,
    and told equal methods apart too often in simulated worlds.
    """

    units: float
    unit_degrees: float
    fits: float
    fit_degrees: float

    def beyond(self, value: float) -> float:
        """The two-sided p of a value."""
        if self.units <= 0 and self.fits <= 0:
            return 0.0 if value else 1.0
        if self.units <= 0:
            return 2 * float(special.stdtr(self.fit_degrees, -abs(value) / math.sqrt(self.fits)))
        moved = math.sqrt(self.fits) * _quantiles(self.fit_degrees) if self.fits > 0 else 0 * NODES
        tails = special.stdtr(self.unit_degrees, (moved - abs(value)) / math.sqrt(self.units))
        return min(1.0, 2 * float(tails @ WEIGHTS))

    def half(self, error: float) -> float:
        """Half the width of the interval that has this error."""
        low, high = 0.0, math.sqrt(self.units + self.fits)
        if not high:
            return 0.0
        while self.beyond(high) > error and high < 1:
            high *= 2
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.beyond(middle) > error else (low, middle)
        return high


NODES = np.linspace(-8, 8, 401)  # of a normal distribution, by which Student's is integrated
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()


@functools.lru_cache(maxsize=64)
def _quantiles(degrees: float) -> Array:
    """Of Student's t, where the normal distribution has NODES."""
    below = special.stdtrit(degrees, special.ndtr(-np.abs(NODES)))
    return np.where(NODES < 0, below, -below)


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

    def spread(self, first: str, second: str | None = None) -> Spread:
        """Of a method's accuracy, or of the difference of two."""
        a = self.labels.index(first)
        b = None if second is None else self.labels.index(second)

        def of(part: Array) -> Array:
            return part[..., a, a] if b is None else between(part, a, b)

        sample = self.sample
        by_unit, by_seed, by_both = map(of, sample.products)
        spare = np.array([cell.units - 1 for row in sample.grid for cell in row])
        squares = float((by_unit**2 / np.maximum(spare, 1)).sum())
        units, fits = float(by_unit.sum()), float(by_seed.sum())
        degrees = units**2 / squares if squares else math.inf
        # what varies with both is in both parts and counts once, though not below that of units
        units = max(0.0, units - min(max(0.0, float(by_both)), fits))
        return Spread(units, degrees, fits, len(by_seed) * max(1, len(sample.seeds) - 1))

    def interval(self, label: str) -> Difference:
        """The accuracy of a method, with its 95% interval."""
        found = self._within(self.values[label], self.spread(label), 0.0)
        return replace(found, p=None)

    def ahead(self, first: str, second: str) -> float:
        """By how much the first exceeds the second; rounding alone is nothing."""
        return float(unrounded(self.values[first] - self.values[second]))

    def difference(self, first: str, second: str) -> Difference:
        """By how much the first exceeds the second, with the 95% interval of this pair alone."""
        value = self.ahead(first, second)
        return self._within(value, self.spread(first, second), -1.0)

    def _within(self, value: float, spread: Spread, least: float) -> Difference:
        """With an interval within what is possible; where no image is an exception, as wide as so
        few of them allow."""
        error = math.sqrt(spread.units + spread.fits)
        if self.sample.few_units:
            return Difference(value, error)
        half = spread.half(1 - SURE) if error > NONE else self._unseen(1 - SURE)
        return Difference(value, error, max(least, value - half), min(1.0, value + half),
                          p=spread.beyond(value))  # fmt: skip

    def _unseen(self, error: float) -> float:
        """How much may be different on units like these, where none is here: of all less than
        -log(error) / n (the rule of three, Hanley and Lippman-Hand 1983)."""
        return -math.log(error) / self.sample.units

    def p(self, first: str, second: str) -> float:
        """Two-sided, of no difference: the larger one of the spread's, and of the exact sign test
        over units, without which a dozen images could be told apart by a variance that happens to
        be small."""
        if self.sample.few_units:
            return 1.0
        value = self.ahead(first, second)
        found = self.spread(first, second).beyond(value)
        better, worse = self._differing(first, second)
        if better is None or worse is None:
            return found
        ahead = (better > worse) == (value > 0)
        return max(found, sign_test(better, worse) if ahead else 1.0)

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
        if self.sample.few_units:
            return False
        value = abs(self.ahead(first, second))
        if value + self._unseen(self.share) > SAME:
            return False
        return value + self.spread(first, second).half(self.share) <= SAME

    def needed(self, first: str, second: str) -> float | None:
        """How many times as many images would tell the two apart by both tests of `p`, if they
        differ by as much as they do here; None where that cannot be said."""
        value, spread = self.ahead(first, second), self.spread(first, second)
        if not value or self.sample.few_units:
            return None
        times = max(1.0, (spread.half(self.share) / value) ** 2)
        better, worse = self._differing(first, second)
        if better is None or worse is None:
            return times
        if value * (better - worse) <= 0:
            return None
        fewer, differ = min(better, worse), better + worse
        while 2 * special.bdtr(times * fewer, round(times * differ), 0.5) > self.share:
            times *= 1.05
            if times * differ > MOST_DIFFERING:
                return None
        return times

    def of_images(self, first: str, second: str) -> float | None:
        """The part of the difference's variance that comes from the images, not from the fits."""
        spread = self.spread(first, second)
        whole = spread.units + spread.fits
        return spread.units / whole if whole else None

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
