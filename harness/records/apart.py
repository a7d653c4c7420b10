"""Why rows of a table, or runs of a row, are not alike: sentences to print below it.

It never imports torch.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.records.entry import Entry
from harness.records.labels import method_label
from harness.records.summary import Table
from harness.records.tables import in_shots


def sentences(found: Mapping[tuple[str, ...], Table]) -> list[str]:
    """All that is to be said below some tables."""
    return [*differing(each for table in found.values() for each in table.entries),
            *not_alike(found)]  # fmt: skip


def differing(entries: Iterable[Entry]) -> list[str]:
    """A sentence for each dataset whose records were made on different lists of images, and so are
    not averaged together: the tables hold the newest, of finished runs if there are any."""
    entries = sorted(entries, key=lambda e: (e.counts, e.record.time, e.record.key))
    by_dataset = _grouped(entries, lambda each: (each.table, each.dataset))
    found = _apart(by_dataset, lambda each: each.tested, lambda each: "all seeds")
    kept = [each for of in by_dataset for each in of if each.tested == of[-1].tested]
    by_seed = _grouped(kept, lambda each: (each.table, *each.cell))
    return found + _apart(by_seed, lambda each: each.images, lambda each: f"seed {each.seed}")


def not_alike(found: Mapping[tuple[str, ...], Table]) -> list[str]:
    """A sentence for each table whose rows were made by several versions of the engine, or with
    other settings of their task."""
    said = []
    for (task, _, _, shots, _), table in found.items():
        counted = [(row.label, each.record.run)
                   for row in table.rows for each in row.members if each.counts]  # fmt: skip
        made = [
            (label, {"engine": run.get("engine", 1)}
             | {f"{task}.{name}": value for name, value in (run.get("task_fields") or {}).items()
                if name != "others"})
            for label, run in counted
        ]  # fmt: skip
        for what in sorted(set[str].intersection(*(set(each) for _, each in made)) if made else ()):
            values = dict[str, dict[str, None]]()
            for label, each in made:
                values.setdefault(json.dumps(each[what]), {})[label] = None
            if len(values) > 1:
                those = "; ".join(
                    f"{value}: {', '.join(rows)}" for value, rows in sorted(values.items())
                )
                said.append(
                    f"Not made alike, {task}, {in_shots(shots)}: rows differ in {what} ({those}). "
                    "What tells them apart may be that and not the method."
                )
    return said


def _grouped(entries: Iterable[Entry], key: Callable[[Entry], object]) -> list[list[Entry]]:
    groups = dict[object, list[Entry]]()
    for each in entries:
        groups.setdefault(key(each), []).append(each)
    return list(groups.values())


def _apart(
    groups: Iterable[Sequence[Entry]], of: Callable[[Entry], str], where: Callable[[Entry], str]
) -> list[str]:
    """A sentence for each group that has several lists."""
    found = []
    for members in groups:
        last, lists = members[-1], dict[str, set[str]]()
        for each in members:
            lists.setdefault(of(each), set()).add(method_label(each.record.run))
        lists.pop(of(last))
        others = "; ".join(f"{', '.join(sorted(each))} on {name}" for name, each in lists.items())
        if others:
            found.append(
                f"Left out, {last.table[0]}, {last.dataset}, {where(last)}: the lists of images or "
                "the templates differ, and are not averaged. Shown is the newest, "
                f"{of(last)}; left out: {others}."
            )
    return found
