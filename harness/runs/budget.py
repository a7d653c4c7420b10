"""A budget of time: as it is written, as it is said, and how forecasts compare with it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.errors import HarnessError

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
MOST = 365 * 86400


def seconds_of(text: str) -> float:
    """The seconds of 90s, 10m, 2h or 1.5h.

    Raises:
        HarnessError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if not match or match[2] not in UNITS:
        raise HarnessError(f"--budget {text!r} is not a time such as 90s, 10m or 2h.")
    seconds = float(match[1]) * UNITS[match[2]]
    if not 0 < seconds <= MOST:
        raise HarnessError(f"--budget {text!r} must be more than nothing and at most a year.")
    return seconds


def written(seconds: float) -> str:
    """At least so many seconds, as --budget reads them."""
    for unit, size, most in (("s", 1, 100), ("m", 60, 100), ("h", 3600, float("inf"))):
        number = int(-(-seconds // size))
        if number <= most:
            return f"{max(1, number)}{unit}"
    raise AssertionError


@dataclass
class Spending:
    """The seconds of a budget.

    forecast, taken: of what was done, whose ratio corrects the next forecasts.
    """

    budget: float
    clock: Callable[[], float]
    started: float = field(init=False)
    forecast: float = 0.0
    taken: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def spent(self) -> float:
        return self.clock() - self.started

    @property
    def left(self) -> float:
        return max(0.0, self.budget - self.spent)

    def corrected(self, seconds: float) -> float:
        """A forecast, by how the ones before came out; never less than half of it."""
        return seconds * max(0.5, self.taken / self.forecast) if self.forecast else seconds

    def learn(self, forecast: float, taken: float) -> None:
        """Books what was forecast and taken for some runs."""
        self.forecast += forecast
        self.taken += taken
