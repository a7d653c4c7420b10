"""Ctrl-C: once in order, twice at once."""

import signal
import subprocess
import sys
import time

from tests.conftest import ROOT

CODE = """
import threading, time
from harness.cli import commands
from harness.cli.verbs import names
def hang(arguments):
    threading.Thread(target=time.sleep, args=(600,)).start()  # as a decoder that waits for ever
    print("ready", flush=True)
    time.sleep(600)
names.listed = hang
raise SystemExit(commands.main(["list", "tasks"]))
"""


def test_a_second_ctrl_c_ends_a_process_that_hangs():
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "interrupted" in process.stderr.readline()
    assert process.poll() is None  # the thread is still waited for
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.returncode == 130
    process.communicate()
