"""A helper process: takes its share of the runs from standard input, and ends with its parent.

What it finishes is in the results folder; it prints nothing.
"""

import _thread
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import suppress

PATIENCE = 10  # seconds to leave the run that is interrupted


def end_with_parent() -> None:
    """Waits until the pipe from the parent closes, then stops the work, gently, then for sure."""
    while sys.stdin.buffer.read(1):
        pass
    _thread.interrupt_main()
    time.sleep(PATIENCE)
    os._exit(1)


def main() -> None:
    """Works on the share that the parent sends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
    share = pickle.load(sys.stdin.buffer)
    threading.Thread(target=end_with_parent, daemon=True).start()
    from harness import garbage, registry
    from harness.records.store import Store
    from harness.runs import provenance
    from harness.runs.executors.local import execute_all
    from harness.runs.plan import plan

    provenance.state(share.command)
    store = Store(share.results)
    runs = plan(share.request, registry.load(share.plugins), share.known)
    pending = [run for run in runs if run.key in share.versions]
    garbage.settle()
    execute_all(store, pending, share.versions, share.force, share.first, share.deadline)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
