"""A record: what is known of a run after it ended; made from a file's JSON only if all of it holds
what a record holds."""

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

FORMAT = 1
WHERE = ("folder", "file")  # what is not written
STATUSES = ("done", "failed", "not applicable")
DEEPEST, LARGEST = 20, 2**63  # of lists in lists, and of whole numbers


@dataclass(frozen=True)
class Record:
    """What is known of a run after it ended.

    run: everything that identifies it, and which settings the user gave; scores: by evaluation,
    accuracy as a fraction with the counts behind it; cost: seconds, bytes and counts; checks:
    sentences about a fit that looks wrong;
    provenance: code, versions, device, time, command; error: the traceback of a failed run, or why
    a method cannot serve the task.
    """

    key: str
    status: str  # of STATUSES
    run: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    fit: str | None = None  # the key of the fit, which names the file of its weights
    format: int = FORMAT
    folder: Path | None = field(default=None, compare=False, repr=False)  # where it was read
    file: Path | None = field(default=None, compare=False, repr=False)

    @property
    def final(self) -> bool:
        """Whether running it again would give nothing new."""
        return self.status in ("done", "not applicable")

    @property
    def measures(self) -> bool:
        """Whether it is of costs, and not of accuracy."""
        return "measured_on" in self.run

    @property
    def time(self) -> str:
        """When it was made."""
        return str(self.provenance.get("time", ""))

    @property
    def reason(self) -> str:
        """The last line of a failed run's traceback, with the file and the line that raised it; or
        why it is not applicable."""
        line = (self.error or "").strip().rpartition("\n")[2]
        if line.startswith("harness.errors.HarnessError: "):
            return line.removeprefix("harness.errors.HarnessError: ")
        places = re.findall(r'File "([^"\n]+)", line (\d+)', self.error or "")
        if self.status != "failed" or not places:
            return line
        file, number = places[-1]
        return f"{line} ({Path(file).name}, line {number})"


def parse(text: str) -> Record:
    """The record that a file's text holds.

    Raises:
        ValueError: it is none, or some value is not of the kind that a record has there; the
            message names the place and the value.
    """
    try:
        loaded = json.loads(text)
    except RecursionError:
        raise ValueError("lists are nested too deeply") from None
    given = _dict(loaded, "the file")
    version = given.get("format")
    if type(version) is int and version > FORMAT:
        raise ValueError(
            f"it was made by a newer version (format {version}; this version reads {FORMAT})"
        )
    _need(_whole(version) and version == FORMAT, "format", version, str(FORMAT))
    _finite(given)
    known = {f.name for f in fields(Record)} - {*WHERE}
    for name in ("key", "status", "run"):
        _need(name in given, name, None, "there")
    for name in given:
        _need(name in known, "the name of a field", name, f"one of {', '.join(sorted(known))}")
    for name, check in CHECKS.items():
        if name in given:
            check(given[name], name)
    record = Record(**given)
    if record.status == "done" and record.measures:
        _measurement(record.cost)
    elif record.status == "done":
        _need(bool(record.scores), "scores", record.scores, "there in a run that is done")
    return record


def _run(value: Any, place: str) -> None:
    run = _dict(value, place)
    for name in ("method", "task", "dataset", "backbone"):
        _text(run.get(name), f"{place}.{name}")
    for name, least in (("shots", 1), ("seed", 0)):
        _count(run.get(name), f"{place}.{name}", least)
    for name in ("overrides", "settings"):
        _dict(run.get(name), f"{place}.{name}")
    for name in ("hyperparameters", "task_fields", "skipped"):
        if name in run:
            _dict(run[name], f"{place}.{name}")
    for name in ("code", "train"):
        if name in run:
            _text(run[name], f"{place}.{name}")
    if "given" in run:
        _texts(run["given"], f"{place}.given")
    prints = _dict(run.get("fingerprints"), f"{place}.fingerprints")
    _text(prints.get("weights"), f"{place}.fingerprints.weights")
    if "evaluated" in prints:
        for name, each in _dict(prints["evaluated"], f"{place}.fingerprints.evaluated").items():
            _text(each, f"{place}.fingerprints.evaluated.{name}")
    others = run.get("task_fields", {}).get("others", [])
    _texts(others, f"{place}.task_fields.others")
    for name in ("source", "like"):
        if name in run.get("task_fields", {}):
            _text(run["task_fields"][name], f"{place}.task_fields.{name}")
    if "measured_on" in run:
        where = run["measured_on"]
        two = isinstance(where, list) and len(where) == 2
        _need(two, f"{place}.measured_on", where, "a device and a number of threads")
        _text(where[0], f"{place}.measured_on[0]")
        _count(where[1], f"{place}.measured_on[1]", 1)
        _text(run["settings"].get("precision"), f"{place}.settings.precision")
    _need(type(run["settings"].get("views", 0)) is int, f"{place}.settings.views",
          run["settings"].get("views"), "a whole number")  # fmt: skip


