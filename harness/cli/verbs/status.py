"""`status`: what is done, running and left in results folders."""

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from harness.cli import options
from harness.records import plans
from harness.records.labels import run_name
from harness.records.plans import Progress, Running
from harness.records.record import Record
from harness.records.store import Store
from harness.records.tables import duration, harmless, plain_table, wrapped


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "status",
        help="show what is done, running and left in a results folder",
        description="Show what is done, failed, running (by whom, since when) and left in results "
        "folders, and when it will end. It can be asked from another terminal or machine.",
    )
    parser.add_argument("--json", action="store_true", help="print raw numbers as JSON")
    options.results(parser)
    parser.set_defaults(does=status)


def status(arguments: argparse.Namespace) -> int:
    """The exit code."""
    found = []
    for folder in arguments.results:
        store, now = Store(folder), time.time()
        records = store.records()
        live = [plans.progress(plan, records, now) for plan in plans.live_plans(store)]
        stopped = [plans.progress(plan, records, now) for plan in plans.stopped_plans(store)]
        stopped = [replace(each, seconds=None) for each in stopped if each.left or each.failed]
        found.append((folder, records, live, stopped, plans.running(store), now))
    if arguments.json:
        print(json.dumps([_content(*each) for each in found], indent=1, allow_nan=False))
    else:
        print("\n\n".join(_text(*each) for each in found))
        if len(found) > 1:
            print("\n" + _total(found))
    return 0


def _total(found: list[tuple[Any, ...]]) -> str:
    """All folders together, as of the shards of one plan."""
    counts = Counter(record.status for _, records, *_ in found for record in records)
    commands = [each for _, _, live, stopped, *_ in found for each in (*live, *stopped)]
    said = ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts)) or "no records"
    left, ends = sum(each.left for each in commands), [e.seconds for e in commands if e.seconds]
    last = f"; the last command ends in about {duration(max(ends))}" if ends else ""
    return f"In all {len(found)} folders: {said}, {left:,} left{last}."


def _text(
    folder: Any,
    records: list[Record],
    live: list[Progress],
    stopped: list[Progress],
    running: list[Running],
    now: float,
) -> str:
    counts = Counter(record.status for record in records)
    said = ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts)) or "no records"
    lines = [harmless(f"{folder}: {said}.")]
    for each in live:
        plan = each.plan
        processes = f"{plan.processes} process{'es' * (plan.processes > 1)}"
        lines += ["", *wrapped([
            harmless(plan.command),
            f"started {_ago(plan.started, now)} by {harmless(plan.host)} (pid {plan.pid}, "
            f"{processes}): {each.done:,} of {len(plan.runs):,} done, {each.failed:,} failed, "
            f"{each.left:,} left" + _ends(each) + ".",
        ])]  # fmt: skip
    if not live:
        lines.append("No command is running here.")
    for each in stopped:
        lines += ["", *wrapped([
            harmless(each.plan.command),
            f"stopped: {each.done:,} of {len(each.plan.runs):,} done, {each.failed:,} failed, "
            f"{each.left:,} left. The same command goes on.",
        ])]  # fmt: skip
    if running:
        rows = [
            {"running": each.name, "started": _ago(each.since, now),
             "by": f"{each.host} (pid {each.pid})"}
            for each in running
        ]  # fmt: skip
        lines += ["", plain_table(rows)]
    failed = [record for record in records if record.status == "failed"]
    if failed:
        lines += ["", *(harmless(f"failed: {run_name(r.run)}: {r.reason}") for r in failed[:10])]
        lines += [f"... and {len(failed) - 10} more."] * (len(failed) > 10)
    return "\n".join(lines)


def _ends(each: Progress) -> str:
    return "" if each.seconds is None else f", in about {duration(each.seconds)}"


def _ago(moment: float, now: float) -> str:
    return f"{duration(max(0.0, now - moment))} ago"


def _content(
    folder: Any,
    records: list[Record],
    live: list[Progress],
    stopped: list[Progress],
    running: list[Running],
    now: float,
) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "records": dict(Counter(record.status for record in records)),
        "commands": [each.as_json() for each in live],
        "stopped": [each.as_json() for each in stopped],
        "running": [asdict(each) for each in running],
        "time": now,
    }
