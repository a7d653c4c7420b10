"""Runs on a Ray cluster: one task for each fit; this process writes the records."""

import importlib.util
import logging
import math
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from harness.config import Binding, cache_folder
from harness.errors import HarnessError
from harness.records import plans
from harness.records.labels import differing, run_name
from harness.records.store import Record, Store
from harness.records.tables import harmless
from harness.runs.context import PreparedRun
from harness.runs.engine import execute
from harness.runs.executors import local
from harness.runs.executors.cards import VISIBLE
from harness.runs.executors.remote import (
    Finished,
    Order,
    Refused,
    SentPlugin,
    Weights,
    run_fit,
)
from harness.runs.plan import Request
from harness.task import Measurement

ROOT = Path(__file__).parents[3]  # this harness
RETRIES = 3  # of a fit whose worker or node is lost
MOST = 256  # fits that are with Ray at once: each holds a lock file open


@dataclass(frozen=True)
class Placement:
    """Where the runs go: a cluster's address, or None for a local Ray, and what each run needs.

    gpus: cards, or the part of one; None: 1 if the command's device is a card, else 0.
    cpus: processors and threads; None: as many threads as a run of this machine has.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: int | None = None

    def checked(self) -> "Placement":
        """Itself.

        Raises:
            HarnessError: Ray is not installed, or cannot place such numbers.
        """
        if importlib.util.find_spec("ray") is None:
            raise HarnessError(
                "--executor ray needs Ray, which is not installed: "
                "pip install 'vlm-peft-harness[ray]'."
            )
        if self.cpus is not None and self.cpus < 1:
            raise HarnessError(f"--cpus-per-run must be at least 1, not {self.cpus}.")
        gpus = self.gpus or 0
        if not (0 <= gpus <= 1 or (math.isfinite(gpus) and gpus == int(gpus) > 0)):
            raise HarnessError(
                f"--gpus-per-run must be from 0 to 1, or a whole number, not {gpus:g}."
            )
        return self


def carry_out(
    request: Request,
    plugins: Sequence[str],
    store: Store,
    runs: Sequence[PreparedRun],
    pending: Sequence[PreparedRun],
    force: bool,
    placement: Placement,
    max_hours: float | None = None,
) -> dict[str, Record]:
    """The records of all pending ones of the runs, by key, made by a Ray cluster.

    Raises:
        HarnessError: Ray is not there or cannot be reached, a worker has other code, data or
            weights, or runs were lost with their workers; what is finished is kept.
        OutOfTime: there are `max_hours`, and not all could be done.
        KeyboardInterrupt: with a sentence on what is kept and how to go on.
    """
    check(request, pending)
    versions, deadline = local.begun(store, runs, pending, max_hours)
    with Fits(store, pending, versions, force, deadline) as fits:
        fits.refused_here()
        if fits.queue:
            cpus = placement.cpus or torch.get_num_threads()
            gpus = placement.gpus
            if gpus is None:
                gpus = 1.0 if pending[0].context.clip.device.type == "cuda" else 0.0
            with local.announced(store, pending, 1), connected(placement.address) as ray:
                cluster = Cluster(ray, cpus, gpus, placement.address)
                fits.carry_out(cluster, pickle.dumps(order(request, plugins, cluster)))
    return local.all_in_time(fits.ended, pending, store, max_hours)


def check(request: Request, pending: Sequence[PreparedRun]) -> None:
    """Raises HarnessError for what cannot be done on a cluster, before anything is computed."""
    if not request.travels:
        raise HarnessError(
            "--executor ray takes names of methods, tasks and datasets, because classes and "
            "objects do not travel. Put them into a --plugin file."
        )
    for given in request.bindings:
        if given.target == "engine" and given.name in ("jobs", "jobs_per_gpu"):
            raise HarnessError(
                f"{given.origin} is of --executor local. With --executor ray, --cpus-per-run and "
                "--gpus-per-run decide how many runs go at once."
            )
    if ":" in (request.device or ""):
        raise HarnessError(f"--device {request.device}: Ray chooses the card. Give --device cuda.")
    measured = [run for run in pending if isinstance(run.task.value, Measurement)]
    if measured:
        raise HarnessError(f"{measured[0].task.name} measures a machine with nothing beside it: "
                           "run it without --executor ray.")  # fmt: skip


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster, or with one of its own on this machine, which ends with it.

    Raises:
        HarnessError: no connection.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # else local workers give way to all others
    import ray

    own = {"include_dashboard": False} if address is None else {}
    try:
        with chdir(ROOT):  # workers search this folder for modules, and not the user's
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise HarnessError(
            f"no connection to a Ray cluster at {address}: {said}. Start one with `ray start "
            "--head`, or leave --address out for a Ray on this machine."
            if address else f"Ray cannot be started on this machine: {said}."
        ) from error  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class Cluster:
    """Ray's nodes, seen as places for runs of `cpus` processors and `gpus` cards."""

    ray: Any
    cpus: int
    gpus: float
    address: str | None
    warned: bool = False

    def places(self) -> int:
        """How many runs fit at once, on all nodes that live now; a warning, once, if none does.

        Raises:
            HarnessError: none ever will, because it is this machine alone.
        """
        count = sum(self._of(node["Resources"]) for node in self.ray.nodes() if node["Alive"])
        if not count and not self.warned:
            said = f"no node has {self.cpus} processors and {self.gpus:g} cards for a run"
            if self.address is None:
                raise HarnessError(f"{said}. Ask for less with --cpus-per-run and --gpus-per-run.")
            warnings.warn(f"{said}: all runs wait until one has.", stacklevel=2)
            self.warned = True
        return count

    def _of(self, resources: Mapping[str, float]) -> int:
        most = int(resources.get("CPU", 0) / self.cpus)
        if self.gpus:
            cards = int(resources.get("GPU", 0))
            most = min(most, cards * self.to_a_card if self.gpus <= 1 else int(cards / self.gpus))
        return most

    @property
    def to_a_card(self) -> int:
        """How many runs share the memory of a card."""
        return max(1, int(1 / self.gpus + 1e-9)) if self.gpus else 1


