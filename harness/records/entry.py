"""What the tables need of a record."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from harness.records.record import Record
from harness.records.store import CHANGE, digest

TABLES = ["task", "backbone", "weights", "shots", "settings"]  # what one table is about


@dataclass(frozen=True)
class Entry:
    """What the tables need of a record.

    version, content, images: digests of what must not be mixed: code and task of a row,
    hyperparameters of a row's dataset, lists of a dataset and seed; tested: of the lists that are
    the same for all seeds; elsewhere: how much more accurate than zero-shot it is on other
    datasets, by their names and images.
    """

    record: Record
    table: tuple[str, ...]  # values of TABLES
    dataset: str
    seed: int
    source: str
    version: str
    content: str
    images: str
    tested: str
    scores: Mapping[str, float]
    elsewhere: Mapping[str, float]

    @property
    def cell(self) -> tuple[str, int]:
        """Where it belongs in a row."""
        return self.dataset, self.seed

    @property
    def counts(self) -> bool:
        """Whether it has scores."""
        return bool(self.scores)


def entry(record: Record) -> Entry:
    """A failed run has no scores, whatever its record holds; those of another source of transfer
    are another table's."""
    run, prints = record.run, record.run["fingerprints"]
    fields = run.get("task_fields") or {}
    evaluated = {n: v for n, v in (prints.get("evaluated") or {}).items()
                 if n not in fields.get("others", ())}  # fmt: skip
    every = prints.get("evaluated") or {}
    done = record.scores if record.status == "done" else {}
    tested = run["settings"].get("split", "test") == "test"  # validation lists differ by seed
    changes = {f"{n} {every.get(n) if tested else ''}": s["accuracy"] - s["zero_shot"]
               for n, s in done.items() if "zero_shot" in s}  # fmt: skip
    scores = {n: s["accuracy"] for n, s in record.scores.items() if "zero_shot" not in s}
    scores |= {CHANGE: statistics.mean(changes.values())} if changes else {}
    source = {"source": fields["source"]} if "source" in fields else {}
    lists = {"lists": run["lists"]} if run.get("lists") else {}  # given instead of drawn
    settings = json.dumps(run["settings"] | source | lists, sort_keys=True)
    return Entry(
        record=record,
        table=(run["task"], run["backbone"], prints["weights"], str(run["shots"]), settings),
        dataset=run["dataset"],
        seed=run["seed"],
        source=fields.get("source", ""),
        version=digest([run.get("code"), run.get("engine"), run.get("task_fields")]),
        content=digest(
            [run.get("hyperparameters"), *filter(None, [run.get("class_texts"), run.get("asks")])]
        ),
        images=digest([prints.get("train"), evaluated]),
        tested=digest(evaluated) if tested else "",
        scores=scores if record.status == "done" else {},
        elsewhere=changes,
    )


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0
