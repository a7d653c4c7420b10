"""Records: one JSON a run, written whole or not at all; side files beside it. Never unpickled."""

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from harness.errors import HarnessError
from harness.files import stamp
from harness.records.index import Index
from harness.records.record import WHERE, Record, parse

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS, SPLIT = ".predictions.safetensors", ".split.json"  # suffixes of side files
UMASK = os.umask(0)  # which can only be asked by setting it
os.umask(UMASK)
MODE = 0o666 & ~UMASK
CHANGE = "change_elsewhere"  # mean over other datasets of accuracy minus zero-shot accuracy


@dataclass(frozen=True)
class Store:
    """A folder of records."""

    folder: Path

    def open(self) -> "Store":
        """Makes sure that records can be written and read here, before anything is computed.

        Raises:
            HarnessError: the folder cannot be made, read or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".locks").mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                list(self.folder.iterdir())
        except OSError as error:
            raise HarnessError(
                f"the results folder {self.folder} cannot be used ({error.strerror}). "
                "Give another one with --results DIR, or make it readable and writable."
            ) from error
        return self

    def path(self, run: Mapping[str, Any], key: str, suffix: str = ".json") -> Path:
        """Where a run's record (or a side file of it) lies: below its task and dataset."""
        name = f"{run['method']}-{run['shots']}shots-seed{run['seed']}-{key}{suffix}"
        return self.folder / _folder(run["task"]) / _folder(run["dataset"]) / _safe(name)

    def weights(self, fit: str) -> Path:
        """Where the weights of a fit lie, shared by runs that differ only in what they evaluate."""
        return self.folder / "fits" / f"{fit}.weights.safetensors"

    def write_split(self, fingerprint: str, split: Mapping[str, Any]) -> None:
        """Keeps a list of images under its fingerprint, once for all runs that were scored on it.

        Args:
            split: see predictions.read_split.

        Raises:
            HarnessError: it cannot be written.
        """
        path = self.folder / "splits" / f"{_safe(fingerprint)}{SPLIT}"
        text = json.dumps(split) + "\n"
        try:
            if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise HarnessError(f"{path} cannot be written: {error.strerror}.") from error

    def write(self, record: Record, predictions: Mapping[str, "Tensor"], model: Any = None) -> Path:
        """Writes the side files and then the record, each to a temporary name and renamed.

        A failure never replaces a finished record.

        Raises:
            HarnessError: it cannot be written (a full disk, say); nothing half-written is left.
        """
        path = self.path(record.run, record.key)
        if (
            record.status == "failed"
            and path.exists()
            and self.ended(record.run, record.key, self.version(record.run, record.key), False)
        ):
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if predictions:
                import safetensors.torch  # here: the leaderboard reads records without torch

                contents = {name: value.contiguous() for name, value in predictions.items()}
                side = self.path(record.run, record.key, PREDICTIONS)
                about = {"key": record.key}
                atomically(side, lambda p: safetensors.torch.save_file(contents, str(p), about))
            if model is not None and record.fit:
                weights = self.weights(record.fit)
                if not record.cost.get("fit_shared"):
                    weights.parent.mkdir(parents=True, exist_ok=True)
                    about = {
                        "cost": json.dumps(record.cost),
                        "run": json.dumps(record.run),
                        "classes": json.dumps(asdict(model.classes)),
                        "fit": record.fit,
                        "key": record.key,
                    }
                    atomically(weights, lambda p: model.save(p, about))
            content = {k: v for k, v in asdict(record).items() if k not in WHERE}
            text = json.dumps(content, indent=1, allow_nan=False) + "\n"
            atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HarnessError(f"{path} cannot be written: {reason}.") from error
        return path

    def records(self) -> list[Record]:
        """Every readable record, one a key; a file that is none is named in a warning.

        Raises:
            HarnessError: the folder does not exist or cannot be read.
        """
        return one_record_a_key(self._each())

    def files(self) -> list[Path]:
        """Every file that may hold a record.

        Raises:
            HarnessError: the folder does not exist or cannot be read.
        """
        if not os.access(self.folder, os.R_OK | os.X_OK) or not self.folder.is_dir():
            raise HarnessError(
                f"there is no readable results folder at {self.folder}. "
                "Give one with --results DIR."
            )
        return _files(self.folder)

    def _each(self) -> Iterator[Record]:
        for path in self.files():
            if (record := self.read(path)) is not None:
                yield replace(record, folder=self.folder, file=path)

    @staticmethod
    def read(path: Path) -> Record | None:
        """The record in a file, or None with a warning that names the file and what is wrong."""
        try:
            return parse(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            warnings.warn(f"{path} is not a readable record and is left out: {error}", stacklevel=3)
            return None

    def done(self) -> dict[str, Record]:
        """The finished records by key; none if the folder does not exist yet.

        Raises:
            HarnessError: the folder cannot be read.
        """
        if not os.path.lexists(self.folder):
            return {}
        return {record.key: record for record in self.records() if record.final}

    def version(self, run: Mapping[str, Any], key: str) -> str | None:
        """A hash of what is now written of a run, or None if nothing is."""
        try:
            return hashlib.sha256(self.path(run, key).read_bytes()).hexdigest()
        except OSError:
            return None

    def ended(
        self, run: Mapping[str, Any], key: str, before: str | None, force: bool
    ) -> Record | None:
        """A run's record if it need not be run: it is finished (unless `force`), or somebody wrote
        it since its `version` was `before`, whatever came of it. No clock is asked."""
        path = self.path(run, key)
        record = self.read(path) if path.exists() else None
        if record and ((record.final and not force) or self.version(run, key) != before):
            return record
        return None

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process alone may do the run now. A crashed process frees its claims."""
        lock = FileLock(self.folder / ".locks" / f"{key}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError) as error:
            raise HarnessError(
                f"{lock.lock_file} cannot be locked ({getattr(error, 'strerror', '') or error}), "
                "so that two processes could write one record. Give a --results folder on a disk "
                "that knows locks, and that is yours to write."
            ) from error
        try:
            yield True
        finally:
            lock.release()


def read_all(folders: Iterable[Path]) -> list[Record]:
    """The records of several folders, one a key, without what no table shows: the losses of the
    epochs, and all of the provenance but time and command.

    Raises:
        HarnessError: a folder cannot be read.
    """
    return one_record_a_key(record for folder in folders for record in _light_records(folder))


def _light_records(folder: Path) -> Iterator[Record]:
    """From the index where the files have not changed."""
    store = Store(folder)
    with Index(folder) as index:
        for path in store.files():
            record = index.record(path)
            if record is None:
                mark = stamp(path)
                whole = store.read(path)
                if whole is None:
                    continue
                record = _light(whole)
                index.learn(path, mark, record)
            yield replace(record, folder=folder, file=path)


def _light(record: Record) -> Record:
    cost = {name: value for name, value in record.cost.items() if not isinstance(value, list)}
    about: dict[str, Any] = {
        n: sys.intern(v) for n in ("time", "command") if (v := record.provenance.get(n))
    }
    if record.measures and "versions" in record.provenance:  # tables of costs tell them apart
        about["versions"] = record.provenance["versions"]
    return replace(record, cost=cost, provenance=about)


def one_record_a_key(records: Iterable[Record]) -> list[Record]:
    """Of records with the same key one, whatever their order: one with scores before one that is
    not applicable, and that before a failed one; then the newest; of copies one with its
    predictions. A run is in a folder twice if a file or a folder was copied."""
    found = dict[str, Record]()
    for record in records:
        there = found.setdefault(record.key, record)
        if there is record:
            continue
        new, old = _rank(record), _rank(there)
        if new > old or (new == old and _predicts(record) and not _predicts(there)):
            found[record.key] = record
    return list(found.values())


def _predicts(record: Record) -> bool:
    return record.file is not None and record.file.with_suffix(PREDICTIONS).is_file()


def _rank(record: Record) -> tuple[bool, bool, str, str]:
    done = record.status == "done"
    return done, record.final, record.time, json.dumps([record.scores, record.run], sort_keys=True)


def _files(folder: Path) -> list[Path]:
    """The regular .json files below a folder; what cannot be read is named in a warning."""

    def unreadable(error: OSError) -> None:
        warnings.warn(f"{error.filename} is left out: {error.strerror}", stacklevel=4)

    found, seen = [], {os.path.realpath(folder)}
    for where, below, names in os.walk(folder, onerror=unreadable, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]  # locks and plans
        for name in [*below]:  # a link may lead into a ring
            place = os.path.realpath(Path(where, name))
            if place in seen:
                below.remove(name)
            seen.add(place)
        found += [Path(where, name) for name in names
                  if name.endswith(".json") and not name.endswith(SPLIT)]  # fmt: skip
    return sorted((path for path in found if path.is_file()), key=lambda path: path.parts)


def digest(value: Any) -> str:
    """Sixteen hex digits of a JSON value's hash."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def atomically(path: Path, write: Any) -> None:
    """Calls `write` with a temporary path beside `path` and renames the result to it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        with suppress(OSError):  # some disks know no modes
            temporary.chmod(MODE)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _safe(name: str) -> str:
    """A file name of its own: whatever could leave the folder is replaced."""
    kept = "".join(c if c.isalnum() or c in "._-+" else "_" for c in name)
    return kept.lstrip(".") or "_"


def _folder(name: str) -> str:
    """The same of a folder, as long as a disk takes it; the names of files in it are whole."""
    return _safe(name).encode()[:200].decode(errors="ignore")
