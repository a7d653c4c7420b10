"""What commands are doing in a results folder, for whoever asks from another terminal.

Each command keeps its plan in `.plans/` as long as it lives, and holds a lock beside it; each
process says in `.locks/` which run it has, beside that run's lock. None of it is a record.
"""

import json
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.records.record import Record
from harness.records.store import Store, atomically


@dataclass(frozen=True)
class Planned:
    """A run of a plan: its key, its fit's, its name, and how many seconds it may take."""

    key: str
    fit: str
    name: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a command was asked for: `host` and `pid` of its first process, seconds since 1970;
    whether records that were there before do not count."""

    command: str
    host: str
    pid: int
    started: float
    processes: int
    runs: Sequence[Planned]
    force: bool = False


@dataclass(frozen=True)
class Running:
    """A run that a process has now."""

    name: str
    fit: str
    host: str
    pid: int
    since: float


@contextmanager
def announced(
    store: Store, command: str, processes: int, runs: Sequence[Planned], force: bool = False
) -> Iterator[None]:
    """Meanwhile the plan can be read by others; afterwards, too, if it was stopped before its end.
    Where it cannot be written, it is not."""
    started = datetime.now(UTC).timestamp()
    plan = Plan(command, platform.node(), os.getpid(), started, processes, runs, force)
    path = store.folder / ".plans" / f"{plan.host}-{plan.pid}-{int(started * 1000)}.json"
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        atomically(path, lambda p: p.write_text(json.dumps(asdict(plan)), encoding="utf-8"))
    except (OSError, Timeout) as error:
        warnings.warn(f"status will not show this command: {error}", stacklevel=2)
    _forget_stopped(store, {run.key for run in runs})
    try:
        yield
    except BaseException:
        lock.release()
        raise
    lock.release()
    _forget(path)


def _forget_stopped(store: Store, keys: set[str]) -> None:
    """A plan that was stopped is forgotten once another command goes on with all that it lacks."""
    stopped = [each for each in _plans(store) if not _held(each[0].with_suffix(".lock"))]
    if not stopped:  # the usual case, for which no record is read
        return
    records = {record.key for record in store.records() if record.final}
    for path, plan in stopped:
        if {run.key for run in plan.runs} - records <= keys:
            _forget(path)


def _forget(path: Path) -> None:
    for each in (path, path.with_suffix(".lock")):
        with suppress(OSError):
            each.unlink(missing_ok=True)


@contextmanager
def at_work(store: Store, fit: str, name: str) -> Iterator[None]:
    """Meanwhile others can read that this process has the run; it holds the claim of the fit."""
    running = Running(name, fit, platform.node(), os.getpid(), datetime.now(UTC).timestamp())
    path = store.folder / ".locks" / f"{fit}.json"
    with suppress(OSError):
        path.write_text(json.dumps(asdict(running)), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def live_plans(store: Store) -> list[Plan]:
    """The plans of commands that live."""
    return [plan for path, plan in _plans(store) if _held(path.with_suffix(".lock"))]


def stopped_plans(store: Store) -> list[Plan]:
    """The plans of commands that ended before all was done, however they ended."""
    return [plan for path, plan in _plans(store) if not _held(path.with_suffix(".lock"))]


def _plans(store: Store) -> Iterator[tuple[Path, Plan]]:
    for path in sorted((store.folder / ".plans").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8"))
            runs = [Planned(**each) for each in content.pop("runs")]
            yield path, Plan(runs=runs, **content)


def running(store: Store) -> list[Running]:
    """The runs that live processes have now, the longest first."""
    found = []
    for path in (store.folder / ".locks").glob("*.json"):
        if _held(path.with_suffix(".lock")):
            with suppress(OSError, ValueError, TypeError):
                found.append(Running(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda each: each.since)


def _held(path: Path) -> bool:
    """Whether a process holds the lock."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


@dataclass(frozen=True)
class Progress:
    """How far a plan is; seconds left, of all its processes together, or None if nothing is or
    nobody works on it."""

    plan: Plan
    done: int
    failed: int
    left: int
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        """Raw values."""
        plan = {n: v for n, v in asdict(self.plan).items() if n != "runs"}
        counts = {"runs": len(self.plan.runs), "done": self.done, "failed": self.failed}
        return plan | counts | {"left": self.left, "seconds_left": self.seconds}


def progress(plan: Plan, records: Sequence[Record], now: float) -> Progress:
    """How far a plan is. The pace is that of what was finished since it started; before that, of
    the forecast."""
    of = {record.key: record for record in records}
    left, paced, failed, done = 0.0, 0.0, 0, 0
    count = 0
    for run in plan.runs:
        record = of.get(run.key)
        made = record is not None and _time(record) >= plan.started - 1
        if record is not None and record.final and (made or not plan.force):
            done += 1
            paced += run.seconds if made else 0.0
        elif record is not None and record.status == "failed" and made:
            failed += 1
            paced += run.seconds
        else:
            count += 1
            left += run.seconds
    gone = max(1.0, now - plan.started)
    rate = paced / gone if paced else float(plan.processes)
    return Progress(plan, done, failed, count, left / rate if count else None)


def _time(record: Record) -> float:
    try:
        return datetime.fromisoformat(record.time).timestamp()
    except ValueError:
        return 0.0
