"""How sure a score, a difference and a rank are: from what was predicted of every image.

Claims are of three levels: (1) other seeds, these images; (2) other images and seeds, these
datasets, which is the default; (3) other datasets like these.

M methods, D datasets, E evaluations, S seeds; a cell is a dataset and an evaluation, with N images
in U units, the smallest things that are drawn independently. A statistic is a smooth function of
the cells' accuracies, and its variance that of its linear part (delta method), clustered by units
and by fits at once (Cameron, Gelbach and Miller 2011). Many pairs are compared by the step-down
max-T of Romano and Wolf (2005); ranks by Mogstad, Romano, Shaikh and Wilhelm (2024).

It never imports torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray[Any, Any]

DRAWS, BAYESIAN_DRAWS, SEED = 10_000, 20_000, 0
SURE = 0.95
MOST_UNITS = 2_000  # of a table; above, the normal distribution replaces the bootstrap
NONE = 3e-8  # errors up to this are rounding alone; one image of a million gives 1e-6
SAME = 0.005  # differences up to this are practically none: half a point
LEVELS = {
    1: "other seeds, these images",
    2: "other images and seeds, these datasets",
    3: "other datasets like these",
}


@dataclass(frozen=True, eq=False)
class Cell:
    """What the statistics need of a dataset and an evaluation.

    accuracy [M, S]; images N; units U; by_unit and by_both [M, M]: sums of products of the methods'
    influences, summed over seeds within each unit, and centred over both; hits [M, S, U] and sizes
    [U] of units, unless they are too many to be drawn from.
    """

    accuracy: Array
    images: int
    units: int
    by_unit: Array
    by_both: Array
    hits: Array | None
    sizes: Array | None

    @classmethod
    def of(cls, hits: Array, sizes: Array) -> "Cell":
        """From the numbers of right images in each unit [M, S, U], and of images in it [U]."""
        methods, seeds, units = hits.shape
        images = int(sizes.sum())
        accuracy = hits.sum(-1, dtype=np.float64) / images  # [M, S]
        mean = accuracy.mean(1)  # [M]
        whole = np.zeros((methods, units))
        squares = np.zeros((methods, methods))
        for seed in range(seeds):
            influence = (hits[:, seed] - mean[:, None] * sizes) / (seeds * images)  # [M, U]
            squares += influence @ influence.T
            whole += influence
        by_unit = whole @ whole.T
        by_seed = (accuracy - mean[:, None]) / seeds  # [M, S]: sums over units
        centred = squares - by_unit / seeds - by_seed @ by_seed.T / units
        few = units <= MOST_UNITS
        kept = (hits, sizes) if few else (None, None)
        return cls(accuracy, images, units, by_unit, centred, *kept)


@dataclass(frozen=True)
class Difference:
    """A value, or how much one exceeds another: fractions, with the bounds of its 95% interval.

    p: two-sided, of no difference; adjusted: for all pairs of the table; None where nothing can be
    said.
    """

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    degrees: float | None = None
    p: float | None = None
    adjusted: float | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """Methods that were scored on the same images with the same seeds.

    cells: by dataset and evaluation, of every dataset the same evaluations; statistic: `hm` of the
    averaged base and new, `mean_hm`, or an evaluation, averaged over datasets; shared_fit: one fit
    a seed is scored on all datasets.
    """

    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: Mapping[tuple[str, str], Cell]
    statistic: str
    shared_fit: bool = False

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(dataset for dataset, _ in self.cells))

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Those that the statistic is made of."""
        return ("base", "new") if self.statistic in ("hm", "mean_hm") else (self.statistic,)

    @cached_property
    def grid(self) -> list[list[Cell]]:
        """[D][E]."""
        return [[self.cells[d, e] for e in self.evaluations] for d in self.datasets]

    @property
    def images(self) -> int:
        return sum(cell.images for row in self.grid for cell in row)

    @property
    def units(self) -> int:
        return sum(cell.units for row in self.grid for cell in row)

    @property
    def unseen(self) -> int:
        """Units that stand against an exception in the cell that has the fewest: its own, times the
        cells among which it is averaged."""
        every = [cell.units for row in self.grid for cell in row]
        return len(every) * min(every)

    def of_dataset(self, dataset: str) -> "Sample":
        """The same of one dataset alone."""
        cells = {key: cell for key, cell in self.cells.items() if key[0] == dataset}
        return replace(self, cells=cells)

    def value(self, accuracy: Array) -> Array:
        """The statistic of accuracies [..., D, E]."""
        if self.statistic == "hm":
            return _harmonic(accuracy.mean(-2))
        if self.statistic == "mean_hm":
            return _harmonic(accuracy).mean(-1)
        return accuracy[..., 0].mean(-1)

    @cached_property
    def accuracy(self) -> Array:
        """[M, D, E]: means over seeds."""
        means = [[cell.accuracy.mean(1) for cell in row] for row in self.grid]
        return np.moveaxis(np.array(means), -1, 0)

    @cached_property
    def values(self) -> Array:
        """[M]: the statistic of each method."""
        return self.value(self.accuracy)

    @cached_property
    def slopes(self) -> Array:
        """[M, D, E]: of the statistic in each cell's accuracy."""
        accuracy = self.accuracy
        number = accuracy.shape[1]
        if self.statistic == "hm":
            accuracy = np.broadcast_to(accuracy.mean(1, keepdims=True), accuracy.shape)
        elif self.statistic != "mean_hm":
            return np.full(accuracy.shape, 1 / number)
        total = accuracy.sum(-1, keepdims=True)
        other = accuracy[..., ::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = 2 * other**2 / total**2
        return np.where(total > 0, slope, 0) / number

    @cached_property
    def products(self) -> tuple[Array, Array, Array]:
        """Products of influences [.., M, M]: by units of each cell [D E, ...], by seeds of each fit
        [D or 1, ...], and by both, in all."""
        seeds = len(self.seeds)
        by_unit, by_both = [], np.zeros((len(self.labels),) * 2)
        of_seeds = np.zeros((len(self.datasets), len(self.labels), seeds))
        for d, row in enumerate(self.grid):
            for e, cell in enumerate(row):
                slope = self.slopes[:, d, e]
                outer, factor = np.outer(slope, slope), cell.units / max(1, cell.units - 1)
                by_unit.append(factor * outer * cell.by_unit)
                if seeds > 1:
                    by_both += factor * seeds / (seeds - 1) * outer * cell.by_both
                mean = cell.accuracy.mean(1, keepdims=True)
                of_seeds[d] += slope[:, None] * (cell.accuracy - mean) / seeds
        if self.shared_fit:
            of_seeds = of_seeds.sum(0, keepdims=True)
        factor = seeds / (seeds - 1) if seeds > 1 else 0.0
        by_seed = factor * of_seeds @ np.swapaxes(of_seeds, -1, -2)
        return np.array(by_unit), by_seed, by_both

    @cached_property
    def covariance(self) -> Array:
        """[M, M]: of what a draw of units and of seeds gives, about."""
        by_unit, by_seed, by_both = self.products
        return by_unit.sum(0) + by_seed.sum(0) + by_both

    @property
    def few_units(self) -> bool:
        """Whether some cell is of one unit alone, so that nothing is known of other images."""
        return any(cell.units < 2 for row in self.grid for cell in row)

    def variances(self, of: Callable[[Array], Array], level: int = 2) -> tuple[Array, Array]:
        """Variance and degrees of freedom (Satterthwaite) of what `of` makes of [..., M, M]."""
        by_unit, by_seed, by_both = (of(part) for part in self.products)
        spare = np.array([cell.units - 1 for row in self.grid for cell in row])
        seeds = len(self.seeds) - 1
        if level == 1:
            by_unit, by_both = by_unit * 0, by_both * 0
        units, fits = by_unit.sum(0), by_seed.sum(0)
        variance = np.maximum(units + fits - by_both, np.maximum(units, fits))
        squares = np.tensordot(1 / np.maximum(spare, 1), by_unit**2, 1)
        squares = squares + (by_seed**2).sum(0) / max(seeds, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            degrees = np.where(squares > 0, (units + fits) ** 2 / squares, np.inf)
        return variance, degrees

    def interval(self, method: int, level: int = 2) -> Difference:
        """A method's value, with its interval."""
        value = float(self.values[method])
        if not self._known(level):
            return Difference(value)
        if level == 3:
            return _student(value, self._by_dataset[method] + value)
        variance, degrees = self.variances(lambda part: part[..., method, method], level)
        found = self._t(value, float(variance), float(degrees), level, [method])
        if found.low is None or found.high is None:
            return found
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high), p=None)

    def difference(self, first: int, second: int, level: int = 2) -> Difference:
        """By how much the first method exceeds the second."""
        value = float(unrounded(self.values[first] - self.values[second]))
        if not self._known(level):
            return Difference(value)
        if level == 3:
            each = self._by_dataset
            return _student(value, each[first] - each[second] + value)
        variance, degrees = self.variances(lambda part: between(part, first, second), level)
        found = self._t(value, float(variance), float(degrees), level, [first, second])
        if found.low is None or found.high is None:
            return found
        return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))

    def _t(
        self, value: float, variance: float, degrees: float, level: int, methods: list[int]
    ) -> Difference:
        """Student's t; where no unit is an exception, as wide as so few units allow: of all units
        less than -log(1 - SURE) / U may be exceptions (the rule of three, Hanley and Lippman-Hand
        1983). Where seeds came to the same sum by other images, nothing is known of other seeds."""
        found = _t(value, variance, degrees)
        if (found.error or 0.0) > NONE or level == 3:
            return found
        if level == 1:
            both, (first, last) = self.products[2], (methods[0], methods[-1])
            part = both[first, first] if first == last else between(both, first, last)
            return Difference(value) if part > NONE**2 else found
        unseen = self.unseen / self.steepest[methods].max()
        half, p = -math.log(1 - SURE) / unseen, math.exp(-unseen * abs(value))
        return replace(found, low=value - half, high=value + half, p=p)

    @cached_property
    def steepest(self) -> Array:
        """[M]: how much more than in a mean of all cells an exception in one of them may count; the
        HM of base and new where one of them is 0 moves with the other alone."""
        cells = self.slopes.shape[1] * self.slopes.shape[2]
        return np.maximum(1.0, cells * self.slopes.max((1, 2)))

    def _known(self, level: int) -> bool:
        """Whether there is anything to tell other seeds, images or datasets from."""
        if level == 1:
            return len(self.seeds) > 1
        return len(self.datasets) > 1 if level == 3 else not self.few_units

    @cached_property
    def _by_dataset(self) -> Array:
        """[M, D]: the linear part of the statistic, whose mean is 0."""
        centred = self.accuracy - self.accuracy.mean(1, keepdims=True)
        mine = self.slopes.mean(1, keepdims=True) if self.statistic == "hm" else self.slopes
        if self.statistic == "mean_hm":
            each = _harmonic(self.accuracy)
            return each - each.mean(1, keepdims=True)
        return len(self.datasets) * (mine * centred).sum(-1)

    def practically(self, first: int, second: int) -> tuple[float, float, float]:
        """Probabilities that the first is worse, the same within half a point, or better on other
        datasets: Bayesian signed-rank test (Benavoli et al. 2017), a Dirichlet process with one
        pseudo-observation at 0."""
        value = self.values[first] - self.values[second]
        each = np.append(0.0, self._by_dataset[first] - self._by_dataset[second] + value)
        means = (each[:, None] + each) / 2
        weights = np.random.default_rng(SEED).dirichlet(np.ones(len(each)), BAYESIAN_DRAWS)
        regions = np.stack([means < -SAME, np.abs(means) <= SAME, means > SAME])
        masses = np.einsum("bi,rij,bj->br", weights, regions.astype(float), weights, optimize=True)
        counts = np.bincount(masses.argmax(1), minlength=3) / BAYESIAN_DRAWS
        return float(counts[0]), float(counts[1]), float(counts[2])

    @cached_property
    def draws(self) -> Array:
        """What `draw` gives, made once."""
        return self.draw()

    def draw(self) -> Array:
        """[B, M]: the statistic on drawn units and seeds; above MOST_UNITS units, of a normal
        distribution with the same covariance."""
        generator = np.random.default_rng(SEED)
        if self.units > MOST_UNITS:
            root = _root(self.covariance)
            return generator.standard_normal((DRAWS, len(self.labels))) @ root.T
        seeds, number = len(self.seeds), len(self.labels)
        accuracy = np.empty((DRAWS, number, len(self.datasets), len(self.evaluations)), np.float32)
        weights = _weights(generator, seeds)
        for d, row in enumerate(self.grid):
            if d and not self.shared_fit:
                weights = _weights(generator, seeds)
            for e, cell in enumerate(row):
                assert cell.hits is not None
                assert cell.sizes is not None
                units = _weights(generator, cell.units)  # [B, U]
                hits = cell.hits.reshape(-1, cell.units).astype(np.float32)
                sums = (units @ hits.T).reshape(DRAWS, number, seeds)
                images = (units @ cell.sizes.astype(np.float32)) * weights.sum(1)
                accuracy[..., d, e] = np.einsum("bms,bs->bm", sums, weights) / images[:, None]
        return self.value(accuracy)

    @cached_property
    def all_pairs(self) -> "Pairs":
        """Every pair of methods."""
        upper = np.triu_indices(len(self.labels), 1)
        return Pairs(self, upper[0], upper[1])

    def against(self, method: int) -> "Pairs":
        """One method and every other."""
        others = np.array([i for i in range(len(self.labels)) if i != method], dtype=int)
        return Pairs(self, np.full(len(others), method), others)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Several pairs of methods, compared at once: with 95% no pair that does not differ is told
    apart (step-down max-T).

    first, second [K]: places of the methods.
    """

    sample: Sample
    first: Array
    second: Array

    @cached_property
    def differences(self) -> Array:
        return unrounded(self.sample.values[self.first] - self.sample.values[self.second])

    @cached_property
    def errors(self) -> Array:
        return np.sqrt(self._variances[0])

    @property
    def degrees(self) -> Array:
        return self._variances[1]

    @cached_property
    def _variances(self) -> tuple[Array, Array]:
        return self.sample.variances(lambda part: between(part, self.first, self.second))

    @cached_property
    def z(self) -> Array:
        """[K]: t's tail stretched to the normal's."""
        none = self.errors <= NONE  # no unit is an exception; see Sample._t
        far = np.abs(self.differences)
        t = np.where(none, 0.0, far / np.where(none, 1.0, self.errors))
        tail = special.stdtr(self._variances[1], -t)
        steepest = self.sample.steepest
        unseen = self.sample.unseen / np.maximum(steepest[self.first], steepest[self.second])
        tail = np.where(none, np.exp(-unseen * far) / 2, tail)
        return np.where(tail > 0, -special.ndtri(np.maximum(tail, 1e-300)), np.inf)

    def _drawn(self) -> Array:
        """[B, K]: the same of the draws; too large to be kept."""
        draws = self.sample.draws.astype(np.float32)
        drawn = draws[:, self.first] - draws[:, self.second]
        drawn -= drawn.mean(0)
        spread = drawn.std(0, ddof=1)
        return np.abs(drawn) / np.where((spread > 0) & (self.errors > NONE), spread, np.inf)

    @property
    def adjusted(self) -> Array:
        """[K]: p of each pair, adjusted for all of them."""
        return self._compared[0]

    @property
    def critical(self) -> float:
        """What |z| must exceed for the first pair to be told apart."""
        return self._compared[1]

    @cached_property
    def _compared(self) -> tuple[Array, float]:
        """`adjusted` and `critical`, from one set of draws."""
        if not len(self.first):
            return np.zeros(0), float("nan")
        order = np.argsort(self.z, kind="stable")  # from the weakest
        highest = self._drawn()[:, order]
        highest = np.maximum.accumulate(highest, axis=1, out=highest)
        critical = float(np.quantile(highest[:, -1], SURE))
        critical = max(critical, float(special.ndtri((1 + SURE) / 2)))
        above = (highest >= self.z[order]).sum(0)
        p = (above + 1) / (len(highest) + 1)
        # few seeds, or no exception at all, leave the draws nothing to tell of: no pair is surer
        # among others than alone
        several = np.where(self.errors <= NONE, len(order), 1)
        alone = 2 * several * special.ndtr(-self.z)
        p = np.maximum(p, np.minimum(1.0, alone[order]))
        p = np.maximum.accumulate(p[::-1])[::-1]
        result = np.empty(len(order))
        result[order] = p
        return result, critical

    @property
    def told_apart(self) -> Array:
        """[K]: whether they differ beyond doubt."""
        return self.adjusted <= 1 - SURE

    @property
    def needed(self) -> float:
        """The difference at which a typical pair is told apart: of each pair that of t whose tail
        is the critical value's."""
        times = -special.stdtrit(self.degrees, special.ndtr(-self.critical))
        needed = float(np.median(np.where(self.errors > NONE, times * self.errors, 0.0)))
        if needed:
            return needed
        steepest = float(self.sample.steepest.max())
        return -math.log((1 - SURE) / len(self.first)) * steepest / self.sample.unseen

    def beats(self) -> Array:
        """[M, M]: whether a method exceeds another beyond doubt."""
        number = len(self.sample.labels)
        found = np.zeros((number, number), dtype=bool)
        sure, ahead = self.told_apart, self.differences > 0
        found[self.first[sure & ahead], self.second[sure & ahead]] = True
        found[self.second[sure & ~ahead], self.first[sure & ~ahead]] = True
        return found

    def ranks(self) -> list[tuple[int, int]]:
        """Between which ranks each method lies; of all pairs, all at once hold with 95%."""
        beats = self.beats()
        number = len(beats)
        return [(1 + int(beats[:, m].sum()), number - int(beats[m].sum())) for m in range(number)]


