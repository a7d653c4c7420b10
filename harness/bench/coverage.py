"""Do intervals hold what they promise? Worlds are drawn whose truth is known, from real records.

A world has units whose difficulty is drawn from those of the records, and fits whose quality moves
by as much as seeds do in the records; base and new of a fit move together. What its methods name
rightly is then drawn, and what the statistics say of it is compared with the truth.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from scipy import special

from harness.certainty.statistics import SURE, Array, Cell, Sample, between
from harness.records.tables import format_table

TOGETHER = 0.6  # correlation of what a seed does to the evaluations of a fit, about 0.6 squared
NODES = 15  # of the quadrature over seeds


@dataclass(frozen=True)
class Coverage:
    """Shares of worlds, or of a world's pairs, for which a 95% claim holds, or fails.

    two_way, units_alone, seeds_alone: the interval of a pair's difference covers the truth, of the
    protocol, of units without seeds, and of the usual t over seeds; any_pair_wrongly and
    unadjusted: some pair is told apart in the wrong direction, or without a true difference, by
    max-T and by single p; all_ranks: every rank interval holds.
    """

    two_way: float
    units_alone: float
    seeds_alone: float
    any_pair_wrongly: float
    unadjusted: float
    all_ranks: float


@dataclass(frozen=True, eq=False)
class _Population:
    """Of a cell: log-odds of the units [M, U], their sizes [U], and how far a seed moves them, by
    method [M]."""

    units: Array
    sizes: Array
    spread: Array

    def truth(self) -> Array:
        """[M]: expected accuracy over units and seeds (Gauss-Hermite)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        shifts = self.spread[:, None] * nodes  # [M, K]
        right = special.expit(self.units[:, None, :] + shifts[..., None])  # [M, K, U]
        by_shift = (right * self.sizes).sum(-1) / self.sizes.sum()
        return by_shift @ weights / weights.sum()

    def draw(self, generator: np.random.Generator, moved: Array) -> Cell:
        """Units drawn anew, named by fits that `moved` by that many spreads [M, S]."""
        chosen = generator.integers(self.units.shape[1], size=self.units.shape[1])
        odds = self.units[:, None, chosen] + (self.spread[:, None] * moved)[..., None]
        sizes = self.sizes[chosen]
        hits = generator.binomial(sizes.astype(int), special.expit(odds))
        return Cell.of(hits.astype(np.float64), sizes)


def _population(cell: Cell, chosen: Array, equal: bool) -> _Population:
    assert cell.hits is not None
    assert cell.sizes is not None
    hits, seeds = cell.hits[chosen], cell.hits.shape[1]
    share = (hits.sum(1) + 0.5) / (seeds * cell.sizes + 1)  # [M, U]
    odds = special.logit(share)
    spread = special.logit(np.clip(cell.accuracy[chosen], 0.01, 0.99)).std(1, ddof=1)
    if equal:
        odds = np.broadcast_to(odds.mean(0), odds.shape)
        spread = np.full(len(spread), spread.mean())
    return _Population(odds, cell.sizes, spread)


def coverage(
    sample: Sample, worlds: int, methods: int, datasets: int, seed: int, equal: bool = False
) -> Coverage:
    """How often the claims hold in worlds made from a sample.

    Args:
        sample: of several seeds, few units, and base and new.
        methods, datasets: how many of the sample's are in a world.
        equal: all methods have the same truth.
    """
    generator = np.random.default_rng(seed)
    found: list[tuple[float, ...]] = []
    for _ in range(worlds):
        of = generator.choice(len(sample.labels), methods, replace=False)
        names = generator.choice(sample.datasets, datasets, replace=False)
        moved = {}
        for name in names:
            fit = generator.standard_normal((methods, len(sample.seeds)))
            for each in sample.evaluations:
                own = generator.standard_normal(fit.shape)
                moved[name, each] = TOGETHER * fit + np.sqrt(1 - TOGETHER**2) * own
        people = {key: _population(sample.cells[key], of, equal) for key in moved}
        cells = {key: each.draw(generator, moved[key]) for key, each in people.items()}
        accuracy = [[people[d, e].truth() for e in sample.evaluations] for d in names]
        world = Sample(tuple(sample.labels[i] for i in of), sample.seeds, cells, sample.statistic)
        found.append(_claims(world, world.value(np.moveaxis(np.array(accuracy), -1, 0))))
    return Coverage(*(float(value) for value in np.mean(found, axis=0)))


def _claims(world: Sample, truth: Array) -> tuple[float, ...]:
    pairs = world.all_pairs
    true = truth[pairs.first] - truth[pairs.second]
    off = np.abs(pairs.differences - true)
    by_unit, (by_seed, *_) = world.products[0], replace(world, shared_fit=True).products[1:]
    alone = [
        np.sqrt(between(part, pairs.first, pairs.second).sum(0)) for part in (by_unit, by_seed)
    ]
    variance, degrees = np.square(pairs.errors), pairs.degrees
    half = special.stdtrit(degrees, (1 + SURE) / 2)
    usual = special.stdtrit(len(world.seeds) - 1, (1 + SURE) / 2)
    wrong = (np.sign(pairs.differences) != np.sign(true)) | (np.abs(true) < 1e-12)
    ranks = 1 + (truth[None, :] > truth[:, None] + 1e-12).sum(1)
    highest = len(truth) - (truth[None, :] < truth[:, None] - 1e-12).sum(1)
    held = all(
        low <= last and first <= high
        for (low, high), first, last in zip(pairs.ranks(), ranks, highest, strict=True)
    )
    single = 2 * special.stdtr(degrees, -np.abs(pairs.differences) / np.sqrt(variance))
    return (
        float((off <= half * pairs.errors).mean()),
        float((off <= 1.96 * alone[0]).mean()),
        float((off <= usual * alone[1]).mean()),
        float((pairs.told_apart & wrong).any()),
        float(((single <= 1 - SURE) & wrong).any()),
        float(held),
    )


def measured(sample: Sample, worlds: int) -> dict[str, Any]:
    """Worlds with the methods' differences as measured, and worlds without any."""
    methods = min(10, len(sample.labels))
    about = {"worlds": worlds, "methods": methods, "datasets": len(sample.datasets),
             "seeds": len(sample.seeds), "units": sample.units}  # fmt: skip
    found = {
        name: asdict(coverage(sample, worlds, methods, len(sample.datasets), seed=0, equal=equal))
        for name, equal in (("as measured", False), ("no true difference", True))
    }
    return {"about": about, **found}


SAID = {
    "two_way": "95% interval of a difference: units and seeds, as everywhere here",
    "units_alone": "95% interval: units alone",
    "seeds_alone": "95% interval: t over seed averages (the usual mean ± deviation)",
    "any_pair_wrongly": "some pair wrongly told apart: max-T, as everywhere here",
    "unadjusted": "some pair wrongly told apart: single p below 0.05",
    "all_ranks": "all places hold",
}


def table(found: Mapping[str, Any]) -> str:
    """As Markdown."""
    about = found["about"]
    kinds = [kind for kind in found if kind != "about"]
    rows = [
        {"share of worlds or pairs": SAID[field.name]}
        | {kind: f"{100 * found[kind][field.name]:.1f}%" for kind in kinds}
        for field in fields(Coverage)
    ]
    caption = (
        f"{about['worlds']} simulated worlds of {about['methods']} methods, {about['datasets']} "
        f"datasets, {about['seeds']} seeds and {about['units']} units, made from records."
    )
    return format_table(rows, "markdown", caption)
