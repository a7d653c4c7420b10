"""Does `recommend` hold its error rate? Worlds are drawn whose best method is known.

A world has images of differing difficulty, each of which suits some methods more than others, and
fits whose quality a seed moves. What the methods name rightly is drawn for every fold and seed, and
the looks are taken as `recommend` takes them: the same ladder, the same decisions.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy import special

from harness.certainty.statistics import SAME, SURE, Array, Cell, Sample
from harness.records.tables import format_table
from harness.runs.ladder import SEEDS, Climb, Measured, Rung, climb, rungs

METHODS, FOLDS, SHOTS = 7, 5, 16
DIFFICULTY, TASTE = 2.0, 1.0  # log-odds: spread of images, and of images for one method
NODES = 40  # of the quadrature


@dataclass(frozen=True)
class World:
    """images: training images, all of them in some fold; spread: log-odds by which a seed moves a
    fit; better: by how much the accuracy of the best method exceeds the others', a fraction;
    a_unit: images that are not independent."""

    images: int
    spread: float
    better: float = 0.0
    a_unit: int = 1
    methods: int = METHODS
    accuracy: float = 0.75


@dataclass(frozen=True)
class Rates:
    """Shares of worlds.

    wrongly: at any look a method is called beaten that is not worse, or methods that differ are
    called practically the same; uncorrected: the same if every pair had the whole 5% at every look;
    found: the best one is told apart from all others; undecided: none is.
    """

    wrongly: float
    uncorrected: float
    found: float
    undecided: float


def rates(world: World, worlds: int, seed: int = 0) -> Rates:
    """How the looks end in many worlds of one kind."""
    generator = np.random.default_rng(seed)
    ladder = rungs(SHOTS, FOLDS)
    names = [f"method {number}" for number in range(world.methods)]
    found = []
    for _ in range(worlds):
        sample = _sampler(world, names, generator)
        mine = climb(ladder, names, sample)
        naive = climb(ladder, names, sample, share=1 - SURE)
        assert isinstance(mine, Climb)
        assert isinstance(naive, Climb)
        right = mine.told_apart and mine.left == names[-1:]
        found.append((_wrong(mine, world, names), _wrong(naive, world, names),
                      right, not mine.told_apart))  # fmt: skip
    return Rates(*(float(value) for value in np.mean(found, axis=0)))


def _wrong(found: Climb, world: World, names: Sequence[str]) -> bool:
    """Whether some look claims what is not true."""
    best = names[-1] if world.better else None
    beaten = [pair for taken in found.looks for pair in taken.look.beaten.items()]
    if any(by != best for _, by in beaten):
        return True
    return world.better > SAME and found.best[1] and best in found.left


def _sampler(
    world: World, names: Sequence[str], generator: np.random.Generator
) -> Callable[[Rung, Sequence[str], Sequence[str]], Measured]:
    """What measures a rung in one world: looks share images and fits."""
    units = world.images // world.a_unit
    shape = (len(names), units)
    odds = generator.normal(0, DIFFICULTY, units) + generator.normal(0, TASTE, shape)
    truth = np.full(len(names), world.accuracy)
    truth[-1] += world.better
    odds += np.array([_level(each, world.spread) for each in truth])[:, None]
    fold_of = np.arange(units) % FOLDS
    hits: dict[int, Array] = {}

    def measure(rung: Rung, must: Sequence[str], may: Sequence[str]) -> Measured:
        if rung.shots not in hits:
            moved = generator.normal(0, world.spread, (len(names), max(SEEDS), FOLDS))
            right = special.expit(odds[:, None] + moved[:, :, fold_of])  # [M, S, U]
            hits[rung.shots] = generator.binomial(world.a_unit, right).astype(np.float64)
        chosen = [*must, *may]
        rows = [names.index(name) for name in chosen]
        cells = {}
        for fold in range(rung.folds):
            inside = hits[rung.shots][rows, : rung.seeds][..., fold_of == fold]
            sizes = np.full(inside.shape[-1], float(world.a_unit))
            cells[f"fold {fold}", "test"] = Cell.of(inside, sizes)
        seeds = tuple(range(1, rung.seeds + 1))
        return Measured(Sample(tuple(chosen), seeds, cells, "test"))

    return measure


@functools.cache
def _level(accuracy: float, spread: float) -> float:
    """The log-odds of the middle image at which a method has this accuracy on average."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    scale = np.sqrt(DIFFICULTY**2 + TASTE**2 + spread**2)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        value = special.expit(middle + scale * nodes) @ weights / weights.sum()
        low, high = (middle, high) if value < accuracy else (low, middle)
    return low


EQUAL = (
    World(40, 0.1), World(100, 0.0), World(100, 0.1), World(100, 1.0), World(400, 0.1),
    World(400, 0.3), World(2000, 0.1), World(2000, 0.3), World(400, 0.1, a_unit=8),
    World(400, 0.1, methods=2), World(400, 0.1, accuracy=0.97),
)  # fmt: skip
DIFFERENT = (
    World(100, 0.1, 0.1), World(100, 0.1, 0.2), World(400, 0.1, 0.05), World(400, 0.1, 0.1),
    World(2000, 0.1, 0.02), World(2000, 0.1, 0.05), World(2000, 0.3, 0.05),
)  # fmt: skip


def measured(worlds: int) -> dict[str, Any]:
    """Worlds in which no method is better, and worlds in which one is."""
    about = {"worlds": worlds, "looks": len(rungs(SHOTS, FOLDS)), "folds": FOLDS}
    rows = [asdict(world) | asdict(rates(world, worlds)) for world in (*EQUAL, *DIFFERENT)]
    return {"about": about, "rows": rows}


def table(found: Mapping[str, Any]) -> str:
    """As Markdown."""
    rows = [
        {
            "methods": str(row["methods"]),
            "accuracy": f"{100 * row['accuracy']:.0f}%",
            "images": f"{row['images']:,}",
            "units": f"{row['images'] // row['a_unit']:,}",
            "spread of fits": f"{row['spread']:g}",
            "one is better by": f"{100 * row['better']:.0f} points" if row["better"] else "none",
        }
        | {each.name: f"{100 * row[each.name]:.1f}%" for each in fields(Rates)}
        for row in found["rows"]
    ]
    about = found["about"]
    caption = (
        f"{about['worlds']} simulated worlds a row, up to {about['looks']} looks at "
        f"{about['folds']} folds.\n"
        "wrongly: at some look a method is called beaten that is not worse (5% is promised).\n"
        "uncorrected: the same, if every pair had 5% at every look.\n"
        "found: the best one is told apart from all others; undecided: none is.\n"
        "spread of fits: log-odds by which a seed moves a fit; 0.1 is two points at 75%."
    )
    return format_table(rows, "markdown", caption)
