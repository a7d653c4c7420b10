"""A recommendation in words: this one, how sure, what it costs, what would make it surer."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from harness.files import shown
from harness.images import library
from harness.images.own import UserImages
from harness.records import predictions
from harness.records.intervals import ZERO_SHOT, signed
from harness.records.intervals import shown as interval
from harness.records.sequential import Look
from harness.records.statistics import SAME, SURE, Difference
from harness.records.tables import format_table, wrapped
from harness.runs.budget import duration, written
from harness.runs.recommend import RESERVE, Recommendation

WEAK = 3  # classes that are named
MANY = 20  # times as many images are no advice


def text(found: Recommendation, command: Sequence[str]) -> str:
    """For a reader.

    Args:
        command: the options of the dataset and the backbone, for the commands that are advised.
    """
    best, _ = found.climb.best
    parts = [
        "\n".join(wrapped([_answer(found)])),
        "\n".join(["How sure", *wrapped(_sure(found))]),
        "\n".join(["What it costs", *wrapped(_cost(found, best))]),
        "\n".join(["What would make it surer", *wrapped(_surer(found))]),
        "\n".join(["To train it on all training images", *_final(found, best, command)]),
        format_table(_methods(found), "markdown", _caption(found)),
        format_table(_looks(found), "markdown", "The looks that were taken."),
    ]
    return "\n\n".join(parts)


def remarks(found: Recommendation, root: Any) -> list[str]:
    """Sentences on what a user would not expect of the data."""
    said = library.unread(found.data.name, found.data.dataset, root)
    if isinstance(found.data.dataset, UserImages) and ":" not in found.backbone:
        said.append(
            f"{found.backbone} was trained on emoji alone and knows no photographs: which method "
            "is best with it says little of another model. Choose a CLIP with --backbone."
        )
    return said


def _answer(found: Recommendation) -> str:
    climb, look = found.climb, found.climb.last.look
    best, same = climb.best
    value = f"{_percent(look, best)} of the held-out training images"
    if same:
        return (
            f"Take {best}: it is the cheapest of {_list(climb.left)}, which differ by less than "
            f"{100 * SAME:g} points beyond doubt. It names {value} rightly."
        )
    if len(climb.left) == 1 and climb.last.rung.shots == found.data.shots:
        return f"Take {best}. It names {value} rightly, and no other method is as good."
    return (
        f"Take {best}, for now. It is ahead: it names {value} rightly. But it is not told apart "
        f"from all others."
    )


def _sure(found: Recommendation) -> list[str]:
    climb, look, rung = found.climb, found.climb.last.look, found.climb.last.rung
    best, _ = climb.best
    others = sorted((m for m in look.labels if m != best), key=lambda m: -look.values[m])
    said = []
    for other in dict.fromkeys([*others[:1], *(o for o in others if o == ZERO_SHOT)]):
        what = "the next one, " + other if other == others[0] else other
        said.append(f"It is {_ahead(look.difference(best, other), what)}.")
    unsure = [m for m in climb.left if m != best]
    if unsure and not climb.best[1]:
        said.append(f"Not told apart from it: {_list(unsure)}.")
    if climb.beaten:
        each = [f"{name} (by {by})" for name, (by, _) in climb.beaten.items()]
        said.append(f"Beaten beyond doubt with {rung.shots} shots: {_list(each)}.")
    said.append(
        f"Beyond doubt means: with {SURE:.0%} no method is called beaten that is not worse, in "
        "all looks together, however many are taken. An interval is of one difference alone."
    )
    if rung.shots < found.data.shots:
        said.append(
            f"This compares fits on {rung.shots} images a class. There are up to "
            f"{found.data.shots} in a fold, with which the order may change."
        )
    if climb.untried:
        said.append(
            f"Not compared with {rung.shots} shots, for lack of time: {_list(climb.untried)}."
        )
    said += [f"{name} has no result: {why}." for name, why in climb.failed.items()]
    said += [f"{name} cannot be used here: {why}" for name, why in found.refused.items()]
    return said


def _ahead(found: Difference, other: str) -> str:
    where = "ahead of" if found.value > 0 else "behind"
    text = f"{100 * abs(found.value):.2f} points {where} {other}" if found.value else (
        f"as accurate as {other}"
    )  # fmt: skip
    if found.low is None or found.high is None:
        return f"{text} (no interval: all held-out images of a fold are one unit)"
    return f"{text} (difference, 95%: {100 * found.low:+.2f} to {100 * found.high:+.2f} points)"


def _cost(found: Recommendation, best: str) -> list[str]:
    numbers = _costs(found, best)
    trained = f"{numbers['trainable_parameters']:,} trained parameters"
    fit = f"{duration(numbers['train_seconds'])} for a fit of {numbers['train_images']} images"
    if not numbers["trainable_parameters"]:
        trained = "No trained parameters"
    said = [f"{trained}, {fit} on this machine." if numbers["train_seconds"] else f"{trained}."]
    said.append("The time of an image is not measured here: `run --tasks efficiency` does.")
    return said


def _costs(found: Recommendation, method: str) -> dict[str, Any]:
    costs = [record.cost for record in found.records[method]]
    seconds = [(c.get("train_seconds") or 0.0) + (c.get("train_frozen_seconds") or 0.0)
               for c in costs]  # fmt: skip
    return {
        "trainable_parameters": costs[0].get("trainable_parameters") or 0,
        "train_seconds": float(np.mean(seconds)),
        "train_images": max(c.get("train_images") or 0 for c in costs)
        or found.climb.last.rung.shots * len(found.data.counts),
    }


def _surer(found: Recommendation) -> list[str]:
    climb, data = found.climb, found.data
    best, same = climb.best
    said = [f"It ended because {climb.ended}."]
    if found.needs is not None and climb.upwards:
        whole = written(RESERVE * (found.needs + found.prepared))
        said.append(
            f"More time: --budget {whole} or more allows the next look ({climb.upwards[0]}); what "
            "is finished is kept."
        )
    rivals = [m for m in climb.left if m != best]
    if rivals and not same and not climb.upwards:
        look = climb.last.look
        rival = max(rivals, key=lambda m: look.values[m])
        times, images = look.needed(best, rival), look.of_images(best, rival)
        if times is None or times > MANY:
            said.append(f"{best} and {rival} differ too little for more images to tell them apart: "
                        "choose by cost.")  # fmt: skip
        else:
            said.append(f"About {times:.1f} times as many training images would tell {best} and "
                        f"{rival} apart, if they differ by as much as here.")  # fmt: skip
        if images is not None and images < 0.5:
            said.append("Fits with other seeds differ more than images do: more images in each "
                        "class help both.")  # fmt: skip
    weak = weakest(found, best)
    if weak:
        each = [f"{shown(n)} ({right} of {number})" for n, right, number in weak]
        said.append(f"More images of the classes that {best} most often misses: {_list(each)}.")
    most = max(data.counts.values())
    if data.asked < most:
        said.append(f"There are up to {most} training images a class; only {data.asked} were "
                    f"drawn. --shots {most} compares with all of them.")  # fmt: skip
    if not data.has_val:
        said.append(
            "The dataset has no val images: methods that choose settings do so on training images "
            "that are not drawn. A val part of its own gives them more."
        )
    return said


def weakest(found: Recommendation, method: str) -> list[tuple[str, int, int]]:
    """The classes with the lowest accuracy on the folds: name, right answers, and answers."""
    right, every = Counter[str](), Counter[str]()
    for record in found.records[method]:
        try:
            each = predictions.read(record, "test", whole=False)
        except predictions.Missing:
            return []
        if each.split is None:
            return []
        for label, said in zip(each.labels.tolist(), each.classes.tolist(), strict=True):
            every[each.split.names[label]] += 1
            right[each.split.names[label]] += label == said
    order = sorted(every, key=lambda name: (right[name] / every[name], name))
    return [(n, right[n], every[n]) for n in order[:WEAK] if right[n] < every[n]]


def _final(found: Recommendation, best: str, command: Sequence[str]) -> list[str]:
    shots = found.data.final_shots(found.uses_val)
    first = next(iter(found.records[best]))
    line = shlex.join(["python", "-m", "harness", "run", "--methods", best, "--tasks", "few_shot",
                       "--shots", str(shots), *command])  # fmt: skip
    return [
        f"  {line}",
        *wrapped([
            "It scores the test images, once, at the end. In Python, with the .json file that it "
            f"writes below {first.folder}/few_shot:"
        ]),
        '  import harness; model = harness.load("FILE.json"); model.logits(["IMAGE"])',
        *wrapped([
            f"The accuracies here are of fits that draw {found.climb.last.rung.shots} images a "
            f"class from {_share(len(found.data.folds))} of the training images. This fit draws "
            f"{shots} from all of them, and may do better."
        ]),
    ]  # fmt: skip


def _share(folds: int) -> str:
    return {2: "half", 3: "two thirds", 4: "three quarters"}.get(folds, "four fifths")


def _caption(found: Recommendation) -> str:
    look, rung = found.climb.last.look, found.climb.last.rung
    sample = look.sample
    units = f" in {sample.units:,} units" if sample.units < sample.images else ""
    return "\n".join(wrapped([
        f"{found.data.name}, {found.backbone}: {rung} of {len(found.data.folds)} folds, "
        f"{sample.images:,} held-out images{units}. Accuracy and difference in percent, with 95% "
        "intervals for other images and seeds; the test images were not opened."
    ]))  # fmt: skip


def _methods(found: Recommendation) -> list[dict[str, str]]:
    climb, look = found.climb, found.climb.last.look
    best, _ = climb.best
    rows = []
    for label in sorted(look.labels, key=lambda m: -look.values[m]):
        cost = _costs(found, label)
        state = "recommended" if label == best else "not told apart"
        if label in climb.beaten:
            state = f"beaten by {climb.beaten[label][0]}"
        rows.append({
            "method": label,
            "accuracy": f"{_percent(look, label)[:-1]} ({interval(look.interval(label))})",
            f"{best} is ahead by": signed(look.difference(best, label)) if label != best else "",
            "params": f"{cost['trainable_parameters']:,}",
            "fit": f"{cost['train_seconds']:.1f} s",
            "verdict": state,
        })  # fmt: skip
    return rows


def _looks(found: Recommendation) -> list[dict[str, str]]:
    rows = []
    for number, (taken, spent) in enumerate(zip(found.climb.looks, found.looks, strict=True), 1):
        look = taken.look
        rows.append({
            "look": str(number), "compared": str(taken.rung), "methods": str(len(look.labels)),
            "runs": str(spent.runs), "of them kept": str(spent.kept),
            "forecast": duration(spent.forecast), "taken": duration(spent.seconds),
            "best": look.leader, "beaten": ", ".join(look.beaten) or "none",
        })  # fmt: skip
    return rows


def _percent(look: Look, label: str) -> str:
    return f"{100 * look.values[label]:.1f}%"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def as_json(found: Recommendation) -> str:
    """Raw numbers."""
    climb = found.climb
    best, same = climb.best
    content = {
        "dataset": found.data.name, "backbone": found.backbone, "method": best,
        "told_apart": climb.told_apart, "practically_the_same": same, "left": climb.left,
        "beaten": {name: {"by": by, **asdict(rung)} for name, (by, rung) in climb.beaten.items()},
        "untried": climb.untried, "failed": climb.failed, "refused": dict(found.refused),
        "ended": climb.ended, "error_of_all_looks": 1 - SURE, "share_of_a_pair": climb.share,
        "budget_seconds": found.budget, "spent_seconds": found.spent,
        "next_look": asdict(climb.upwards[0]) | {"seconds": found.needs} if climb.upwards else None,
        "folds": len(found.data.folds), "shots_of_folds": found.data.shots,
        "shots_of_the_final_fit": found.data.final_shots(found.uses_val),
        "training_images": dict(found.data.counts),
        "weakest_classes": [{"class": n, "right": r, "answers": k}
                            for n, r, k in weakest(found, best)],
        "looks": [
            {
                **asdict(taken.rung), "methods": list(taken.look.labels),
                "images": taken.look.sample.images, "units": taken.look.sample.units,
                "accuracy": {m: _finite(taken.look.interval(m)) for m in taken.look.labels},
                "pairs": [
                    {"first": a, "second": b, **_finite(taken.look.difference(a, b)),
                     "p_used": taken.look.p(a, b)}
                    for i, a in enumerate(taken.look.labels) for b in taken.look.labels[i + 1:]
                ],
                "beaten": dict(taken.look.beaten), "no_time_for": list(taken.left_out),
                "forecast_seconds": spent.forecast, "seconds": spent.seconds,
                "runs": spent.runs, "kept": spent.kept,
            }
            for taken, spent in zip(climb.looks, found.looks, strict=True)
        ],
        "costs": {method: _costs(found, method) for method in found.records},
    }  # fmt: skip
    return json.dumps(content, indent=1, allow_nan=False)


def _finite(found: Difference) -> dict[str, float | None]:
    values = asdict(found)
    return {n: v if v is None or math.isfinite(v) else None for n, v in values.items()}
