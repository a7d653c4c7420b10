"""Runs on this machine: shared by processes, safe to interrupt."""

import os
import pickle
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from harness.config import Binding, Engine
from harness.dataset import Dataset
from harness.errors import HarnessError, OutOfTime, blaming
from harness.measure import device_name
from harness.records import plans
from harness.records.labels import differing, run_name
from harness.records.store import Record, Store
from harness.records.tables import duration, harmless
from harness.runs import provenance
from harness.runs.efficiency import forecast, forward_rate
from harness.runs.engine import execute
from harness.runs.executors.cards import (
    answers,
    cards,
    environment,
    most_processes,
    on_one_device,
)
from harness.runs.executors.shard import OPENING, RATE, VIEW
from harness.runs.images import check_images
from harness.runs.plan import Request
from harness.runs.prepared import PreparedRun
from harness.splits import Split
from harness.task import Measurement

START = 15  # seconds of work that repay the start of a process


def estimated_seconds(
    pending: Sequence[PreparedRun],
    runs: Sequence[PreparedRun] = (),
    done: Mapping[str, Record] | None = None,
) -> float:
    """Seconds that the pending runs may take in one process: as the finished ones among `runs` took
    on the same device, if there are some, else by a forecast."""
    pending = [run for run in pending if not run.refusal]
    if not pending:
        return 0.0
    paces = _paces(runs, done or {}, pending[0].context.clip.device)
    if paces:
        usual = statistics.median(paces.values())
        return sum(
            seconds * paces.get(run.method.name, usual)
            for run, seconds in zip(pending, each_seconds(pending), strict=True)
        )
    return forecast(pending, forward_rate(pending[0].context.clip))


def _paces(
    runs: Sequence[PreparedRun], done: Mapping[str, Record], device: torch.device
) -> dict[str, float]:
    """By method, how many seconds a finished run took for each of `each_seconds`; of those that
    trained here, on the same device with as many threads."""
    here = {"device": device_name(device), "threads": torch.get_num_threads()}
    mine = [
        (run, done[run.key])
        for run in runs
        if run.key in done
        and done[run.key].status == "done"
        and not done[run.key].measures
        and not done[run.key].cost.get("fit_shared")
        and {name: done[run.key].provenance.get(name) for name in here} == here
    ]
    taken, expected = defaultdict[str, float](float), defaultdict[str, float](float)
    for (run, record), seconds in zip(mine, each_seconds([r for r, _ in mine]), strict=True):
        spent = sum(v for name, v in record.cost.items() if name.endswith("_seconds"))
        taken[run.method.name] += spent
        expected[run.method.name] += seconds
    return {name: taken[name] / expected[name] for name in taken if expected[name]}


def each_seconds(pending: Sequence[PreparedRun]) -> list[float]:
    """About how many seconds each takes, beside each other."""
    return [0.0 if run.refusal else forecast([run], RATE, (OPENING, VIEW)) for run in pending]


def process_count(pending: Sequence[PreparedRun], seconds: float) -> int:
    """How many processes share the runs: engine.jobs, or as many as there are threads or cards and
    the work repays."""
    if not pending or any(isinstance(run.task.value, Measurement) for run in pending):
        return 1  # what is measured has nothing beside it
    context, settings = pending[0].context, pending[0].run.settings
    most = most_processes(settings, context.clip.device)
    most = most if settings.jobs else min(most, 1 + int(seconds / START))
    return min(most, len({run.fit_key for run in pending}))


def done_and_pending(
    runs: Sequence[PreparedRun], store: Store, force: bool
) -> tuple[Mapping[str, Record], list[PreparedRun]]:
    """The records that count as done, and the runs that have none."""
    done = {} if force else store.done()
    return done, [run for run in runs if run.key not in done]


@dataclass(frozen=True)
class Share:
    """What a helper process is told: the request as the first process got it, the versions of the
    records that were there before, where in the list of runs to begin, until when, the lists of
    images that the first process has drawn, and the command that records state."""

    request: Request
    plugins: Sequence[str]
    results: Path
    versions: Mapping[str, str | None]
    force: bool
    first: float
    deadline: float | None
    known: bytes
    command: str


def carry_out(
    request: Request,
    plugins: Sequence[str],
    store: Store,
    runs: Sequence[PreparedRun],
    pending: Sequence[PreparedRun],
    force: bool,
    jobs: int,
    max_hours: float | None = None,
) -> dict[str, Record]:
    """The records of all pending ones of the runs, by key, made by this process and `jobs` - 1
    helpers. The lists of images are written for all, because their units may have changed.

    Raises:
        HarnessError: the results folder cannot be used, or images cannot be read.
        OutOfTime: there are `max_hours`, and not all could be done.
        KeyboardInterrupt: with a sentence on what is kept and how to go on.
    """
    versions, deadline = begun(store, runs, pending, max_hours)
    device = pending[0].context.clip.device if pending else torch.device("cpu")
    every, settings = cards(device), pending[0].run.settings if pending else Engine()
    if every:  # a helper sees one card, and must know how many it shares it with
        beside = Binding("engine", "jobs", on_one_device(settings, device), "jobs")
        bindings = [*request.bindings, beside]
        request = replace(request, device="cuda", bindings=bindings)
    known = pending[0].context.known() if jobs > 1 else b""
    shares = [
        Share(
            request,
            plugins,
            store.folder,
            versions,
            force,
            number / jobs,
            deadline,
            known,
            provenance.command(),
        )
        for number in range(1, jobs)
    ]
    with announced(store, pending, jobs, force):
        with helper_processes(shares, every):
            ended = execute_all(store, pending, versions, force, deadline=deadline)
        return all_in_time(ended, pending, store, max_hours, force)


