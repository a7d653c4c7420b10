"""What went wrong, and where the records are from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.files import shown
from harness.records import apart
from harness.records.labels import differing, run_name
from harness.records.record import Record
from harness.records.summary import Table
from harness.records.tables import in_shots

LONGEST = 1000  # characters of a text
MOST = 40  # lines of a list; how many more there are is said


def trouble(
    records: Sequence[Record], found: Mapping[tuple[str, ...], Table], frame: pd.DataFrame
) -> dict[str, Any]:
    """Runs that failed or look wrong, methods that cannot serve a task, rows that lack runs."""
    names = differing(record.run for record in records)
    failed = [(run_name(r.run, names), r.reason or "nothing is said of why")
              for r in records if r.status == "failed"]  # fmt: skip
    refused = dict[tuple[str, str, str], None]()
    for record in records:
        if record.status == "not applicable":
            refused[record.run["method"], record.run["task"], record.reason] = None
    unread = dict[tuple[str, str], list[str]]()
    for record in records:
        for part, paths in record.run.get("skipped", {}).items():
            unread[f"{record.run['dataset']}, seed {record.run['seed']}", part] = paths
    skipped = [(f"{where}, {part}", len(paths), ", ".join(map(shown, paths)))
               for (where, part), paths in unread.items()]  # fmt: skip
    checks = [(run_name(record.run, names), check) for record in records for check in record.checks]
    entries = [each for table in found.values() for each in table.entries]
    lacking = []
    for _, row in frame[(frame["dataset"] != "average") & frame["applicable"]].iterrows():
        if row["missing"]:
            seeds = ", ".join(map(str, row["missing"]))
            name = f"{row['label']} {row['task']}, {in_shots(row['shots'])}"
            lacking.append((name, row["dataset"], seeds))
    return {
        "failed": cut(failed), "refused": cut(refused), "checks": cut(checks),
        "lacking": cut(lacking), "left_out": cut(apart.differing(entries)),
        "not_alike": cut(apart.not_alike(found)),
        "skipped": cut(skipped),
        "stale": int(frame[frame["dataset"] == "average"]["stale"].sum()),
    }  # fmt: skip


def cut(lines: Iterable[Any]) -> dict[str, Any]:
    """The first of some lines, each a text or several parts, and how many more there are."""
    lines = list(lines)
    return {
        "lines": [_clipped(line) for line in lines[:MOST]],
        "more": max(0, len(lines) - MOST),
        "number": len(lines),
    }


def _clipped(line: Any) -> Any:
    if isinstance(line, tuple):
        return tuple(map(_clipped, line))
    long = isinstance(line, str) and len(line) > LONGEST
    return f"{line[:LONGEST]}…" if long else line


def provenance(records: Sequence[Record]) -> dict[str, Any]:
    """Of all records: each distinct value with the number of records that have it."""
    commits, versions, devices, commands = (Counter[str]() for _ in range(4))
    codes = dict[str, Counter[str]]()
    for record in records:
        about = record.provenance
        commit = str(about.get("commit") or "")[:12]
        changed = ", with changes that were not committed" if about.get("dirty") else ""
        commits[f"{commit}{changed}" if commit else "not recorded"] += 1
        given = about.get("versions")
        names = {"python": about.get("python"), **(given if isinstance(given, dict) else {})}
        known = [f"{name} {value}" for name, value in names.items() if value]
        versions[", ".join(known) or "not recorded"] += 1
        threads = about.get("threads")
        device = [about.get("device"), f"{threads} thread{'s' * (threads != 1)}" if threads else "",
                  about.get("platform")]  # fmt: skip
        devices[", ".join(str(each) for each in device if each) or "not recorded"] += 1
        commands[str(about.get("command") or "not recorded")] += 1
        codes.setdefault(str(record.run["method"]), Counter())[
            str(record.run.get("code") or "not recorded")
        ] += 1
    weights = Counter(f"{r.run['backbone']}: {r.run['fingerprints']['weights']}" for r in records)
    engines = Counter(str(record.run.get("engine", "not recorded")) for record in records)
    parts = {
        "commits": commits, "versions": versions, "devices": devices, "weights": weights,
        "engine": engines, "commands": commands,
    }  # fmt: skip
    return {
        **{name: cut(counter.most_common()) for name, counter in parts.items()},
        "codes": [(method, ", ".join(sorted(each))) for method, each in sorted(codes.items())],
        "records": len(records),
    }
