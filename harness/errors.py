"""The one exception whose message is meant for the user."""

import difflib
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class HarnessError(Exception):
    """A request that cannot be met: says what was given, what is allowed and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class OutOfTime(HarnessError):
    """A limit of time ended the work before all was done: what is done, and how to go on."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> HarnessError:
    """`unknown method 'lroa'. Did you mean 'lora'?`, or with all that is known."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    plain = {re.sub(r"[\W_]", "", name).lower(): name for name in names}
    close = [
        plain[same] for same in [re.sub(r"[\W_]", "", given).lower()] if same in plain
    ] or close
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(names) or 'none'}."
    return HarnessError(f"unknown {kind} {given!r}. {hint}")


def one_line(error: Exception) -> str:
    """What an exception says, on one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_sentence(error: Exception) -> str:
    """The same up to its first full stop, which is left out."""
    return one_line(error).partition(". ")[0].rstrip(".")


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turns whatever the code of a plugin raises into a sentence that names `what`, file and line.

    Running out of memory passes through: the engine knows what to do then.
    """
    try:
        yield
    except (HarnessError, MemoryError):
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError,
            OSError, RuntimeError, TypeError, ValueError, re.error) as error:  # fmt: skip
        if type(error).__name__ == "OutOfMemoryError":
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise HarnessError(
            f"{what} failed: {type(error).__name__}: {one_line(error)} "
            f"({Path(frame.filename).name}, line {frame.lineno})"
        ) from error
