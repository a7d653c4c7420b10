"""What a run survives: kills, full disks, closed pipes, deleted folders. Takes minutes.

    pytest tests/faults -m faults --numprocesses=0 --faults-table results/faults.md

prints a table and keeps it in a file: how often each fault was tried, how many finished runs were
lost, how many were done twice, and what was left behind (processes, temporary files).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.records.tables import format_table
from tests.cli.test_commands import alive
from tests.conftest import ROOT, TOY
from tests.images.test_own import grow

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults")]

DRAW = random.Random(1)
KILLS = 20
ROWS: list[dict[str, str]] = []


@dataclass
class Trial:
    """A results folder, and what was seen of it."""

    folder: Path
    seen: Counter = field(default_factory=Counter)

    def command(self, *arguments: object, seeds: str = "1-6") -> list[str]:
        return [
            sys.executable, "-m", "harness", "run", "--methods", "zero_shot,adapter", "--tasks",
            "base2new", "--datasets", "toy", "--plugin", str(TOY), "--shots", "4", "--seeds", seeds,
            "--set", "engine.max_steps=2", "--results", str(self.folder), *map(str, arguments),
        ]  # fmt: skip

    def start(self, *arguments: object, **options) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*arguments, **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True, cwd=ROOT,
        )  # fmt: skip

    def run(self, *arguments: object, **options) -> subprocess.CompletedProcess:
        """The command to its end."""
        return subprocess.run(
            self.command(*arguments, **options), capture_output=True, text=True, cwd=ROOT
        )

    def finished(self) -> set[str]:
        """Keys of the finished records; one that is no JSON is an error."""
        records = [json.loads(path.read_text()) for path in self.folder.glob("base2new/*/*.json")]
        keys = Counter(record["key"] for record in records if record["status"] == "done")
        self.seen["doubled"] += sum(count - 1 for count in keys.values())
        return set(keys)

    def ended(self, process: subprocess.Popen, before: set[str]) -> None:
        """Notes what a process that was stopped left behind and lost."""
        process.communicate()  # so that it is no zombie
        deadline = time.monotonic() + 30
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.seen["left"] += alive(process.pid)
        self.seen["lost"] += len(before - self.finished())

    def complete(self, count: int, **options) -> None:
        """The same command makes what is left, and leaves no temporary file."""
        done = self.run(**options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(self.finished()) == count
        self.seen["left"] += len(list(self.folder.rglob("*.tmp")))

    def report(self, fault: str, tried: int) -> None:
        row = {"fault": fault, "tried": str(tried)}
        ROWS.append(row | {name: str(self.seen[name]) for name in ("lost", "doubled", "left")})
        assert self.seen["lost"] == self.seen["doubled"] == self.seen["left"] == 0, ROWS[-1]


@pytest.fixture
def trial(tmp_path) -> Trial:
    return Trial(tmp_path / "results")


@pytest.fixture(scope="module", autouse=True)
def table(request) -> Iterator[None]:
    """Prints what was found, and keeps it where --faults-table says."""
    yield
    if not ROWS:
        return
    notes = (
        "What a run survives: "
        "`pytest tests/faults -m faults --numprocesses=0 --faults-table results/faults.md`.\n"
        "lost: finished runs that were gone; doubled: records of one run; left: processes after\n"
        "30 s and temporary files after the same command had finished the work."
    )
    text = format_table(ROWS, "markdown", notes)
    print(f"\n{text}")
    out = request.config.getoption("--faults-table")
    if out:
        Path(out).write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Meanwhile `folder` is a disk of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("small disks need root and tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def stop_at_random(trial: Trial, how: int, times: int, most: float, seeds: str) -> None:
    for _ in range(times):
        process = trial.start("--jobs", 2, seeds=seeds)
        time.sleep(DRAW.uniform(0.2, most))
        before = trial.finished() if trial.folder.exists() else set()
        process.send_signal(how)
        trial.ended(process, before)


def test_kill_9_of_the_first_of_two_processes(trial):
    stop_at_random(trial, signal.SIGKILL, KILLS, 20, "1-40")
    trial.complete(80, seeds="1-40")
    trial.report("kill -9 at random moments, with a helper", KILLS)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_polite_end(name, trial):
    stop_at_random(trial, getattr(signal, name), 3, 15, "1-12")
    trial.complete(24, seeds="1-12")
    trial.report(f"{name} at random moments, with a helper", 3)


def test_four_processes_on_one_folder(trial):
    processes = [trial.start("--jobs", 1) for _ in range(4)]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, printed
    text = "".join(out + error for out, error in printed)
    made = text.count(": base ") - text.count(", another process")
    assert len(trial.finished()) == 12
    trial.seen["doubled"] += made - 12
    trial.complete(12)
    trial.report("four processes on one folder", 4)


def test_a_full_disk_for_the_results(trial):
    with small_disk(trial.folder, "700k"):
        done = trial.run("--jobs", 1)
        assert done.returncode == 2
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
        before = trial.finished()
        assert 0 < len(before) < 12
        subprocess.run(["mount", "-o", "remount,size=50m", str(trial.folder)], check=True)
        trial.complete(12)
        trial.seen["lost"] += len(before - trial.finished())
    trial.report("a full disk for the results, then room", 1)


def test_a_full_disk_for_the_cache(trial, tmp_path):
    with small_disk(tmp_path / "cache", "200k"):
        done = trial.run("--jobs", 1, "--cache-dir", tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        assert len(trial.finished()) == 12
    trial.report("a full disk for the cache", 1)


def test_a_disk_that_is_read_only(trial):
    with small_disk(trial.folder, "50m"):
        subprocess.run(["mount", "-o", "remount,ro", str(trial.folder)], check=True)
        done = trial.run("--jobs", 1)
        assert done.returncode == 2
        assert "--results" in done.stderr
    trial.report("results on a read-only disk", 1)


def test_results_that_are_deleted_meanwhile(trial):
    process = trial.start("--jobs", 1)
    while process.poll() is None and not list(trial.folder.glob("base2new/*/*.json")):
        time.sleep(0.05)
    shutil.rmtree(trial.folder, ignore_errors=True)
    _, error = process.communicate()
    assert "Traceback" not in error
    trial.complete(12)
    trial.report("results deleted meanwhile", 1)


def test_a_pipe_that_is_closed(trial):
    process = trial.start("--jobs", 1)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    process.stderr.close()
    assert len(trial.finished()) == 12
    trial.report("a closed pipe: run | head -1", 1)


def test_a_pipe_among_the_images(trial, tmp_path):
    os.mkfifo(grow(tmp_path / "images") / "oak" / "x.png")
    command = trial.command("--jobs", 1, "--datasets", f"folder:{tmp_path / 'images'}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2
    assert "x.png" in done.stderr
    trial.report("a FIFO named x.png", 1)


@pytest.mark.parametrize(("where", "seconds"), [("ahead", 10**8), ("back", -(10**8))])
def test_a_clock_that_was_wrong(where, seconds, trial):
    trial.complete(12)
    times = time.time() + seconds
    for path in trial.folder.glob("base2new/*/*.json"):
        os.utime(path, (times, times))
    before = {path: path.read_bytes() for path in trial.folder.glob("base2new/*/*.json")}
    done = trial.run("--jobs", 2, "--force")
    assert done.returncode == 0, done.stderr
    after = {path: path.read_bytes() for path in trial.folder.glob("base2new/*/*.json")}
    assert after.keys() == before.keys()
    trial.seen["lost"] += sum(after[path] == before[path] for path in before)
    trial.report(f"a clock that was {where} when the records were written, then --force", 1)
