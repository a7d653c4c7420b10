"""Records on disk with predictions that are made up: what intervals and reports read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.records.record import Record
from harness.records.store import Store, digest

CLASSES, VIEWS = 4, 2


def write(
    folder: Path,
    accuracies: Mapping[str, float],
    *,
    task: str = "base2new",
    evaluations: tuple[str, ...] = ("base", "new"),
    datasets: tuple[str, ...] = ("toy_a", "toy_b"),
    seeds: tuple[int, ...] = (1, 2, 3),
    images: int = 200,
    backbone: str = "emoji-mini",
    splits: bool = True,
    losses: tuple[float, ...] = (),
    **run: Any,
) -> Store:
    """A record for each method (with about this accuracy), dataset and seed."""
    store = Store(folder).open()
    for number, (method, accuracy) in enumerate(accuracies.items()):
        for dataset in datasets:
            for seed in seeds:
                _one(store, method, accuracy, number, task, evaluations, dataset, seed, images,
                     backbone, splits, losses, run)  # fmt: skip
    return store


def _one(store, method, accuracy, number, task, evaluations, dataset, seed, images, backbone,
         splits, losses, run):  # fmt: skip
    tensors, scores, prints = {}, {}, {}
    for place, name in enumerate(evaluations):
        labels = np.arange(images) % CLASSES
        difficulty = np.random.default_rng([place, len(dataset)]).random(images)
        luck = np.random.default_rng([number, seed, place]).normal(0, 0.02)
        right = difficulty < accuracy + luck
        predicted = np.where(right, labels, (labels + 1) % CLASSES)
        others = np.stack([(predicted + k) % CLASSES for k in range(CLASSES)], 1)
        sure = np.full(images, 0.7)
        rest = np.full((images, CLASSES - 1), 0.1)
        true = np.log(np.where(right, sure, 0.1))
        tensors |= {
            f"{name}.class": torch.tensor(predicted, dtype=torch.int32),
            f"{name}.best": torch.tensor(others, dtype=torch.int32),
            f"{name}.probabilities": torch.tensor(np.c_[sure, rest], dtype=torch.float16),
            f"{name}.true": torch.tensor(true, dtype=torch.float32),
        }
        scores[name] = {"accuracy": float(right.mean()), "correct": int(right.sum()),
                        "total": images}  # fmt: skip
        prints[name] = digest([dataset, name, images])
        if splits:
            store.write_split(prints[name], {
                "dataset": dataset, "template": "a photo of a {}.",
                "names": [f"class {k}" for k in range(CLASSES)],
                "paths": [f"{label}/{image}.png" for image, label in enumerate(labels)],
                "labels": labels.tolist(), "units": [i // VIEWS for i in range(images)],
            })  # fmt: skip
    identity = {
        "method": method, "overrides": {}, "task": task, "dataset": dataset,
        "backbone": backbone, "shots": 16, "seed": seed, "settings": {}, "code": "c",
        "hyperparameters": {"rank": 8}, "fingerprints": {"weights": "w", "evaluated": prints},
        **run,
    }  # fmt: skip
    kept = {"epoch_losses": list(losses)} if losses else {}
    record = Record(
        key=digest(identity), status="done", run=identity, scores=scores,
        cost={"trainable_parameters": 10 * number, "train_seconds": 1.0, **kept},
        provenance={"time": "2026-01-01T00:00:00+00:00"},
    )  # fmt: skip
    store.write(record, tensors)