def order(request: Request, plugins: Sequence[str], cluster: Cluster) -> Order:
    """What the workers are told."""
    beside = Binding("engine", "jobs", cluster.to_a_card, "--gpus-per-run")
    asked = replace(
        request,
        root=request.root and request.root.absolute(),
        bindings=[*request.bindings, beside],
        device=request.device if cluster.gpus else "cpu",
    )
    named_cache = asked.disk is not None and asked.disk.folder != cache_folder()
    sent = [SentPlugin.of(each) for each in plugins]
    return Order(asked, sent, cluster.cpus, Path.cwd(), sys.argv[1:], named_cache)


_card: str | None = None  # the card that this process plans on


def on_its_card(
    order: bytes, wanted: Mapping[str, Mapping[str, Any]], weights: bytes | None
) -> list[Finished] | Refused:
    """The task: `run_fit` in a process that has used no other card before."""
    global _card
    card = os.environ.get(VISIBLE)
    if card != _card and torch.cuda.is_initialized():
        os._exit(1)  # CUDA keeps its first card: Ray tries again in another process
    _card = card
    return run_fit(order, wanted, weights)


@dataclass
class Flight:
    """A fit that was given to Ray: its runs, and the claim on it."""

    runs: Sequence[PreparedRun]
    claim: ExitStack


