"""The looks of a recommendation, with samples that are made up; and their simulated error."""

import numpy as np

from harness.bench.sequential import World, rates
from harness.certainty.statistics import Cell, Sample
from harness.runs.ladder import Climb, Measured, Rung, climb, rungs

NAMES = ("cheap", "good", "slow")


def measure_with(accuracy, asked=None, time_for=NAMES):
    """What measures a look: 200 images a fold, named rightly as often as `accuracy` says."""

    def measure(rung, must, may):
        chosen = [*must, *(name for name in may if name in time_for)]
        if asked is not None:
            asked.append((rung, tuple(must), tuple(may)))
        rows = [np.arange(200) < 200 * accuracy(name, rung) for name in chosen]
        hits = np.stack([np.stack([row] * rung.seeds) for row in rows]).astype(float)
        cells = {(f"fold {n}", "test"): Cell.of(hits, np.ones(200)) for n in range(rung.folds)}
        return Measured(Sample(tuple(chosen), tuple(range(rung.seeds)), cells, "test"))

    return measure


def test_shots_grow_first_then_folds_then_seeds():
    assert rungs(16, 5) == [
        Rung(4, 1, 2, 4), Rung(4, 2, 2), Rung(16, 2, 2), Rung(16, 5, 2), Rung(16, 5, 4)
    ]  # fmt: skip
    assert {rung.shots for rung in rungs(3, 2)} == {3}


def test_it_ends_when_one_method_is_told_apart_with_the_most_shots():
    found = climb(rungs(16, 5), NAMES, measure_with(lambda name, _: 0.4 + 0.5 * (name == "good")))
    assert isinstance(found, Climb)
    assert found.told_apart
    assert found.best == ("good", False)
    assert found.last.rung == Rung(16, 2, 2)
    assert {name: by for name, (by, _) in found.beaten.items()} == {"cheap": "good", "slow": "good"}


def test_who_was_beaten_with_fewer_shots_is_compared_again():
    asked = []
    accuracy = {4: {"cheap": 0.9, "good": 0.4, "slow": 0.4}, 16: {"cheap": 0.4, "good": 0.9,
                                                                 "slow": 0.4}}  # fmt: skip
    found = climb(rungs(16, 5), NAMES, measure_with(lambda n, r: accuracy[r.shots][n], asked))
    assert asked[1] == (Rung(16, 2, 2), ("cheap",), ("good", "slow"))
    assert found.best == ("good", False)


def test_practically_equal_methods_end_it_with_the_cheapest():
    ladder = [Rung(4, 1, 2, 4), Rung(4, 5, 4)]
    slightly = {"cheap": 0.5, "good": 0.5, "slow": 0.5}
    found = climb(ladder, NAMES, _large(measure_with(lambda name, _: slightly[name])))
    assert found.best == ("cheap", True)
    assert not found.told_apart


def _large(measure):
    """The same with ten times as many folds of other images."""

    def larger(rung, must, may):
        sample = measure(Rung(rung.shots, 20, rung.seeds), must, may).sample
        return Measured(sample)

    return larger


def test_a_method_without_time_is_untried_and_nothing_is_told_apart():
    quick = measure_with(lambda name, _: 0.4 + 0.5 * (name == "good"), time_for=("cheap", "good"))
    four = ("zero", *NAMES, "last")  # the first look has four, the last one never fits
    found = climb(rungs(16, 5), four, quick)
    assert "last" in found.untried
    assert not found.told_apart
    assert found.ended == "every look is taken"


def test_a_failed_method_is_named_and_left_out():
    plain = measure_with(lambda name, _: 0.4 + 0.5 * (name == "good"), time_for=("cheap", "good"))

    def measure(rung, must, may):
        kept = [name for name in must if name != "slow"]
        return Measured(plain(rung, kept, may).sample, failed={"slow": "it broke"})

    found = climb(rungs(16, 5), NAMES, measure)
    assert found.failed == {"slow": "it broke"}
    assert found.best[0] == "good"


def test_methods_that_are_equal_are_hardly_ever_told_apart():
    found = rates(World(200, 0.3), worlds=40)
    assert found.wrongly <= 0.05
    assert found.uncorrected > found.wrongly


def test_a_method_that_is_far_better_is_found():
    assert rates(World(200, 0.1, better=0.2), worlds=10).found >= 0.9
