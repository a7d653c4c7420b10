"""A recommendation as raw numbers, and those of its text that are in no record by themselves."""

import json
import math
from collections import Counter
from dataclasses import asdict
from statistics import mean
from typing import Any

from harness.certainty.statistics import SURE, Difference
from harness.records import predictions
from harness.runs.recommend import Recommendation

WEAK = 3  # classes that are named


def costs(found: Recommendation, method: str) -> dict[str, Any]:
    """What the fits of the last look cost: trained parameters, and mean seconds of a fit."""
    found_costs = [record.cost for record in found.records[method]]
    seconds = [(c.get("train_seconds") or 0.0) + (c.get("train_frozen_seconds") or 0.0)
               for c in found_costs]  # fmt: skip
    return {
        "trainable_parameters": found_costs[0].get("trainable_parameters") or 0,
        "train_seconds": mean(seconds),
    }


def weakest(found: Recommendation, method: str) -> list[tuple[str, int, int]]:
    """The classes with the lowest accuracy on the folds: name, right answers, and answers,
    one a fit and image."""
    right, every = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
    for record in found.records[method]:
        try:
            each = predictions.read(record, "test", whole=False)
        except predictions.Missing:
            return []
        if each.split is None:
            return []
        for label, said in zip(each.labels.tolist(), each.classes.tolist(), strict=True):
            one = label, each.split.names[label]  # two classes may have one name
            every[one] += 1
            right[one] += label == said
    order = sorted(every, key=lambda one: (right[one] / every[one], one[1], one[0]))
    return [(n[1], right[n], every[n]) for n in order[:WEAK] if right[n] < every[n]]


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
        "costs": {method: costs(found, method) for method in found.records},
    }  # fmt: skip
    return json.dumps(content, indent=1, allow_nan=False)


def _finite(found: Difference) -> dict[str, float | None]:
    values = asdict(found)
    return {n: v if v is None or math.isfinite(v) else None for n, v in values.items()}
