"""Cells that were computed before, so that predictions are read once.

One SQLite file in the user's cache, of limited size. A cell is known by the stamps of all files
that it was computed from, what their records count, and the code; a damaged one is computed again.
"""

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from harness.certainty.statistics import Array, Cell
from harness.files import cache_folder, stamp

LEAST, MOST = 100, 256 * 2**20  # files that are worth it, and bytes of all cells
TABLE = "create table if not exists cells (key text primary key, used real, content blob)"
ARRAYS = ("accuracy", "by_unit", "by_both")


def cell(files: Sequence[Path], about: object, compute: Callable[[], Cell]) -> Cell:
    """The cell of some files of predictions; `about`: all else that it depends on."""
    if len(files) < LEAST:
        return compute()
    marks = [stamp(path) for path in files]
    if not all(marks):
        return compute()
    key = hashlib.sha256(repr([_code(), about, [str(p) for p in files], marks]).encode(
        errors="surrogatepass"
    )).hexdigest()  # fmt: skip
    found = _read(key)
    if found is None:
        found = compute()
        _write(key, found)
    return found


def _read(key: str) -> Cell | None:
    with contextlib.suppress(sqlite3.Error, OSError, SafetensorError, KeyError, ValueError):
        if not _path().is_file():
            return None
        with contextlib.closing(sqlite3.connect(_path(), timeout=5)) as database:
            row = database.execute("select content from cells where key = ?", (key,)).fetchone()
        return None if row is None else _cell(load(row[0]))
    return None


def _write(key: str, found: Cell) -> None:
    with contextlib.suppress(sqlite3.Error, OSError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(_path(), timeout=5)) as database, database:
            database.execute(TABLE)
            row = (key, time.time(), save(_arrays(found)))
            database.execute("insert or replace into cells values (?, ?, ?)", row)
            total = database.execute("select sum(length(content)) from cells").fetchone()[0]
            if total > MOST:
                database.execute(
                    "delete from cells where key in "
                    "(select key from cells order by used limit (select count(*) / 2 from cells))"
                )


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
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
