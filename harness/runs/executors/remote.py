"""The runs of a fit on a machine that shares no folder with the command: what it is sent, how it
plans them itself, and what it refuses."""

import functools
import hashlib
import os
import pickle
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import registry
from harness.dataset import Classes
from harness.errors import HarnessError
from harness.files import cache_folder
from harness.records.store import Record, Store
from harness.runs import provenance
from harness.runs.engine import execute
from harness.runs.executors.cards import answers
from harness.runs.plan import Request, plan
from harness.runs.prepared import PreparedRun

PARTS = {  # of a run's identity, in words
    "code": "code of the method",
    "engine": "version of the harness",
    "fingerprints.weights": "weights of the backbone",
    "fingerprints": "data",
}


@dataclass(frozen=True)
class SentPlugin:
    """What --plugin names: a module that is installed on every machine, or a file with its text."""

    name: str
    text: bytes | None = None
    sha256: str = ""

    @classmethod
    def of(cls, reference: str) -> "SentPlugin":
        """The plugin as it is here."""
        if not reference.endswith(".py"):
            return cls(reference)
        text = Path(reference).read_bytes()
        return cls(Path(reference).name, text, hashlib.sha256(text).hexdigest())

    def unpacked(self, folder: Path) -> str:
        """What --plugin says on this machine; a file is written below `folder`, under its name.

        Raises:
            HarnessError: the text is not the one that was sent.
        """
        if self.text is None:
            return self.name
        if hashlib.sha256(self.text).hexdigest() != self.sha256:
            raise HarnessError(f"--plugin {self.name} is not the file that the command sent.")
        folder.mkdir()
        path = folder / Path(self.name).name
        path.write_bytes(self.text)
        return str(path)


@dataclass(frozen=True)
class Order:
    """What every worker is told: the request, the plugins, the threads of a run, the working folder
    and the command that records state, and whether it named a cache folder."""

    request: Request
    plugins: Sequence[SentPlugin]
    threads: int
    folder: Path
    command: str
    named_cache: bool = True


@dataclass(frozen=True)
class Finished:
    """A run that ended on a worker; `weights`: the file of the fit, if this run made it."""

    record: Record
    predictions: Mapping[str, Tensor]
    weights: bytes | None


@dataclass(frozen=True)
class Refused:
    """Why a worker does not run what it was sent."""

    reason: str


@dataclass(frozen=True)
class Weights:
    """A fitted model as the file that holds it: what `Store.write` keeps of it."""

    content: bytes
    classes: Classes

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Writes the file, in which `about` stands already."""
        path.write_bytes(self.content)


@functools.lru_cache(maxsize=1)
def planned(order: bytes) -> dict[str, PreparedRun]:
    """This machine's own plan by key, made once in a process.

    Raises:
        HarnessError: it cannot be made here.
    """
    asked: Order = pickle.loads(order)
    provenance.state(asked.command)
    with suppress(OSError):
        os.chdir(asked.folder)  # what relative paths start from, where it is here
    request = asked.request
    if request.disk is not None and not asked.named_cache:
        request = replace(request, disk=replace(request.disk, folder=cache_folder()))
    with tempfile.TemporaryDirectory() as folder:
        every = enumerate(asked.plugins)
        plugins = [each.unpacked(Path(folder, str(number))) for number, each in every]
        runs = plan(request, registry.load(plugins))
        found = {run.key: run for run in runs}  # while the files are there: they are hashed
    torch.set_num_threads(asked.threads)  # threads change the last bits
    return found


def run_fit(
    order: bytes, wanted: Mapping[str, Mapping[str, Any]], weights: bytes | None = None
) -> list[Finished] | Refused:
    """Carries out the runs of one fit, which is trained once; writes to no results folder.

    Args:
        order: a pickled `Order`.
        wanted: the identity of each run by its key, as the command sees it.
        weights: the file of the fit, if there is one.
    """
    try:
        runs = planned(order)
        for key, identity in wanted.items():
            if key not in runs:
                raise HarnessError(difference(identity, runs))
    except HarnessError as error:
        return Refused(f"the worker on {platform.node()} refuses: {error}")
    ended = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for run in (runs[key] for key in wanted):
            path = store.weights(run.fit_key)
            if weights is not None and not path.exists():
                path.parent.mkdir()
                path.write_bytes(weights)
            record, predictions, model = execute(run.run, run.context, path)
            if record.status == "failed" and not answers(run.context.clip.device):
                os._exit(1)  # Ray gives the fit to another worker
            made = model is not None and record.fit and not record.cost.get("fit_shared")
            if made:
                store.write(record, {}, model)
            ended.append(Finished(record, predictions, path.read_bytes() if made else None))
    return ended


def difference(identity: Mapping[str, Any], runs: Mapping[str, PreparedRun]) -> str:
    """What a run differs in from the one of this machine that is most like it."""
    here = min((differing_parts(identity, run.identity) for run in runs.values()), key=len)
    every = [f"{_in_words(path)} ({path} is {mine!r} there and {sent!r} for the command)"
             for path, (sent, mine) in here.items()]  # fmt: skip
    name = " ".join(str(identity.get(part)) for part in ("method", "task", "dataset"))
    more = f", and {len(every) - 3} more" * (len(every) > 3)
    remedy = "Make it the same on all machines"
    if "settings.precision" in here:
        remedy = "The device decides, unless --precision is given"
    return (
        f"{name} seed {identity.get('seed')} differs there in the {', the '.join(every[:3])}{more}"
        f". {remedy}."
    )


def differing_parts(sent: Any, mine: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The places where two identities differ, with both values; what the key leaves out is not
    compared."""
    if isinstance(sent, Mapping) and isinstance(mine, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for name in dict.fromkeys([*sent, *mine]):
            if path or name not in ("overrides", "given"):
                inner = f"{path}.{name}" if path else name
                found |= differing_parts(sent.get(name), mine.get(name), inner)
        return found
    return {} if sent == mine else {path: (sent, mine)}


def _in_words(path: str) -> str:
    return next((said for part, said in PARTS.items() if path.startswith(part)), "settings")
