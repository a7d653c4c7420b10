"""The looks of a recommendation: what is compared when, and who goes on; no matter who measures.

It is decided before the first look what a look compares: shots, folds and seeds. What the looks
say decides alone which methods sit out and when it ends, which the error rate allows for; see
records.sequential.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.certainty.sequential import Look, best_of, share_of
from harness.certainty.statistics import Sample

FIRST = 4  # methods of the first look
FEW, FACTOR = 4, 4  # shots of the first look, and how they grow
SEEDS = (2, 4)  # two at least: a single fit says nothing of how much fits differ


@dataclass(frozen=True)
class Rung:
    """What a look compares: `shots` images a class, the first `folds` folds and `seeds` seeds;
    most: methods, if not all."""

    shots: int
    folds: int
    seeds: int
    most: int | None = None

    def __str__(self) -> str:
        folds = f"{self.folds} fold{'s' * (self.folds > 1)}"
        return f"{self.shots} shot{'s' * (self.shots > 1)}, {folds}, {self.seeds} seeds"


def rungs(shots: int, folds: int) -> list[Rung]:
    """The looks that there can be: shots grow to `shots`, then folds, then seeds."""
    levels = [FEW]
    while levels[-1] * FACTOR < shots:
        levels.append(levels[-1] * FACTOR)
    levels = [*(each for each in levels if each < shots), shots]
    few, (less, more) = min(2, folds), SEEDS
    found = [Rung(levels[0], 1, less, FIRST), *(Rung(each, few, less) for each in levels)]
    return list(dict.fromkeys([*found, Rung(shots, folds, less), Rung(shots, folds, more)]))


@dataclass(frozen=True, eq=False)
class Taken:
    """A look that was taken.

    left_out: methods that there was no time for; failed: why a method has no result.
    """

    rung: Rung
    look: Look
    left_out: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What became of a look: its sample, or why there is none, as a sentence."""

    sample: Sample | None
    why: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Climb:
    """What all looks came to.

    methods: all candidates, from the cheapest on; beaten: by whom and at which rung, with the shots
    of the last look; ended: why there was no further look, as a sentence; upwards: the rungs that
    were not reached.
    """

    methods: tuple[str, ...]
    share: float
    looks: tuple[Taken, ...]
    beaten: Mapping[str, tuple[str, Rung]]
    ended: str
    upwards: tuple[Rung, ...]

    @property
    def last(self) -> Taken:
        return self.looks[-1]

    @property
    def failed(self) -> dict[str, str]:
        """Why methods have no result."""
        return {name: why for each in self.looks for name, why in each.failed.items()}

    @property
    def left(self) -> list[str]:
        """The methods of the last look that nobody beat, from the cheapest on."""
        return [m for m in self.methods if m in self.last.look.labels and m not in self.beaten]

    @property
    def untried(self) -> list[str]:
        """Candidates that are not compared with the shots of the last look."""
        seen = {*self.last.look.labels, *self.beaten, *self.failed}
        return [each for each in self.methods if each not in seen]

    @property
    def best(self) -> tuple[str, bool]:
        """The method to take, and whether those that are left are practically the same."""
        return best_of(self.last.look, self.left, self.methods)

    @property
    def told_apart(self) -> bool:
        """Whether one method is left of all candidates."""
        return len(self.left) == 1 and not self.untried


def climb(
    ladder: Sequence[Rung],
    methods: Sequence[str],
    measure: Callable[[Rung, Sequence[str], Sequence[str]], Measured],
    share: float | None = None,
) -> Climb | str:
    """Takes one look after the other, until one method is left with the most shots, those that are
    left are practically the same, or a look cannot be taken; the reason, if that is the first one.

    Args:
        methods: candidates, from the cheapest on.
        measure: the sample of a rung: of the methods that must be in it, and of those that may be.
        share: of the error, for a pair at a look; to show what comes of another one.
    """
    share = share or share_of(len(methods), len(ladder))
    found = Climb(tuple(methods), share, (), {}, "", tuple(ladder))
    beaten_below: Sequence[str] = ()
    for place, rung in enumerate(ladder):
        beaten = found.beaten
        if found.looks and rung.shots != found.last.rung.shots:  # with more shots anyone may win
            beaten_below, beaten = list(beaten), {}
        must, may = _who(found, rung, beaten, beaten_below)
        if len(must) + len(may) < 2:
            if rung.shots < ladder[-1].shots:
                continue
            return replace(found, ended="no other method has a result")
        measured = measure(rung, must, may)
        if measured.sample is None:
            return replace(found, ended=measured.why) if found.looks else measured.why
        look = Look(measured.sample, share)
        missing = tuple(m for m in may if m not in look.labels and m not in measured.failed)
        found = replace(
            found,
            looks=(*found.looks, Taken(rung, look, missing, measured.failed)),
            beaten={**beaten, **{label: (by, rung) for label, by in look.beaten.items()}},
            upwards=tuple(ladder[place + 1 :]),
        )
        if rung.shots == ladder[-1].shots and not found.untried:
            if found.told_apart:
                return replace(found, ended="one method is told apart from all others")
            if found.best[1]:
                return replace(found, ended="the methods that are left are practically the same")
    return replace(found, ended="every look is taken")


def _who(
    found: Climb, rung: Rung, beaten: Collection[str], beaten_below: Collection[str]
) -> tuple[list[str], list[str]]:
    """Who must be in the next look, and who may be: the best so far, and then those that come next;
    after them who is new, and at last who was beaten with fewer shots."""
    if not found.looks:
        return list(found.methods[: rung.most]), []
    values = found.last.look.values
    out = {*beaten, *found.failed}
    those = [m for m in found.methods if m not in out]
    must = max(found.left or those, key=lambda m: values.get(m, 0.0))
    order = sorted(those, key=lambda m: (m in beaten_below, -values.get(m, 0.0)))
    return [must], [m for m in order if m != must]
