"""McNemar's exact test, against values of scipy.stats.binomtest."""

import pytest

from harness.certainty.paired import sign_test


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0), (0, 1, 1.0), (1, 0, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (3, 12, 0.03515625),
        (10, 10, 1.0), (40, 65, 0.0187409154), (465, 534, 0.0313912956), (490, 510, 0.5479727459),
    ],
)  # fmt: skip
def test_the_p_value_is_the_exact_binomial_one(better, worse, p):
    assert sign_test(better, worse) == pytest.approx(p, rel=1e-8)
    assert sign_test(worse, better) == sign_test(better, worse)
