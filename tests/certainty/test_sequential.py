"""Looks at growing data: what is beaten, what is alike, at one error rate."""

import math

import numpy as np
import pytest
from scipy import stats

from harness.certainty.sequential import Look, Spread, share_of
from harness.certainty.statistics import Cell, Sample

SHARE = share_of(3, 5)


def look(*rows: np.ndarray, seeds: int = 2) -> Look:
    """Methods a, b, ..., each right on the images of its row with every seed."""
    hits = np.stack([np.stack([row] * seeds) for row in rows]).astype(float)
    cell = Cell.of(hits, np.ones(hits.shape[-1]))
    labels = tuple("abc"[: len(rows)])
    return Look(Sample(labels, tuple(range(seeds)), {("fold", "test"): cell}, "test"), SHARE)


def right(number: int, of: int) -> np.ndarray:
    return np.arange(of) < number


def test_the_shares_of_all_pairs_and_looks_are_five_percent():
    assert share_of(7, 5) * 5 * 7 * 6 / 2 == pytest.approx(0.05)


def test_a_spread_of_one_part_is_students_t():
    expected = 2 * stats.t.sf(2.5, 7)
    assert Spread(1.0, 7, 0.0, 1).beyond(2.5) == pytest.approx(expected, rel=1e-6)
    assert Spread(0.0, 7, 1.0, 7).beyond(2.5) == pytest.approx(expected, rel=1e-6)


def test_a_spread_of_two_parts_is_that_of_the_sum_of_two_ts():
    generator = np.random.default_rng(0)
    drawn = generator.standard_t(9, 10**6) + 0.5 * generator.standard_t(1, 10**6)
    expected = (np.abs(drawn) > 3).mean()
    assert Spread(1.0, 9, 0.25, 1).beyond(3.0) == pytest.approx(expected, rel=0.02)


def test_two_seeds_that_agree_by_chance_are_not_believed():
    normal = 2 * stats.norm.sf(3.5 / math.sqrt(1.01))
    assert Spread(1.0, math.inf, 0.01, 1).beyond(3.5) > 10 * normal


def test_half_the_width_of_an_interval_inverts_p():
    spread = Spread(2e-4, 50, 1e-4, 2)
    assert spread.beyond(spread.half(0.01)) == pytest.approx(0.01, rel=1e-3)


def test_a_method_that_is_right_more_often_beyond_doubt_beats_the_others():
    assert look(right(90, 100), right(40, 100)).beaten == {"b": "a"}


def test_a_dozen_images_beat_nobody():
    assert look(right(12, 12), right(4, 12)).beaten == {}


def test_equal_answers_on_few_images_do_not_make_methods_alike():
    assert not look(right(50, 100), right(50, 100)).alike("a", "b")
    assert look(right(2500, 5000), right(2500, 5000)).alike("a", "b")


def test_an_accuracy_without_an_error_has_an_interval():
    found = look(right(30, 30), right(10, 30)).interval("a")
    assert found.low == pytest.approx(1 + math.log(0.05) / 30)
    assert found.high == 1.0


def test_images_of_one_unit_say_nothing():
    one = look(np.array([1.0]), np.array([0.0]))
    assert one.p("a", "b") == 1.0
    assert one.difference("a", "b").low is None


def test_rounding_is_no_certainty_that_methods_are_the_same():
    rows = (np.random.default_rng(2).random((2, 9)) < 0.7).astype(float)
    taken = look(rows[0], rows[1], rows[0])
    by_unit, by_seed, by_both = (np.array(part) for part in taken.sample.products)
    by_unit[0, 0, 0] += 1e-17
    taken.sample.__dict__["products"] = by_unit, by_seed, by_both
    assert taken.difference("a", "c").high == pytest.approx(-math.log(0.05) / 9)


def test_more_images_are_needed_until_both_tests_tell():
    """Of eight images the variance may tell two apart, and the sign test cannot."""
    few = look(right(8, 8), right(1, 8))
    assert few.p("a", "b") > few.share
    times = few.needed("a", "b")
    assert times > 1
    many = look(right(8 * 3, 8 * 3), right(3, 8 * 3))
    assert many.p("a", "b") < few.p("a", "b")
    enough = math.ceil(times)
    assert look(right(8 * enough, 8 * enough), right(enough, 8 * enough)).beaten == {"b": "a"}


def test_as_accurate_but_for_rounding_is_as_accurate():
    tie = look(right(22, 27), right(22, 27), seeds=3)
    tie.sample.__dict__["values"] = np.array([22 / 27, 22 / 27 + 2e-16])
    tie.sample.__dict__["products"] = tuple(part + 1e-4 for part in tie.sample.products)
    assert tie.difference("a", "b").value == 0
    assert tie.p("a", "b") == 1
    assert tie.needed("a", "b") is None
