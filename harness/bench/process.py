"""Commands of this Python in processes of their own: what they print, and what they take."""

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

from harness.errors import HarnessError


@dataclass(frozen=True)
class Ended:
    """What a process printed, and its seconds by the clock and of the processor."""

    output: str
    seconds: float
    processor_seconds: float


def called(*command: str, **variables: str) -> Ended:
    """`python` with these arguments, and with more variables in its environment.

    Raises:
        HarnessError: it failed, with the last line that it printed.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | variables, capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        said = " ".join(" ".join(command).split())
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise HarnessError(f"`python {said[:200]}` failed: {lines[-1]}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(done.stdout, seconds, spent)
