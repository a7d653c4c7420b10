"""Names of runs, and of a table's rows: a method with the settings that the user gave it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.records.record import Record
from harness.records.tables import in_shots

Settings = Mapping[str, Any]


def given(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the method that the user gave, by name, in the order of its fields.

    Records of older versions name only those that differ from what the method has without them.
    """
    values = {**run.get("hyperparameters", {}), **run["overrides"]}
    names = {*run.get("given", ()), *run["overrides"]}
    return {name: value for name, value in values.items() if name in names}


def method_label(run: Mapping[str, Any]) -> str:
    """The method's name with the settings that the user gave: `dra[rank=8]`."""
    return label(run["method"], given(run))


def label(method: str, settings: Settings) -> str:
    """A method's name with settings."""
    changed = ",".join(f"{name}={_short(value)}" for name, value in settings.items())
    return f"{method}[{changed}]" if changed else method


def run_name(run: Mapping[str, Any], settings: Iterable[str] = ()) -> str:
    """A run in a line: `dra[rank=8] few_shot emoji_food, 16 shots, seed 1`; with those of the
    engine's `settings` that are not the same in the runs beside it."""
    name = f"{method_label(run)} {run['task']} {run['dataset']}, {in_shots(run['shots'])}"
    engine = [f"engine.{n}={_short(run['settings'].get(n))}" for n in settings]
    return ", ".join([f"{name}, seed {run['seed']}", *engine])


def differing(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the engine's settings that are not the same in all runs."""
    every = [run["settings"] for run in runs]
    names = dict.fromkeys(name for settings in every for name in settings)
    return [n for n in names if len({_short(settings.get(n)) for settings in every}) > 1]


def conditions(settings: Settings, beside: Iterable[Settings] = ()) -> str:
    """What of the engine's settings a table's title says: what limits its fits, that it is no test,
    and what tells it from those beside it."""
    pool, caps = settings.get("views", 0), {"max_epochs": "epochs", "max_steps": "steps"}
    said = ["scored on validation images"] if settings.get("split", "test") != "test" else []
    said += [f"{pool} views an image"] if pool else []
    limits = [f"{settings[name]} {unit}" for name, unit in caps.items() if settings.get(name)]
    said += [f"at most {' and '.join(limits)}"] if limits else []
    said += [f"few-shot lists given in {settings['lists']!r}"] if "lists" in settings else []
    others = [name for name in differing({"settings": each} for each in beside)
              if name not in (*caps, "split", "views", "lists")]  # fmt: skip
    said += [f"from {settings.get(name)}" if name == "source"
             else f"engine.{name}={json.dumps(settings.get(name))}" for name in others]  # fmt: skip
    return "".join(f", {each}" for each in said)


def table_title(table: Sequence[str], beside: Iterable[Sequence[str]]) -> str:
    """Task, backbone, shots and conditions of a table, given as the values of entry.TABLES; weights
    and settings where they tell it from those beside it. Without shots it is of several."""
    task, backbone, weights, shots, settings = table
    like = [each for each in beside if (each[0], each[1]) == (task, backbone)]
    said = ", ".join([task, backbone, *([in_shots(shots)] if shots else [])])
    said += conditions(json.loads(settings), (json.loads(each[4]) for each in like))
    return said + (f", weights {weights}" if len({each[2] for each in like}) > 1 else "")


def rows(records: Sequence[Record]) -> list[tuple[Settings, list[Record]]]:
    """The rows of one method in a table: settings that were given, and the records that have them.

    A row holds every run that the same settings would give, in whatever words it was asked for: a
    run belongs to the row of some settings if it has their values and nothing else differs from
    what the method has without settings (its defaults, recipe and profile). So a value that is the
    recipe's on one dataset and not on another is one row over both, and the row without settings,
    which is there if someone ran the method without any, never holds a run that differs. Rows with
    the same runs are one, under the fewest settings. They are in natural order of the values.
    """
    every = sorted((given(record.run) for record in records), key=json.dumps)
    asked = {_text(settings): settings for settings in every}
    names = list(dict.fromkeys(name for settings in asked.values() for name in settings))
    alike = dict[str, list[Record]]()  # runs that no row tells apart
    for record in records:
        had = record.run.get("hyperparameters", {}) | record.run["overrides"]
        values = {name: had[name] for name in names if name in had}
        alike.setdefault(_text([values, sorted(record.run["overrides"])]), []).append(record)
    found = dict[frozenset[str], Settings]()
    for settings in sorted(asked.values(), key=lambda each: (len(each), _text(each))):
        members = frozenset(text for text in alike if _belongs(json.loads(text), settings))
        found.setdefault(members, settings)
    return [
        (settings, [record for text in alike if text in members for record in alike[text]])
        for members, settings in sorted(found.items(), key=lambda each: setting_order(each[1]))
    ]


def _belongs(run: tuple[Settings, list[str]], settings: Settings) -> bool:
    values, differs = run
    same = all(name in values and _text(values[name]) == _text(settings[name]) for name in settings)
    return same and set(differs) <= set(settings)


def setting_order(settings: Settings) -> list[tuple[str, list[tuple[int, float, str]]]]:
    """A key that sorts settings as a reader expects: numbers by size, none before some."""
    return [(name, _parts(settings[name])) for name in sorted(settings)]


def _parts(value: Any) -> list[tuple[int, float, str]]:
    if isinstance(value, bool) or value is None:
        return [(0, float(value or 0), "")]
    if isinstance(value, (int, float)):
        return [(1, float(value), "")]
    if isinstance(value, str):
        return [(2, 0.0, part) if i % 2 == 0 else (1, float(part), "")
                for i, part in enumerate(re.split(r"(\d+)", value)) if part]  # fmt: skip
    if isinstance(value, Mapping):
        value = [each for pair in sorted(value.items()) for each in pair]
    return [part for each in value for part in _parts(each)]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    """A value as text, never that of another one: texts that could be are quoted."""
    text = json.dumps(value, separators=(",", ":"))
    plain = isinstance(value, str) and re.fullmatch(r"[^\W\d_][\w./ -]*", value)
    return value if plain and value not in ("true", "false", "null") else text
