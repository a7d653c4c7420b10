"""The leaderboard of a hundred thousand records: seconds and memory, with a cold and a warm index.

The records are made up, with as much in them as a run's, and predictions of few images.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from harness.bench.process import called
from harness.records.record import WHERE, Record
from harness.records.store import PREDICTIONS, Store, digest
from harness.records.tables import count, format_table

METHODS, DATASETS, SEEDS = 50, 20, 20
SHOTS = (1, 2, 4, 8, 16)  # a table each
IMAGES, VIEWS, CLASSES = 200, 2, 25
LIMITS = {"cold": 90.0, "warm": 20.0}  # seconds


def measured(
    methods: int = METHODS, datasets: int = DATASETS, seeds: int = SEEDS
) -> dict[str, Any]:
    """Seconds of wall clock and processor, and bytes at most, of each call.

    Raises:
        HarnessError: a command failed, with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        number = written(results, methods, datasets, seeds)
        cache, found = str(Path(folder) / "cache"), list[dict[str, Any]]()
        for index in LIMITS:
            command = ["-m", "harness", "leaderboard", "--results", str(results)]
            ended = called(*command, HARNESS_CACHE=cache)
            found.append({
                "index": index, "seconds": ended.seconds,
                "processor_seconds": ended.processor_seconds, "bytes": ended.bytes,
            })  # fmt: skip
    return {"records": number, "images": IMAGES, "tables": len(SHOTS), "rows": found,
            "load": os.getloadavg()[0], "processors": os.cpu_count()}  # fmt: skip


def written(folder: Path, methods: int, datasets: int, seeds: int) -> int:
    """Writes a record of few_shot for each method, dataset, seed and number of shots; how many."""
    store, number = Store(folder).open(), 0
    labels = np.arange(IMAGES) % CLASSES
    for dataset in (f"data_{i:02}" for i in range(datasets)):
        split = digest([dataset])
        store.write_split(split, {
            "dataset": dataset, "template": "a photo of a {}.",
            "names": [f"class {i}" for i in range(CLASSES)],
            "paths": [f"{label}/{i}.png" for i, label in enumerate(labels)],
            "labels": labels.tolist(), "units": [i // VIEWS for i in range(IMAGES)],
        })  # fmt: skip
        for method, seed in np.ndindex(methods, seeds):
            drawn = np.random.default_rng([len(dataset), method, seed]).random(IMAGES)
            right = drawn < 0.5 + 0.4 * method / methods
            tensors = _predictions(np.where(right, labels, (labels + 1) % CLASSES), right)
            for shots in SHOTS:
                record = _record(f"method_{method:02}", dataset, seed + 1, shots, split, right)
                path = store.path(record.run, record.key)
                path.parent.mkdir(parents=True, exist_ok=True)
                content = {k: v for k, v in asdict(record).items() if k not in WHERE}
                path.write_text(json.dumps(content, indent=1), encoding="utf-8")
                save_file(tensors, path.with_suffix(PREDICTIONS), {"key": record.key})
                number += 1
    return number


def _predictions(classes: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> dict[str, Any]:
    best = (classes[:, None] + np.arange(5)) % CLASSES
    likely = np.tile(np.array([0.7, 0.1, 0.05, 0.05, 0.05], np.float16), (len(classes), 1))
    return {
        "test.class": classes.astype(np.int32), "test.best": best.astype(np.int32),
        "test.probabilities": likely, "test.true": np.log(np.where(right, 0.7, 0.1)).astype("f4"),
    }  # fmt: skip


def _record(
    method: str, dataset: str, seed: int, shots: int, split: str, right: np.ndarray[Any, Any]
) -> Record:
    run = {
        "method": method, "overrides": {}, "given": [], "task": "few_shot", "dataset": dataset,
        "backbone": "none", "shots": shots, "seed": seed, "code": "c", "engine": 1,
        "task_fields": {"forgetting": False, "others": []},
        "hyperparameters": {f"field_{i}": i / 8 for i in range(12)},
        "settings": {"max_epochs": None, "max_steps": None, "crop_scale": [0.08, 1.0],
                     "precision": "fp32", "split": "test"},
        "fingerprints": {"weights": "w", "train": digest([dataset, seed, shots]),
                         "evaluated": {"test": split}},
    }  # fmt: skip
    score = {"accuracy": float(right.mean()), "correct": int(right.sum()), "total": len(right)}
    cost = {f"{part}_seconds": 1.5 for part in ("read", "train", "evaluate")}
    losses = {"epoch_losses": [2.5 - i / 100 for i in range(50)], "trainable_parameters": 1000}
    about = {"time": "2026-01-01T00:00:00+00:00", "command": f"python -m harness run {method}",
             "device": "none", "threads": 1, "python": "3.11.7"}  # fmt: skip
    return Record(digest(run), "done", run, {"test": score}, cost | losses, [], about)


def table(content: Mapping[str, Any]) -> str:
    """The measurements as a table."""
    rows = [
        {
            "index": row["index"],
            "seconds": f"{row['seconds']:.1f}",
            "of the processor": f"{row['processor_seconds']:.1f}",
            "GB at most": f"{row['bytes'] / 2**30:.2f}",
            "may take": f"{LIMITS[row['index']]:g} s",
        }
        for row in content["rows"]
    ]
    return format_table(
        rows, "markdown",
        f"`leaderboard` of {count(content['records'])} made-up records in {content['tables']} "
        f"tables, with intervals and places\nfrom predictions of {content['images']} images each. "
        f"{content['processors']} processors, on which {content['load']:.1f} processes were "
        "waiting or at work.",
    )  # fmt: skip