class Fits:
    """The fits that are to be done, and what became of each run: a record in `ended`, or in `lost`
    the reason why there is none."""

    def __init__(
        self,
        store: Store,
        pending: Sequence[PreparedRun],
        versions: Mapping[str, str | None],
        force: bool,
        deadline: float | None,
    ) -> None:
        self.store, self.pending, self.versions, self.force = store, pending, versions, force
        self.apart = differing(run.identity for run in pending)
        self.pace = local.Pace(pending, deadline)
        groups: dict[str, list[PreparedRun]] = {}
        for run in pending:
            if not run.refusal:
                groups.setdefault(run.fit_key, []).append(run)
        self.queue = list(groups.values())
        self.flights: dict[Any, Flight] = {}
        self.ended: dict[str, Record] = {}
        self.lost: dict[str, str] = {}
        self.refused: str | None = None
        self.bar = tqdm(total=len(pending), desc="runs", unit="run", disable=None)

    def __enter__(self) -> "Fits":
        return self

    def __exit__(self, *_error: object) -> None:
        for flight in self.flights.values():
            flight.claim.close()
        self.bar.close()

    def refused_here(self) -> None:
        """The records of runs that a method cannot serve: nothing is computed for them."""
        for run in self.pending:
            if run.refusal:
                record, _, _ = execute(run.run, run.context)
                self.store.write(record, {})
                self._count(run, record)

    def carry_out(self, cluster: Cluster, order: bytes) -> None:
        """Gives the fits to Ray, and writes the records as they arrive.

        Raises:
            HarnessError: a worker refuses, or runs were lost; all others were waited for.
            KeyboardInterrupt: with a sentence on what is kept and how to go on.
        """
        ray = cluster.ray
        told = ray.put(order)
        task = ray.remote(  # by default a worker with a card would end after each task
            num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_calls=0, max_retries=RETRIES
        )(on_its_card)
        try:
            while self.queue or self.flights:
                self._give(cluster.places(), partial(task.remote, told))
                if self.flights:
                    for ref in ray.wait([*self.flights], timeout=1)[0]:
                        self._take(ray, ref)
                elif self.queue:
                    self.bar.set_postfix_str("waiting for another process")
                    time.sleep(1)
        except KeyboardInterrupt:
            if self.flights:
                for ref in ray.wait([*self.flights], num_returns=len(self.flights), timeout=0)[0]:
                    self._take(ray, ref)
            raise local.interrupted(self.store, self.pending, self.versions, self.force) from None
        kept = (f"{len(self.ended)} of {len(self.pending)} runs are finished and kept in "
                f"{self.store.folder}. The same command goes on with the rest.")  # fmt: skip
        if self.refused:
            raise HarnessError(f"{self.refused} {kept}")
        if self.lost:
            name, why = next(iter(self.lost.items()))
            raise HarnessError(f"{len(self.lost)} runs were lost with their workers, such as "
                               f"{name} ({why}). {kept}")  # fmt: skip

    def _give(self, places: int, start: Callable[..., Any]) -> None:
        """Gives Ray as many fits as it has places for, and some more, so that none is empty; where
        the time is limited no more, so that they begin at once."""
        self.pace.processes = max(1, places)
        room = places if self.pace.deadline is not None else 2 * places + 4
        waiting = []
        while self.queue and len(self.flights) < min(MOST, room):
            group, claim = self.queue.pop(0), ExitStack()
            fit = group[0].fit_key
            if not claim.enter_context(self.store.claim(fit)):
                waiting.append(group)
                continue
            left = [run for run in group if not self._elsewhere(run)]
            if not left or not self.pace.allows(*left):
                claim.close()
                continue
            name = harmless(run_name(left[0].identity, self.apart))
            claim.enter_context(plans.at_work(self.store, fit, name))
            weights = None
            with suppress(OSError):
                weights = None if self.force else self.store.weights(fit).read_bytes()
            ref = start({run.key: run.identity for run in left}, weights)
            self.flights[ref] = Flight(left, claim)
        self.queue += waiting

    def _elsewhere(self, run: PreparedRun) -> bool:
        """Whether another process has done it meanwhile."""
        before = self.versions.get(run.key)
        record = self.store.ended(run.identity, run.key, before, self.force)
        if record is not None:
            self._count(run, record, elsewhere=True)
        return record is not None

    def _take(self, ray: Any, ref: Any) -> None:
        """Writes what a task returned."""
        flight = self.flights[ref]
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            said = str(error).strip().rpartition("\n")[2]
            answer = Refused(f"a worker failed: {said}. Is the same version of the harness "
                             "installed on every node?")  # fmt: skip
        except ray.exceptions.RayError as error:
            answer = []
            why = type(error).__name__
            self.lost |= {run_name(run.identity, self.apart): why for run in flight.runs}
        if isinstance(answer, Refused):
            self.refused, self.queue = answer.reason, []
            answer = []
        for run, each in zip(flight.runs, answer, strict=False):
            model = each.weights and Weights(each.weights, run.train.classes)
            self.store.write(each.record, each.predictions, model)
            self.pace.finished(run)
            self._count(run, each.record)
        del self.flights[ref]
        flight.claim.close()

    def _count(self, run: PreparedRun, record: Record, elsewhere: bool = False) -> None:
        self.ended[run.key] = record
        if not run.refusal:
            said = local.outcome(run, record, elsewhere, self.apart)
            tqdm.write(harmless(said) + local.left(self.bar, len(self.ended)))
        self.bar.update()
