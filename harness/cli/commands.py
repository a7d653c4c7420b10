"""The command line: argv to an exit code."""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.cli import output
from harness.cli.arguments import parser
from harness.errors import HarnessError, OutOfTime
from harness.records.tables import harmless


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0, 1 if a run failed or the output could not be
    written, 2 for a bad request, 3 if --max-hours ended it, 130)."""
    with output.kept() as out:
        code = _command(argv)
        out.flush()
        if out.failure is not None:
            print(f"error: the output cannot be written: {out.failure.strerror}.", file=sys.stderr)
            code = code or 1
    return code


def _command(argv: Sequence[str] | None) -> int:
    arguments = _parsed(argv)
    try:
        with _ended_by_a_second_interrupt():
            return arguments.does(arguments)
    except OutOfTime as error:
        print(harmless(error, lines=True), file=sys.stderr)
        return 3
    except HarnessError as error:
        print(f"error: {harmless(error, lines=True)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"\ninterrupted. {stopped}".rstrip(), file=sys.stderr)
        return 130


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; what no command takes is an error of the command that was meant."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest:
        (commands,) = (a.choices for a in top._actions if isinstance(a.choices, dict))
        commands[arguments.command].error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


@contextmanager
def _ended_by_a_second_interrupt() -> Iterator[None]:
    """Ctrl-C stops the work in order; a second one ends the process at once, whatever hangs."""
    usual = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or usual is not signal.default_int_handler:  # somebody else takes care of it
        yield
        return
    pressed: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if pressed:
            os._exit(130)
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if not pressed:
            signal.signal(signal.SIGINT, usual)


warnings.showwarning = lambda message, *_args, **_kw: print(
    f"warning: {harmless(message, lines=True)}", file=sys.stderr
)
