"""`python -m harness`."""

import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

codes: list[int] = []  # of the command, once it has ended and nobody else has a say


def leave(codes: Sequence[int]) -> None:
    """Ends the process at once if the command has ended and all of its output is out. The system
    frees what is left, such as torch's tables of operators, which take 0.7 s and 116 MB to take
    down."""
    with suppress(OSError, ValueError):  # the usual end says what is wrong
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for code in codes:
            os._exit(code)


def alone() -> bool:
    """Whether no code but the harness's own has run: a plugin may hold files that are still to be
    written, and another program may have called this one."""
    registry = sys.modules.get("harness.registry")
    foreign = registry is not None and registry.FOREIGN
    return not foreign and vars(sys.modules["__main__"]) is globals()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.pop(0)  # the working directory, whose files are the user's and no modules
    if atexit._ncallbacks() == 0:  # else somebody, who measures this process, waits for its end
        atexit.register(leave, codes)  # the first to be registered is the last to be called

    from harness.cli.commands import main

    code = main()
    if alone():
        codes.append(code)
    raise SystemExit(code)
