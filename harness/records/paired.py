"""Whether two models that saw the same images differ by more than chance."""


def sign_test(better: int, worse: int) -> float:
    """The exact two-sided p of McNemar's test: how often, if both were equally good, the images
    that only one of them names rightly would be shared out at least as unevenly."""
    number, term, tail = better + worse, 1, 0
    for k in range(min(better, worse) + 1):
        tail += term
        term = term * (number - k) // (k + 1)
    return min(1.0, 2 * tail / 2**number)
