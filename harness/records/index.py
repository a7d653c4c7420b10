"""What was read of a folder of records before, so that a hundred thousand are not parsed again.

One SQLite file a folder, in the user's cache. An entry counts only as long as the record's file is
the same one (inode, size and both times) and the code that reads it is, too; whatever is wrong with
the index, the records are read from their files.
"""

import contextlib
import hashlib
import json
import sqlite3
import sys
import zlib
from pathlib import Path
from typing import Any

from harness.files import cache_folder, stamp
from harness.records.record import Record

SHARED = ("hyperparameters", "settings", "task_fields", "fingerprints", "overrides", "given",
          "skipped")  # fmt: skip
LEAST = 500  # records that are worth an index
SIZE = 8  # letters before a content: a checksum of it, its path and its stamp
TABLES = (
    "create table if not exists records (path text primary key, stamp text, content text)",
    "create table if not exists parts (name text primary key, content text)",
)


class Index:
    """Light records by file, as long as the files do not change."""

    def __init__(self, folder: Path) -> None:
        self.path = cache_folder() / "records" / f"{_hash(f'{_code()} {folder.resolve()}')}.sqlite"
        self.kept: dict[str, str] = {}
        self.database: sqlite3.Connection | None = None
        self.parts: dict[str, Any] = {}
        self.new_parts: dict[str, str] = {}
        self.new: list[tuple[str, str, str]] = []
        self.seen: set[str] = set()

    def __enter__(self) -> "Index":
        try:
            self.database = self._open()
            self.kept = dict(self.database.execute("select path, stamp from records"))
            for name, content in self.database.execute("select name, content from parts"):
                if name == _hash(content):
                    self.parts[name] = json.loads(content)
        except sqlite3.OperationalError:  # it is busy, or not there yet
            pass
        except sqlite3.DatabaseError:  # no database: it would stand in the way of one
            if self.database is not None:
                self.database.close()
            self.database, self.kept = None, {}
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        except (sqlite3.Error, OSError, ValueError, AttributeError):
            pass
        return self

    def __exit__(self, *_: object) -> None:
        """Keeps what was learned; nothing where that cannot be written."""
        if self.database is not None:
            self.database.close()
        gone = self.kept.keys() - self.seen
        if (not self.new and not gone) or len(self.seen) < LEAST:
            return
        with contextlib.suppress(sqlite3.Error, OSError, ValueError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._open()) as database, database:
                for statement in TABLES:
                    database.execute(statement)
                database.executemany("delete from records where path = ?", [(p,) for p in gone])
                parts = self.new_parts.items()
                database.executemany("insert or replace into parts values (?, ?)", parts)
                database.executemany("insert or replace into records values (?, ?, ?)", self.new)

    def _open(self) -> sqlite3.Connection:
        mode = "rwc" if self.path.parent.is_dir() else "ro"
        return sqlite3.connect(f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=5)

    def record(self, path: Path) -> Record | None:
        """What is known of the record in a file that has not changed, or None."""
        name = _name(path)
        self.seen.add(name)
        mark = self.kept.get(name)
        if not mark or mark != stamp(path):
            return None
        text = self._content(name, mark)
        if text is None:
            return None
        try:
            given = json.loads(text, object_pairs_hook=_interned)
            run = given["run"]
            for part in SHARED:
                if part in run:
                    run[part] = self.parts[run[part]]
            return Record(**given)
        except (ValueError, TypeError, KeyError):
            return None

    def _content(self, name: str, mark: str) -> str | None:
        """Of one record alone: all of them together take more memory than what is made of them."""
        assert self.database is not None  # something is kept
        asked = "select content from records where path = ? and stamp = ?"
        try:
            row = self.database.execute(asked, (name, mark)).fetchone()
        except sqlite3.Error:
            self.kept.clear()  # do not wait for it again
            return None
        whole = row[0] if row and isinstance(row[0], str) else ""
        return whole[SIZE:] if whole[:SIZE] == _checksum(name, mark, whole[SIZE:]) else None

    def learn(self, path: Path, mark: str, record: Record) -> None:
        """Keeps a light record for the next time; `mark` is the file's stamp before it was read."""
        run = dict(record.run)
        for part in SHARED:
            if part in run:
                text = json.dumps(run[part])
                run[part] = _hash(text)  # other processes may learn at the same time
                self.new_parts[run[part]] = text
        content = {
            "key": record.key, "status": record.status, "run": run, "scores": record.scores,
            "cost": record.cost, "checks": record.checks, "provenance": record.provenance,
            "error": record.error, "fit": record.fit, "format": record.format,
        }  # fmt: skip
        if mark:
            text, name = json.dumps(content), _name(path)
            self.new.append((name, mark, _checksum(name, mark, text) + text))


def _interned(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; what many records say is in memory once."""
    return {
        sys.intern(name): sys.intern(value) if type(value) is str else value
        for name, value in pairs
    }


def _name(path: Path) -> str:
    """A path as a database takes it, whatever bytes are in it."""
    return ascii(str(path))


def _checksum(*texts: str) -> str:
    return f"{zlib.crc32(repr(texts).encode()):0{SIZE}x}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _code() -> str:
    here = Path(__file__).parent
    source = b"".join((here / f"{name}.py").read_bytes() for name in ("index", "record", "store"))
    return hashlib.sha256(source).hexdigest()
