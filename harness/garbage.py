"""Work that makes many objects and no garbage."""

import contextlib
import functools
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Meanwhile Python looks for no garbage: it doubles the time in which long lists are made, and
    takes a seventh of that in which a plan and what it imports are."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@functools.cache
def settle() -> None:
    """Once in a process that belongs to a command: what has been imported and planned stays, and is
    not looked through again before each run, whose memory is measured; that took 0.2 s."""
    gc.collect()
    gc.freeze()
