"""Progress of a fit: a bar in a terminal, a line a minute in a file."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

MINUTE = 60.0


class Lines:
    """A file that gets each state of a bar as a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> None:
        """What is left of a state without the bar's own returns and blanks."""
        line = text.strip()
        if line:
            self.file.write(f"{line}\n")
            self.file.flush()

    def flush(self) -> None:
        """Each line is out already."""


def progress(total: int, label: str, interval: float = MINUTE) -> Any:
    """A tqdm bar over steps; where standard error is no terminal, a line each `interval` seconds,
    and none of a fit that takes less."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=label, unit="step", leave=False)
    return tqdm(
        total=total, desc=label, unit="step", leave=False, file=Lines(sys.stderr), ncols=100,
        mininterval=interval, maxinterval=0, miniters=1, delay=interval,
        bar_format="{desc}: step {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}",
    )  # fmt: skip
