"""Efficiency records to tables, by device; and which methods no other beats in accuracy and cost.

Like `leaderboard` it never imports torch.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.errors import HarnessError
from harness.records.labels import differing, method_label
from harness.records.record import Record
from harness.records.tables import MISSING, count, format_table, in_shots

Shown = Callable[[float], str]
Of = tuple[str, str, str, str]  # backbone, weights, task, shots
Compared = tuple[str, str, str, str, str]  # these, and a label
COSTS: dict[str, tuple[str, Callable[[dict[str, Any]], float | None], Shown]] = {
    "params": ("trained parameters", lambda cost: cost["trainable_parameters"], count),
    "fit": ("time of a fit", lambda cost: fit_seconds(cost), lambda value: seconds(value)),
    "inference": (
        "time an image",
        lambda cost: 1 / image_rate(cost),
        lambda value: f"{_rate(1e3 * value)} ms",
    ),
    "memory": (
        "memory of a training step",
        lambda cost: cost["train"].get("bytes") if "train" in cost else 0,
        lambda value: _bytes(value),
    ),
}


def fit_seconds(cost: dict[str, Any]) -> float:
    """Preparation, and steps times the median step with its data."""
    train = cost.get("train")
    steps = train["steps"] * (train["data"]["median"] + train["step"]["median"]) if train else 0.0
    return cost["prepare_seconds"] + steps


def image_rate(cost: dict[str, Any]) -> float:
    """Images a second of inference, the texts being there unless each image has its own."""
    return cost["inference"]["batch"] / _batch_seconds(cost["inference"])


def _batch_seconds(inference: dict[str, Any]) -> float:
    parts = ["data", "image", "head"] + ["texts"] * inference["text_per_image"]
    return sum(inference[part]["median"] for part in parts)


def tables(records: Iterable[Record], form: str) -> list[str]:
    """Two tables, training and inference, for each device, backbone, dataset, number of shots,
    settings, and way of measuring. Of a method the newest record is shown, also that it failed."""
    groups: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in sorted(records, key=lambda r: (r.time, r.key)):
        groups.setdefault(_place(record), {})[method_label(record.run)] = record
    parts, beside = [], [json.loads(place[-1]) for place in groups]
    for place, members in groups.items():
        measured = [record for record in members.values() if record.status == "done"]
        run = next(iter(members.values())).run
        device, threads = run["measured_on"]
        on_cuda = bool(measured) and measured[0].cost["cuda"]
        where = device if on_cuda else f"{device}, {threads} thread{'s' * (threads > 1)}"
        classes = f" ({measured[0].cost['classes']} classes)" if measured else ""
        title = f"efficiency, {run['backbone']}, {run['settings']['precision']}, "
        title += f"{where},\n{run['dataset']}{classes}, {in_shots(run['shots'])}, settings of "
        title += str(run.get("task_fields", {}).get("like", run["task"]))
        title += _apart(json.loads(place[-1]), beside)
        for kind, notes, row in (
            ("training", _training_notes, _training),
            ("inference", _inference_notes, _inference),
        ):
            costs = {name: dict(record.cost) for name, record in members.items()
                     if record.status == "done"}  # fmt: skip
            shown = {name: row(name, cost) for name, cost in costs.items()}
            columns = list(next(iter(shown.values()), {"method": "", "measured": ""}))
            rows = [
                shown.get(name)
                or dict.fromkeys(columns, MISSING) | {"method": name, columns[-1]: record.status}
                for name, record in members.items()
            ]
            text = notes(list(costs.values())) if costs else ["nothing was measured."]
            parts.append(format_table(rows, form, "\n".join([f"{title}: {kind}.", *text])))
    return parts


def _place(record: Record) -> tuple[str, ...]:
    run = record.run
    versions = record.provenance.get("versions") or {}
    how = {**run["settings"], **(run.get("task_fields") or {}), "torch": versions.get("torch")}
    return (*map(str, (run["backbone"], run["fingerprints"]["weights"], run["measured_on"],
                       run["dataset"], run["shots"])), json.dumps(how, sort_keys=True))  # fmt: skip


def _apart(how: Mapping[str, Any], beside: Sequence[Mapping[str, Any]]) -> str:
    """What of the way of measuring tells a table from those beside it."""
    names = differing({"settings": each} for each in beside)
    return "".join(f", {name} {json.dumps(how.get(name))}" for name in names)


def _like(record: Record) -> str:
    """The task whose recipes were measured."""
    return str(record.run.get("task_fields", {}).get("like", record.run["task"]))


def _training(name: str, cost: dict[str, Any]) -> dict[str, str]:
    row = {"method": name, "params": _parameters(cost), "stored": _bytes(cost["stored_bytes"])}
    train = cost.get("train")
    if train is None:
        rest = ("batch", "images/s", "data", "image", "text", "rest", "memory")
        return row | dict.fromkeys(rest, MISSING) | {"fit": seconds(fit_seconds(cost))}
    whole = train["data"]["median"] + train["step"]["median"]
    shares = {part: train[part]["median"] / whole for part in ("data", "image", "text")}
    rate = f"{_rate(train['batch'] / whole)} ± {_spread(train['step'])}"
    row |= {"batch": count(train["batch"]), "images/s": rate}
    row |= {part: f"{share:.0%}" for part, share in shares.items()}
    row |= {"rest": f"{max(0.0, 1 - sum(shares.values())):.0%}"}
    return row | {"memory": _bytes(train["bytes"]), "fit": seconds(fit_seconds(cost))}


def _training_notes(costs: Sequence[dict[str, Any]]) -> list[str]:
    repeats = max(cost["inference"]["repeats"] for cost in costs)
    return [
        f"Medians of {repeats} after one unmeasured, ± half of the range; images are decoded.",
        "Data, image and text tower in percent of a step with its data; rest: loss, optimiser,",
        "further passes. Memory: above what was in use. Fit: what is done once, and steps times a",
        "step; nothing is taken from the caches but decoded images.",
    ]


def _inference(name: str, cost: dict[str, Any]) -> dict[str, str]:
    inference = cost["inference"]
    own = inference["text_per_image"]
    whole = _batch_seconds(inference)
    rate = f"{_rate(image_rate(cost))} ± {_spread(inference['texts' if own else 'image'])}"
    row = {"method": name, "images/s": rate}
    for part in ("data", "image", "head"):
        row[part] = f"{inference[part]['median'] / whole:.0%}"
    texts = inference["texts"]["median"]
    row["texts"] = f"{texts / whole:.0%}" if own else f"{seconds(texts)} once"
    row["GF/image"] = f"{inference['operations_an_image'] / 1e9:.2f}"
    row["GF/class"] = f"{inference['operations_a_class'] / 1e9:.3f}" + "*" * own
    return row | {"memory": _bytes(inference["bytes"])}


def _inference_notes(costs: Sequence[dict[str, Any]]) -> list[str]:
    batch = max(cost["inference"]["batch"] for cost in costs)
    notes = [
        f"Batches of {batch}. GF: counted floating-point operations / 1e9, of a class once, with",
        "the frozen texts that the method refers to.",
    ]
    own = any(cost["inference"]["text_per_image"] for cost in costs)
    return [*notes, "*: for each class and image."] if own else notes


def compared(record: Record) -> Of:
    """The table that a measurement belongs to: backbone, weights, task and shots."""
    run = record.run
    return run["backbone"], run["fingerprints"]["weights"], _like(record), str(run["shots"])


def costs_by_method(records: Iterable[Record], kind: str) -> dict[Compared, float]:
    """The cost `kind` of methods: the newest measurement.

    Raises:
        HarnessError: there are none, or those of one table from several devices, datasets or
            settings.
    """
    mine = [record for record in records if record.measures and record.status == "done"]
    found, places = dict[Compared, float](), dict[tuple[str, ...], dict[str, None]]()
    for r in sorted(mine, key=lambda r: r.time):
        value = COSTS[kind][1](dict(r.cost))
        table = compared(r)
        device, threads = r.run["measured_on"]
        where = f"{r.run['dataset']} on {device}, {threads} threads, {_place(r)[-1]}"
        places.setdefault(table, {})[where] = None
        if value is not None:
            found[(*table, method_label(r.run))] = value
    if not found:
        raise HarnessError(
            f"--pareto {kind} needs measurements: run the same methods with --tasks efficiency."
        )
    for several in places.values():
        if len(several) > 1:
            raise HarnessError(
                f"--pareto {kind}: the measurements are of different kinds: "
                f"{'; '.join(several)}. Name folders that hold those of one kind."
            )
    return found


def unlike(records: Iterable[Record], table: Of, settings: Mapping[str, Any]) -> str:
    """In what of the engine's settings measurements of a table differ from its scores, or nothing:
    `max_steps 300 for null`."""
    mine = next((r.run["settings"] for r in records
                 if r.measures and r.status == "done" and compared(r) == table), None)  # fmt: skip
    if mine is None:
        return ""
    names = [n for n in dict.fromkeys((*mine, *settings)) if n not in ("split", "source", "lists")
             and mine.get(n) != settings.get(n)]  # fmt: skip
    return "; ".join(f"{n} {json.dumps(mine.get(n))} for {json.dumps(settings.get(n))}"
                     for n in names)  # fmt: skip


def unbeaten(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (accuracy, cost): whether no other is better in one and not worse in the other."""
    return [
        not any(a >= accuracy and c <= cost and (a > accuracy or c < cost) for a, c in points)
        for accuracy, cost in points
    ]


def _parameters(cost: dict[str, Any]) -> str:
    """The count, and what the paper prints if that is another one."""
    printed = cost.get("printed_parameters")
    text = count(cost["trainable_parameters"])
    differs = printed is not None and abs(printed - cost["trainable_parameters"]) > 1000
    return f"{text} (printed: {count(printed)})" if differs else text


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(seconds: dict[str, float]) -> str:
    return f"{(seconds['most'] - seconds['least']) / 2 / seconds['median']:.0%}"


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s" if value >= 1e-3 else "0 s"


def _bytes(value: float | None) -> str:
    if value is None:
        return MISSING
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if value >= size:
            return f"{_rate(value / size)} {unit}"
    return f"{value:.0f} B"