def begun(
    store: Store,
    runs: Sequence[PreparedRun],
    pending: Sequence[PreparedRun],
    max_hours: float | None,
) -> tuple[dict[str, str | None], float | None]:
    """The results folder and the images are looked at, and the lists of images are written: the
    versions of the pending records that are there, and until when on this machine's clock.

    Raises:
        HarnessError: the results folder cannot be used, or images cannot be read.
    """
    if max_hours is not None and not max_hours > 0:
        raise HarnessError(f"--max-hours must be more than 0, not {max_hours:g}.")
    deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
    store.open()
    check_images(pending)
    for split, dataset in {s.fingerprint: (s, r.run.data[s.classes.dataset])
                           for r in runs for s in r.evaluated.values()}.values():  # fmt: skip
        store.write_split(split.fingerprint, as_kept(split, dataset))
    return {run.key: store.version(run.identity, run.key) for run in pending}, deadline


def announced(
    store: Store, pending: Sequence[PreparedRun], processes: int, force: bool
) -> AbstractContextManager[None]:
    """Meanwhile others can read the plan."""
    apart = differing(run.identity for run in pending)
    every_run = [plans.Planned(run.key, run.fit_key, run_name(run.identity, apart), seconds)
                 for run, seconds in zip(pending, each_seconds(pending), strict=True)]  # fmt: skip
    return plans.announced(store, provenance.command(), processes, every_run, force)


def goes_on(force: bool) -> str:
    """How to go on with what a command left undone."""
    if force:
        return ("The same command would start over; without --force it keeps whatever has a "
                "record, old or new.")  # fmt: skip
    return "The same command goes on with the rest."


def all_in_time(
    ended: dict[str, Record],
    pending: Sequence[PreparedRun],
    store: Store,
    max_hours: float | None,
    force: bool,
) -> dict[str, Record]:
    """The records, if none is missing.

    Raises:
        OutOfTime: there was no time for some.
    """
    if len(ended) < len(pending):
        raise OutOfTime(
            f"--max-hours {max_hours:g}: {len(ended)} of {len(pending)} runs are finished and kept "
            f"in {store.folder}. {goes_on(force)}"
        )
    return ended


def interrupted(
    store: Store, pending: Sequence[PreparedRun], versions: Mapping[str, str | None], force: bool
) -> KeyboardInterrupt:
    """What a command that was stopped says: what is kept, and how to go on."""
    kept = sum(
        store.ended(r.identity, r.key, versions.get(r.key), force) is not None for r in pending
    )
    return KeyboardInterrupt(
        f"{kept} of {len(pending)} runs are finished and kept in {store.folder}.\n{goes_on(force)}"
    )


def as_kept(split: Split, dataset: Dataset) -> dict[str, Any]:
    """A list of images as it is kept beside the records; units only where they are not images."""
    with blaming(f"{split.classes.dataset}.unit"):
        units = split.units(dataset)
    return {
        "dataset": split.classes.dataset,
        "template": split.dataset_classes.template,
        "names": list(split.classes.names),
        "paths": [item.path for item in split.items],
        "labels": [item.label for item in split.items],
        "units": units if len({*units}) < len(units) else None,
    }


@contextmanager
def helper_processes(shares: Sequence[Share], every: Sequence[str] = ()) -> Iterator[None]:
    """Meanwhile another process works on each share, on the next one of `every` card; see
    executors/helper.py.

    A helper is told what to do through a pipe, and stops when the pipe closes: the kernel does that
    however this process ends.
    """
    command = [sys.executable, "-m", "harness.runs.executors.helper"]
    root = str(Path(__file__).parents[3])  # this harness, whatever the working directory
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    helpers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
            | environment(number, every),
        )
        for number, _ in enumerate(shares, 1)
    ]  # fmt: skip
    try:
        for helper, share in zip(helpers, shares, strict=True):
            assert helper.stdin is not None
            with suppress(BrokenPipeError):  # it could not start: this process does the work
                pickle.dump(share, helper.stdin)
                helper.stdin.flush()
        yield
        lost = [code for helper in helpers if (code := helper.poll())]
        if lost:
            warnings.warn(
                f"{len(lost)} of {len(helpers)} helper processes ended early (exit code {lost[0]}, "
                "perhaps for lack of memory): fewer processes than asked for shared the runs.",
                stacklevel=2,
            )
    finally:  # all is done, or the user stopped it
        for helper in helpers:
            helper.send_signal(signal.SIGINT)
            with suppress(BrokenPipeError):
                helper.stdin.close()  # type: ignore[union-attr]
        for helper in helpers:
            try:
                helper.wait(10)
            except subprocess.TimeoutExpired:
                helper.kill()


