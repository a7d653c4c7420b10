"""What was computed before: cells, so that predictions are read once, and draws of large tables.

One SQLite file in the user's cache, of limited size. A cell is known by the stamps of all files
that it was computed from, their records' keys and counts, and the code; draws by the contents of
the sample's cells. What is damaged is computed again.
"""

import contextlib
import hashlib
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from harness.certainty.statistics import DRAWS, Array, Cell, Sample
from harness.files import cache_folder, stamp

LEAST, MOST = 100, 256 * 2**20  # runs that are worth it, and bytes of all that is kept
SIZE = 32  # bytes before a content: a checksum of it and its key
TABLE = "create table if not exists cells (key text primary key, used real, content blob)"
ARRAYS = ("accuracy", "by_unit", "by_both")


def cell(files: Sequence[Path], about: object, compute: Callable[[], Cell]) -> Cell:
    """The cell of some files of predictions; `about`: all else that it depends on."""
    if len(files) < LEAST:
        return compute()
    marks = [stamp(path) for path in files]
    if not all(marks):
        return compute()
    key = _key(about, [str(p) for p in files], marks)
    found = _read(key)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        if found is not None:
            return _cell(found)
    made = compute()
    _write(key, _arrays(made))
    return made


def draws(sample: Sample, compute: Callable[[], Array]) -> Array:
    """The draws [B, M] of a sample that has many runs."""
    shape = (len(sample.labels), len(sample.seeds), len(sample.cells))
    if math.prod(shape) < LEAST:
        return compute()
    parts = [
        (name, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest())
        for each in sample.cells.values()
        for name, value in sorted(_arrays(each).items())
    ]
    key = _key("draws", shape, list(sample.cells), sample.statistic, sample.shared_fit, parts)
    found = (_read(key) or {}).get("draws")
    if found is None or found.shape != (DRAWS, len(sample.labels)):
        found = compute()
        _write(key, {"draws": np.ascontiguousarray(found)})
    return found


def _key(*parts: object) -> str:
    content = repr([_code(), *parts]).encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest()


def _read(key: str) -> dict[str, Array] | None:
    with contextlib.suppress(sqlite3.Error, OSError, SafetensorError, ValueError):
        if not _path().is_file():
            return None
        with contextlib.closing(sqlite3.connect(_path(), timeout=5)) as database:
            row = database.execute("select content from cells where key = ?", (key,)).fetchone()
        whole = row[0] if row and isinstance(row[0], bytes) else b""
        mark, content = whole[:SIZE], whole[SIZE:]
        return load(content) if _checksum(key, content) == mark else None
    return None


def _write(key: str, arrays: dict[str, Array]) -> None:
    with contextlib.suppress(sqlite3.Error, OSError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(_path(), timeout=5)) as database, database:
            database.execute(TABLE)
            content = save(arrays)
            row = (key, time.time(), _checksum(key, content) + content)
            database.execute("insert or replace into cells values (?, ?, ?)", row)
            total = database.execute("select sum(length(content)) from cells").fetchone()[0]
            if total > MOST:
                database.execute(
                    "delete from cells where key in "
                    "(select key from cells order by used limit (select count(*) / 2 from cells))"
                )


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def _arrays(found: Cell) -> dict[str, Array]:
    arrays = {name: np.ascontiguousarray(getattr(found, name)) for name in ARRAYS}
    arrays["counts"] = np.array([found.images, found.units])
    if found.hits is not None and found.sizes is not None:
        arrays |= {"hits": np.ascontiguousarray(found.hits), "sizes": found.sizes}
    return arrays


def _cell(arrays: dict[str, Array]) -> Cell:
    images, units = (int(number) for number in arrays["counts"])
    return Cell(
        arrays["accuracy"], images, units, arrays["by_unit"], arrays["by_both"],
        arrays.get("hits"), arrays.get("sizes"),
    )  # fmt: skip


def _path() -> Path:
    return cache_folder() / "cells.sqlite"


def _code() -> str:
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in ("kept", "samples", "statistics")]
    files.append(here.parent / "records" / "predictions.py")
    source = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(np.__version__.encode() + source).hexdigest()  # its draws may change