def _scores(value: Any, place: str) -> None:
    for name, each in _dict(value, place).items():
        where = f"{place}.{name}"
        _need(bool(name), place, name, "a name")
        score = _dict(each, where)
        total = _count(score.get("total"), f"{where}.total", 1)
        correct = _count(score.get("correct"), f"{where}.correct", 0)
        _need(correct <= total, f"{where}.correct", correct, f"at most the total, {total}")
        accuracy = _fraction(score.get("accuracy"), f"{where}.accuracy")
        same = abs(accuracy - correct / total) < 1e-6
        _need(same, f"{where}.accuracy", accuracy, f"{correct}/{total}")
        if "zero_shot" in score:
            _fraction(score["zero_shot"], f"{where}.zero_shot")


def _cost(value: Any, place: str) -> None:
    for name, each in _dict(value, place).items():
        number = name.endswith(("_seconds", "_bytes", "_parameters"))
        if number and each is not None:
            _amount(each, f"{place}.{name}")


def _measurement(cost: Mapping[str, Any]) -> None:
    """What the tables of costs read."""
    for name in ("trainable_parameters", "stored_bytes", "classes", "prepare_seconds"):
        _amount(cost.get(name), f"cost.{name}")
    _need(type(cost.get("cuda")) is bool, "cost.cuda", cost.get("cuda"), "true or false")
    parts: dict[str, tuple[str, ...]] = {"inference": ("data", "image", "head", "texts")}
    if "train" in cost:
        parts["train"] = ("data", "image", "text", "step")
    amounts = {"inference": ("bytes", "operations_an_image", "operations_a_class"),
               "train": ("bytes", "steps")}  # fmt: skip
    for part, timed in parts.items():
        values = _dict(cost.get(part), f"cost.{part}")
        for name in timed:
            for which in ("median", "least", "most"):
                place = f"cost.{part}.{name}"
                seconds = _amount(_dict(values.get(name), place).get(which), f"{place}.{which}")
                _need(seconds > 0, f"{place}.{which}", seconds, "more than 0")
        for name in ("batch", "repeats"):
            _count(values.get(name), f"cost.{part}.{name}", 1)
        _need("bytes" in values, f"cost.{part}.bytes", None, "there")
        for name in amounts[part]:
            if name != "bytes" or values.get(name) is not None:
                _amount(values.get(name), f"cost.{part}.{name}")
    own = cost["inference"].get("text_per_image")
    _need(type(own) is bool, "cost.inference.text_per_image", own, "true or false")


def _provenance(value: Any, place: str) -> None:
    given = _dict(value, place)
    if "time" in given:
        time = given["time"]
        try:
            datetime.fromisoformat(time)
        except (TypeError, ValueError):
            _need(False, f"{place}.time", time, "a date and time")
    if given.get("command") is not None:
        _text(given["command"], f"{place}.command")


def _status(value: Any, place: str) -> None:
    _need(value in STATUSES, place, value, f"one of {', '.join(STATUSES)}")


def _error(value: Any, place: str) -> None:
    _need(value is None or isinstance(value, str), place, value, "a text or null")


def _key(value: Any, place: str) -> None:
    _need(isinstance(value, str) and bool(re.fullmatch(r"[\w.:+-]{1,200}", value)), place, value,
          "letters and digits")  # fmt: skip


def _fit(value: Any, place: str) -> None:
    if value is not None:
        _need(isinstance(value, str) and value.isalnum(), place, value, "letters and digits")


def _texts(value: Any, place: str) -> None:
    fits = isinstance(value, list) and all(isinstance(each, str) for each in value)
    _need(fits, place, value, "a list of texts")


def _dict(value: Any, place: str) -> dict[str, Any]:
    _need(isinstance(value, dict), place, value, "an object of names and values")
    return value


def _text(value: Any, place: str) -> None:
    _need(isinstance(value, str) and bool(value), place, value, "a text")


def _count(value: Any, place: str, least: int) -> int:
    _need(_whole(value) and value >= least, place, value, f"a whole number from {least}")
    return value


def _amount(value: Any, place: str) -> float:
    _need(type(value) in (int, float) and value >= 0, place, value, "a number from 0")
    return value


def _fraction(value: Any, place: str) -> float:
    fits = type(value) in (int, float) and 0 <= value <= 1
    _need(fits, place, value, "a fraction from 0 to 1")
    return value


def _whole(value: Any) -> bool:
    return type(value) is int


def _need(holds: bool, place: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{place} is {reprlib.repr(value)}, not {allowed}")


def _finite(values: Mapping[str, Any] | list[Any], place: str = "", depth: int = 0) -> None:
    """Raises ValueError for numbers that are none or too large, and for lists nested too deeply."""
    if depth > DEEPEST:
        raise ValueError(f"{place[:40]} is nested more than {DEEPEST} deep")
    if type(values) is list and {*map(type, values)} == {float} and all(map(math.isfinite, values)):
        return  # long lists are losses
    for name, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        kind = type(value)
        if kind is float and not math.isfinite(value):
            _need(False, f"{place}{name}", value, "a finite number")
        elif kind is int and abs(value) >= LARGEST:
            _need(False, f"{place}{name}", value, "a number below 2^63")
        elif kind in (dict, list) and value:
            _finite(value, f"{place}{name}.", depth + 1)


CHECKS: dict[str, Callable[[Any, str], None]] = {
    "key": _key, "status": _status, "run": _run, "scores": _scores, "cost": _cost,
    "checks": _texts, "provenance": _provenance, "error": _error, "fit": _fit,
}  # fmt: skip
