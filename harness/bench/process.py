"""Commands of this Python in processes of their own: what they print, and what they take."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO

from harness.errors import HarnessError


@dataclass(frozen=True)
class Ended:
    """What a process printed, its seconds by the clock and of the processor, and its bytes of
    memory at most."""

    output: str
    seconds: float
    processor_seconds: float
    bytes: int


def called(*command: str, **variables: str) -> Ended:
    """`python` with these arguments, and with more variables in its environment.

    Raises:
        HarnessError: it failed, with the last line that it printed.
    """
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *command], env=os.environ | variables, stdout=printed, stderr=said
        ) as child:
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output, errors = (_text(file) for file in (printed, said))
    if child.returncode:
        words = " ".join(" ".join(command).split())
        lines = errors.strip().splitlines() or ["it printed nothing"]
        raise HarnessError(f"`python {words[:200]}` failed: {lines[-1]}")
    return Ended(output, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