def between(products: Array, first: Any, second: Any) -> Array:
    """Of products of influences [..., M, M] that of the differences of two methods, or of pairs:
    (a - b)^2 = a^2 + b^2 - 2ab."""
    return (
        products[..., first, first]
        + products[..., second, second]
        - 2 * products[..., first, second]
    )


def _harmonic(accuracy: Array) -> Array:
    """Of the two last [..., 2]."""
    total = accuracy.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, 2 * accuracy.prod(-1) / total, 0.0)


def unrounded(differences: Any) -> Array:
    """Those that are rounding alone are none."""
    return np.where(np.abs(differences) <= NONE, 0.0, differences)


def _t(value: float, variance: float, degrees: float) -> Difference:
    """Student's t."""
    error = float(np.sqrt(max(variance, 0.0)))
    half = error * float(special.stdtrit(degrees, (1 + SURE) / 2)) if error else 0.0
    if error:
        p = 2 * float(special.stdtr(degrees, -abs(value) / error))
    else:
        p = 1.0 if value == 0 else 0.0
    return Difference(value, error, value - half, value + half, degrees, p)


def _student(value: float, each: Sequence[float] | Array) -> Difference:
    """One value a dataset; where they are all the same, nothing is known of others."""
    variance = float(np.var(each, ddof=1)) / len(each)
    if variance <= NONE**2:
        return Difference(value)
    return _t(value, variance, len(each) - 1)


def _weights(generator: np.random.Generator, number: int) -> Array:
    """[B, number]: how often each is among number - 1 draws (Rao and Wu 1988)."""
    if number < 2:
        return np.ones((DRAWS, number), np.float32)
    shares = np.full(number, 1 / number)
    return generator.multinomial(number - 1, shares, DRAWS).astype(np.float32)


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))
