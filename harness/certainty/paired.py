"""Whether one fit and zero-shot, on the same images, differ by more than chance."""


def sign_test(better: int, worse: int) -> float:
    """The exact two-sided p of the sign test (of single images: McNemar's): how often, if both were
    equally good, the units on which they differ would be shared out at least as unevenly."""
    number, term, tail = better + worse, 1, 0
    for k in range(min(better, worse) + 1):
        tail += term
        term = term * (number - k) // (k + 1)
    return min(1.0, 2 * tail / 2**number)
