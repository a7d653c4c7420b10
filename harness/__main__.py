"""`python -m harness`."""

import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.pop(0)  # the working directory, whose files are the user's and no modules

codes: list[int] = []  # of the command, once it has ended


def _leave(codes: Sequence[int]) -> None:
    """Ends the process at once if the command has ended and all of its output is out. The system
    frees what is left, such as torch's tables of operators, which take 0.7 s and 116 MB to take
    down."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        for code in codes:
            os._exit(code)


if atexit._ncallbacks() == 0:  # else somebody, who measures this process, waits for its end
    atexit.register(_leave, codes)  # the first to be registered is the last to be called

from harness.cli.commands import main  # noqa: E402 - it registers functions of its own


def process() -> int:
    """The command line in a process of its own; returns the exit code."""
    codes.append(main())
    return codes[0]


if __name__ == "__main__":
    raise SystemExit(process())
