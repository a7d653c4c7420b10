"""The fits of a plan that a cluster carries out, and their records, which are written here."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from harness.errors import HarnessError
from harness.records import plans
from harness.records.labels import differing, run_name
from harness.records.store import Record, Store
from harness.records.tables import harmless
from harness.runs.engine import execute
from harness.runs.executors import local
from harness.runs.executors.remote import Finished, Refused, Weights
from harness.runs.prepared import PreparedRun
from harness.runs.provenance import versions as versions_here

MOST = 256  # fits that are with the cluster at once: each holds a lock file open


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
        self.packages = versions_here()
        self.others: set[tuple[str, str]] = set()
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

    def carry_out(self, ray: Any, start: Callable[..., Any], places: Callable[[], int]) -> None:
        """Gives the fits to Ray, and writes the records as they arrive.

        Args:
            start: begins a task and returns its reference; takes what `run_fit` does after `order`.
            places: how many tasks can run at once now.

        Raises:
            HarnessError: a worker refuses, or runs were lost; all that began was waited for.
            KeyboardInterrupt: with a sentence on what is kept and how to go on.
        """
        try:
            while self.queue or self.flights:
                self._give(start, places())
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
                f"{self.store.folder}. {local.goes_on(self.force)}")  # fmt: skip
        if self.refused:
            raise HarnessError(f"{self.refused} {kept}")
        if self.lost:
            name, why = next(iter(self.lost.items()))
            raise HarnessError(f"{len(self.lost)} runs were lost with their workers, such as "
                               f"{name} ({why}). {kept}")  # fmt: skip

    def _give(self, start: Callable[..., Any], places: int) -> None:
        """Gives Ray as many fits as it has places for, and more, so that none is idle and a cluster
        sees that it should grow; where the time is limited no more, so that they begin at once."""
        self.pace.processes = max(1, places)
        room = max(1, places) if self.pace.deadline is not None else 2 * places + 4
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
        ended: list[Finished] = []
        try:
            answer = ray.get(ref)
            if isinstance(answer, Refused):
                self.refused = answer.reason
            else:
                ended = answer
        except ray.exceptions.RayTaskError as error:
            said = str(error).strip().rpartition("\n")[2].rstrip(".")
            self.refused = (f"a worker failed: {said}. Is the same version of the harness "
                            "installed on every node?")  # fmt: skip
        except ray.exceptions.RayError as error:
            why = type(error).__name__
            self.lost |= {run_name(run.identity, self.apart): why for run in flight.runs}
        if self.refused:
            self.queue = []
        for run, each in zip(flight.runs, ended, strict=False):
            self._compare(each.record.provenance["versions"])
            model = each.weights and Weights(each.weights, run.train.classes)
            self.store.write(each.record, each.predictions, model)
            self.pace.finished(run)
            self._count(run, each.record)
        del self.flights[ref]
        flight.claim.close()

    def _compare(self, versions: Mapping[str, str]) -> None:
        """A warning, once for each, that a worker has another version of a package."""
        for name, mine in self.packages.items():
            if versions[name] != mine and (name, versions[name]) not in self.others:
                self.others.add((name, versions[name]))
                warnings.warn(f"a worker has {name} {versions[name]}, and this command {mine}: "
                              "numbers may differ in the last digits.", stacklevel=2)  # fmt: skip

    def _count(self, run: PreparedRun, record: Record, elsewhere: bool = False) -> None:
        self.ended[run.key] = record
        if not run.refusal:
            said = local.outcome(run, record, elsewhere, self.apart)
            tqdm.write(harmless(said) + self.pace.left(self.bar, self.ended))
        self.bar.update()
