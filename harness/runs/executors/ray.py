"""Runs on a Ray cluster: one task for each fit; this process writes the records."""

import importlib.util
import logging
import math
import os
import pickle
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.config import Binding
from harness.errors import HarnessError, one_line
from harness.files import cache_folder
from harness.records.store import Record, Store
from harness.runs import provenance
from harness.runs.executors import local
from harness.runs.executors.cards import VISIBLE
from harness.runs.executors.fits import Fits
from harness.runs.executors.remote import Finished, Order, Refused, SentPlugin, run_fit
from harness.runs.plan import Request
from harness.runs.prepared import PreparedRun
from harness.task import Measurement

ROOT = Path(__file__).parents[3]  # this harness
PATIENCE = 10  # seconds for a cluster to answer
RETRIES = 3  # of a fit whose worker or node is lost


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
        part = 0 <= gpus <= 1 and round(gpus, 4) == gpus  # Ray counts in ten thousandths
        if not part and not (math.isfinite(gpus) and gpus == int(gpus) > 0):
            raise HarnessError(
                "--gpus-per-run must be from 0 to 1, with up to four decimals, or a whole number, "
                f"not {gpus:g}."
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
            with local.announced(store, pending, 1, force), connected(placement.address) as ray:
                cluster = Cluster(ray, cpus, gpus, placement.address)
                told = ray.put(pickle.dumps(order(request, plugins, cluster)))
                task = ray.remote(  # by default a worker with a card would end after each task
                    num_cpus=cpus, num_gpus=gpus, max_calls=0, max_retries=RETRIES
                )(on_its_card)
                fits.carry_out(ray, partial(task.remote, told), cluster.places)
    return local.all_in_time(fits.ended, pending, store, max_hours, force)


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
                f"{given.origin} belongs to --executor local. With --executor ray, "
                "--cpus-per-run and --gpus-per-run decide how many runs go at once."
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

    own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    host, _, port = (address or "").rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), PATIENCE).close()
        with chdir(ROOT):  # workers search this folder for modules, and not the user's
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        said = one_line(error)[:300]
        raise HarnessError(
            f"no connection to a Ray cluster at {address}: {said.rstrip('.')}. Start one with `ray "
            "start --head`, or leave --address out for a Ray on this machine."
            if address else f"Ray cannot be started on this machine: {said.rstrip('.')}."
        ) from error  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class Cluster:
    """Ray's nodes, seen as places for runs of `cpus` threads and `gpus` cards."""

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
            said = f"no node has room for a run with CPUs: {self.cpus}, GPUs: {self.gpus:g}"
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
    return Order(asked, sent, cluster.cpus, Path.cwd(), provenance.command(), named_cache)


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