def execute_all(
    store: Store,
    pending: Sequence[PreparedRun],
    versions: Mapping[str, str | None],
    force: bool = False,
    first: float = 0.0,
    deadline: float | None = None,
) -> dict[str, Record]:
    """Runs what no other process is running; waits for the rest, and takes over what crashed.

    Args:
        versions: of the records when the command started: what is written anew meanwhile, by
            whatever process, is not run again, even with `force`.
        first: the share of the runs to begin after, so that processes start apart.
        deadline: of this machine's monotonic clock; a run that would not end before it is not
            begun.

    Raises:
        KeyboardInterrupt: with a sentence on what is kept and how to go on.
    """
    ended: dict[str, Record] = {}
    fitted = set[str]()  # here and now, which `force` need not do again for another evaluation
    start = int(first * len(pending))
    queue = [*pending[start:], *pending[:start]]
    apart = differing(run.identity for run in pending)
    pace = Pace(pending, deadline)
    with tqdm(total=len(queue), desc="runs", unit="run", disable=None) as bar:
        try:
            while queue:
                waiting = []
                for run in queue:
                    with store.claim(run.fit_key) as claimed:
                        if not claimed:
                            waiting.append(run)
                            continue
                        record = store.ended(run.identity, run.key, versions.get(run.key), force)
                        elsewhere = record is not None
                        if record is None:
                            if not pace.allows(run):
                                continue
                            name = harmless(run_name(run.identity, apart))
                            bar.set_postfix_str(name)
                            record = _executed(store, run, name, force, run.fit_key in fitted)
                            if record.status == "done":
                                fitted.add(run.fit_key)
                            pace.finished(run)
                        ended[run.key] = record
                        if not run.refusal:
                            said = outcome(run, record, elsewhere, apart)
                            tqdm.write(harmless(said) + pace.left(bar, ended))
                        bar.update()
                if len(waiting) == len(queue):
                    bar.set_postfix_str("waiting for another process")
                    time.sleep(1)
                queue = waiting
        except KeyboardInterrupt:
            raise interrupted(store, pending, versions, force) from None
    return ended


def _executed(store: Store, run: PreparedRun, name: str, force: bool, fitted: bool) -> Record:
    """The record of a run that this process claims, written with what else the run leaves.

    Raises:
        HarnessError: the device answers no more.
    """
    stored = None if force and not fitted else store.weights(run.fit_key)
    with plans.at_work(store, run.fit_key, name):
        record, tensors, model = execute(run.run, run.context, stored)
        store.write(record, tensors, model)
    device = run.context.clip.device
    if record.status == "failed" and not answers(device):
        raise HarnessError(
            f"{name}: failed ({record.reason}), and {device} has not answered since, so that all "
            f"further runs would fail. {goes_on(force)}"
        )
    return record


class Pace:
    """How long runs take here, compared with the forecast, and whether more may begin.

    processes: how many share the work that `finished` counts.
    """

    def __init__(self, pending: Sequence[PreparedRun], deadline: float | None) -> None:
        self.deadline, self.started = deadline, time.monotonic()
        self.seconds = {r.key: s for r, s in zip(pending, each_seconds(pending), strict=True)}
        self.forecast, self.processes = 0.0, 1

    def finished(self, run: PreparedRun) -> None:
        """Counts a run that is done."""
        self.forecast += self.seconds[run.key]

    def allows(self, *runs: PreparedRun) -> bool:
        """Whether one process ends the runs before the deadline, as far as that is known."""
        if self.deadline is None:
            return True
        now = time.monotonic()
        factor = self.processes * (now - self.started) / self.forecast if self.forecast else 0.0
        return now + factor * sum(self.seconds[run.key] for run in runs) < self.deadline

    def left(self, bar: Any, ended: Iterable[str]) -> str:
        """Where there is no bar: how many runs are done, and how long the rest may take, compared
        with the forecast of those that are done."""
        done = {*ended}
        if not bar.disable or len(done) == bar.total:
            return ""
        rest = sum(seconds for key, seconds in self.seconds.items() if key not in done)
        counted = sum(self.seconds.get(key, 0.0) for key in done)
        said = f"{len(done)} of {bar.total}"
        if counted:
            gone = time.monotonic() - self.started
            said += f", {duration(gone / counted * rest)} left"
        return f" [{said}]"


def outcome(run: PreparedRun, record: Record, elsewhere: bool, apart: Sequence[str]) -> str:
    """What is said of a run that ended."""
    name = run_name(run.identity, apart)
    if record.status != "done":
        return f"{name}: {record.status}, {record.reason}"
    if isinstance(run.task.value, Measurement):
        return f"{name}: measured"
    scores = ", ".join(f"{name} {100 * s['accuracy']:.2f}" for name, s in record.scores.items())
    seconds = sum(value for name, value in record.cost.items() if name.endswith("_seconds"))
    took = f"{seconds:.1f} s" + ", another process" * elsewhere
    return "; ".join([f"{name}: {scores} ({took})", *record.checks])
