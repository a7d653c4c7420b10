"""Work that makes many objects and no garbage."""

import contextlib
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
