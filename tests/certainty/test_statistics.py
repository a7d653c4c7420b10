"""Intervals, pairs and ranks: known numbers, coverage of simulated worlds, limiting cases."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from scipy import stats

from harness.bench.coverage import coverage
from harness.certainty.statistics import Cell, Pairs, Sample


@pytest.fixture(scope="module")
def measured() -> Sample:
    """What 27 methods named rightly in the records of version 0.1.0: 792 drawings of ten views."""
    path = Path(__file__).parent / "hits.safetensors"
    with safe_open(str(path), "np") as file:
        labels = tuple(file.metadata()["labels"].split(","))
        hits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    cells = {}
    for name in sorted(hits):
        dataset, evaluation = name.split(".")
        sizes = np.full(hits[name].shape[-1], 10.0)
        cells[dataset, evaluation] = Cell.of(hits[name].astype(float), sizes)
    return Sample(labels, (1, 2, 3), cells, "hm")


PRINTED = [  # difference, bounds in points; p; p adjusted for all pairs
    ("adapter", "dra", 0.17, -0.42, 0.75, 0.571, 1.00),
    ("lfa", "tcp", 1.24, 0.35, 2.12, 0.007, 0.302),
    ("mma", "adapter", -0.72, -1.64, 0.20, 0.119, 0.950),
    ("lora", "zero_shot", 2.43, 1.60, 3.25, 0.0, 0.0001),
    ("kgcoop", "zero_shot", 1.64, 0.75, 2.52, 0.0003, 0.027),
]


@pytest.mark.parametrize(("first", "second", "value", "low", "high", "p", "adjusted"), PRINTED)
def test_differences_of_the_records_are_those_of_an_independent_computation(
    measured, first, second, value, low, high, p, adjusted
):
    a, b = measured.labels.index(first), measured.labels.index(second)
    found = measured.difference(a, b)
    assert 100 * found.value == pytest.approx(value, abs=0.005)
    assert 100 * found.low == pytest.approx(low, abs=0.005)
    assert 100 * found.high == pytest.approx(high, abs=0.005)
    assert found.p == pytest.approx(p, abs=0.002)
    pairs = measured.all_pairs
    (place,) = np.flatnonzero((pairs.first == min(a, b)) & (pairs.second == max(a, b)))
    assert pairs.adjusted[place] == pytest.approx(adjusted, abs=0.02)


def test_pairs_told_apart_and_ranks_are_those_of_an_independent_computation(measured):
    pairs = measured.all_pairs
    assert (measured.images, measured.units) == (7920, 792)
    assert pairs.critical == pytest.approx(3.56, abs=0.05)
    assert 100 * pairs.needed == pytest.approx(2.7, abs=0.1)  # 2.6 as if t were normal
    assert int(pairs.told_apart.sum()) == pytest.approx(176, abs=3)
    ranks = dict(zip(measured.labels, pairs.ranks(), strict=True))
    expected = {"lfa": (1, 2), "tcp": (1, 15), "adapter": (2, 20), "dra": (2, 18),
                "zero_shot": (13, 24), "cocoop": (26, 27)}  # fmt: skip
    assert {name: ranks[name] for name in expected} == expected


def test_one_method_against_the_rest_tells_more_apart(measured):
    dra = measured.labels.index("dra")
    against, every = measured.against(dra), measured.all_pairs
    theirs = every.told_apart[(every.first == dra) | (every.second == dra)]
    assert against.told_apart.sum() > theirs.sum()
    assert against.critical < every.critical


def test_the_normal_distribution_tells_apart_what_the_bootstrap_does(measured, monkeypatch):
    whole = measured.all_pairs
    monkeypatch.setattr("harness.certainty.statistics.MOST_UNITS", 100)
    normal = Pairs(Sample(measured.labels, measured.seeds, measured.cells, "hm"),
                   whole.first, whole.second)  # fmt: skip
    assert normal.critical == pytest.approx(whole.critical, abs=0.1)
    assert (normal.told_apart != whole.told_apart).sum() < 10


def literal(hits: dict, sizes: dict, first: int, second: int) -> tuple[float, float]:
    """The variance of a difference of HMs and its degrees of freedom, one sum after the other."""
    datasets = sorted({d for d, _ in hits})
    number, seeds = len(datasets), hits[datasets[0], "base"].shape[1]
    psi = {}
    for method in (first, second):
        a, b = (
            np.mean([hits[d, e][method].sum() / seeds / sizes[d, e].sum() for d in datasets])
            for e in ("base", "new")
        )
        slope = {"base": 2 * b**2 / (a + b) ** 2, "new": 2 * a**2 / (a + b) ** 2}
        for (d, e), each in hits.items():
            total = sizes[d, e].sum()
            accuracy = each[method].sum() / seeds / total
            influence = slope[e] / number * (each[method] - accuracy * sizes[d, e])
            sign = 1 if method == first else -1
            psi[d, e] = psi.get((d, e), 0) + sign * influence / (seeds * total)
    units = {key: p.shape[1] / (p.shape[1] - 1) * (p.sum(0) ** 2).sum() for key, p in psi.items()}
    fits, both = {}, 0.0
    for d in datasets:
        c = psi[d, "base"].sum(1) + psi[d, "new"].sum(1)
        fits[d] = seeds / (seeds - 1) * ((c - c.mean()) ** 2).sum()
    for p in psi.values():
        centred = p - p.mean(0) - p.mean(1, keepdims=True) + p.mean()
        both += p.shape[1] / (p.shape[1] - 1) * seeds / (seeds - 1) * (centred**2).sum()
    vu, vs = sum(units.values()), sum(fits.values())
    squares = sum(v**2 / (psi[key].shape[1] - 1) for key, v in units.items())
    squares += sum(v**2 / (seeds - 1) for v in fits.values())
    return max(vu + vs - both, vu, vs), (vu + vs) ** 2 / squares


def test_the_variance_is_the_sum_that_the_protocol_writes_down():
    generator = np.random.default_rng(0)
    sizes = {(d, e): generator.integers(1, 9, size) for d, size in (("a", 20), ("b", 31))
             for e in ("base", "new")}  # fmt: skip
    hits = {key: generator.binomial(n, 0.6, (3, 4, len(n))) for key, n in sizes.items()}
    cells = {key: Cell.of(hits[key].astype(float), sizes[key]) for key in sizes}
    found = Sample(("x", "y", "z"), (1, 2, 3, 4), cells, "hm").difference(0, 2)
    variance, degrees = literal(hits, sizes, 0, 2)
    assert found.error**2 == pytest.approx(variance, rel=1e-9)
    assert found.degrees == pytest.approx(degrees, rel=1e-9)


def one_dataset(hits: np.ndarray, statistic: str = "test", shared: bool = False) -> Sample:
    cell = Cell.of(hits.astype(float), np.ones(hits.shape[-1]))
    labels = tuple(f"m{i}" for i in range(len(hits)))
    return Sample(labels, tuple(range(hits.shape[1])), {("d", statistic): cell}, statistic, shared)


def test_one_seed_and_single_images_give_the_paired_t_test():
    generator = np.random.default_rng(1)
    hits = generator.binomial(1, [[[0.6]], [[0.7]]], (2, 1, 400))
    found = one_dataset(hits).difference(0, 1)
    paired = stats.ttest_rel(hits[0, 0], hits[1, 0])
    assert found.p == pytest.approx(paired.pvalue, abs=1e-9)
    interval = paired.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_only_seeds_matter_at_level_one():
    generator = np.random.default_rng(2)
    hits = generator.binomial(1, 0.6, (2, 5, 300))
    sample = one_dataset(hits)
    found = sample.difference(0, 1, level=1)
    paired = stats.ttest_rel(hits[0].mean(-1), hits[1].mean(-1))
    assert found.p == pytest.approx(paired.pvalue, abs=1e-9)
    assert one_dataset(hits[:, :1]).difference(0, 1, level=1).low is None


def test_datasets_are_the_units_at_level_three(measured):
    a, b = measured.labels.index("lfa"), measured.labels.index("tcp")
    found = measured.difference(a, b, level=3)
    assert found.degrees == 7
    assert found.value == measured.difference(a, b).value
    assert measured.of_dataset("emoji_food").difference(a, b, level=3).low is None
    worse, same, better = measured.practically(a, b)
    assert worse + same + better == pytest.approx(1)
    assert better > 0.9


def test_equal_methods_do_not_differ_and_others_keep_their_p():
    generator = np.random.default_rng(3)
    hits = generator.binomial(1, [[[0.5]], [[0.5]], [[0.9]]], (3, 2, 200))
    hits[1] = hits[0]
    sample = one_dataset(hits)
    assert sample.difference(0, 1).p == 1
    assert sample.all_pairs.told_apart.tolist() == [False, True, True]
    assert sample.all_pairs.ranks() == [(2, 3), (2, 3), (1, 1)]


def test_a_single_unit_has_no_interval():
    cell = Cell.of(np.array([[[3.0]], [[4.0]]]), np.array([10.0]))
    sample = Sample(("a", "b"), (1,), {("d", "test"): cell}, "test")
    assert sample.difference(0, 1).low is None
    assert sample.interval(0).value == pytest.approx(0.3)


def test_intervals_of_simulated_worlds_cover_the_truth(measured, monkeypatch):
    monkeypatch.setattr("harness.certainty.statistics.DRAWS", 500)
    found = coverage(measured, worlds=200, methods=5, datasets=3, seed=0, equal=True)
    assert 0.92 < found.two_way < 0.98
    assert found.units_alone < 0.92  # seeds must count, too
    assert found.any_pair_wrongly < 0.1 < found.unadjusted
    assert found.all_ranks > 0.9


def test_a_method_without_mistakes_is_as_sure_as_so_few_images_allow():
    found = one_dataset(np.ones((1, 2, 20))).interval(0)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 + np.log(0.05) / 20)


def test_methods_that_agree_on_a_few_images_are_not_called_the_same():
    found = one_dataset(np.ones((2, 1, 20))).difference(0, 1)
    assert found.low == -found.high == pytest.approx(np.log(0.05) / 20)
    assert found.p == 1


@pytest.mark.parametrize(("images", "apart"), [(2, False), (100, True)])
def test_all_right_and_all_wrong_are_told_apart_as_the_interval_says(images, apart):
    sample = one_dataset(np.stack([np.ones((2, images)), np.zeros((2, images))]))
    found, pairs = sample.difference(0, 1), sample.all_pairs
    assert (found.low > 0) == (found.p <= 0.05) == apart
    assert bool(pairs.told_apart[0]) == apart
    assert pairs.ranks() == ([(1, 1), (2, 2)] if apart else [(1, 2), (1, 2)])


def test_an_interval_ends_at_what_is_possible():
    hits = np.ones((1, 1, 10))
    hits[0, 0, 0] = 0
    found = one_dataset(hits).interval(0)
    assert 0 < found.low < 0.9 < found.high == 1


def test_methods_with_the_same_predictions_do_not_widen_what_others_need():
    draw = np.random.default_rng(0)
    hits = (draw.random((3, 3, 60)) < [[[0.6]], [[0.7]], [[0.8]]]).astype(float)
    twice = np.concatenate([hits, hits[:1]])
    pair = Sample.against(one_dataset(twice), 3).critical
    assert pair == pytest.approx(one_dataset(hits).against(0).critical, abs=0.1)


def test_rounding_is_no_certainty_that_methods_with_the_same_predictions_differ_by_nothing():
    """Sums of products of equal rows differ in their last bits, which is a variance above 0."""
    for seed in range(40):
        draw = np.random.default_rng(seed)
        hits = (draw.random((int(draw.integers(3, 30)), 3, 9)) < 0.7).astype(float)
        hits[-1] = hits[0]
        found = one_dataset(hits).difference(0, len(hits) - 1)
        assert found.high == -found.low == pytest.approx(-np.log(0.05) / 9)


def test_no_pair_is_surer_among_others_than_alone(monkeypatch):
    """With two seeds the draws of one dataset move the sum of both by one step alone."""
    monkeypatch.setattr("harness.certainty.statistics.DRAWS", 1000)
    for seed in range(8):
        draw = np.random.default_rng(seed)
        shares = 0.7 + draw.normal(0, 0.04, (3, 2, 1))
        sample = one_dataset((draw.random((3, 2, 900)) < shares).astype(float))
        pairs = sample.all_pairs
        for first, second, adjusted in zip(pairs.first, pairs.second, pairs.adjusted, strict=True):
            assert adjusted >= sample.difference(first, second).p - 1e-9
        assert pairs.critical >= stats.norm.ppf(0.975) - 1e-9


def test_what_a_pair_needs_is_what_tells_it_apart():
    draw = np.random.default_rng(4)
    hits = (draw.random((2, 2, 60)) < [[[0.5]], [[0.7]]]).astype(float)
    sample = one_dataset(hits)
    found, pairs = sample.difference(0, 1), sample.all_pairs
    times = stats.t.isf(stats.norm.sf(pairs.critical), found.degrees)
    assert pairs.needed == pytest.approx(times * found.error)
    assert bool(pairs.told_apart[0]) == (abs(found.value) >= pairs.needed)


def test_seeds_that_agree_by_chance_say_nothing_of_other_seeds():
    hits = np.zeros((2, 2, 80))
    hits[0, 0, :60] = hits[0, 1, 20:] = 1  # 60 right each time, on other images
    hits[1, :, :58] = 1
    sample = one_dataset(hits)
    assert sample.difference(0, 1, level=1).low is None
    same = one_dataset(hits[:, :1].repeat(2, 1)).difference(0, 1, level=1)
    assert same.low == same.high == same.value  # no method of the two has seeds
    twins = one_dataset(hits[[0, 0]]).difference(0, 1, level=1)
    assert twins.low == twins.high == 0  # whatever the seed


def test_what_several_pairs_without_an_exception_need_is_what_tells_them_apart():
    """Of 50 images all are right, 42 or none, by all seeds alike."""
    hits = np.zeros((3, 1, 50))
    hits[0], hits[1, :, :42] = 1, 1
    pairs = one_dataset(hits[[0, 2, 2]]).all_pairs
    assert pairs.needed == pytest.approx(-np.log(0.05 / 3) / 50)


def test_an_hm_of_nothing_moves_with_the_worse_half_alone():
    base, new = np.ones((1, 1, 50)), np.zeros((1, 1, 50))
    base[0, 0, :10] = 0
    cells = {("d", name): Cell.of(each, np.ones(50)) for name, each in
             (("base", base), ("new", new))}  # fmt: skip
    found = Sample(("a",), (1,), cells, "hm").interval(0)
    most = -np.log(0.05) / 50  # of the new images may be right, and of the HM twice that
    assert found.value == 0
    assert found.high == pytest.approx(2 * most)
