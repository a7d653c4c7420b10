"""How far runs can be spread: the makespan of a whole comparison on many devices, simulated.

What a fit and an image of inference take is measured (efficiency records); the datasets are the
published ones, with their classes and test images. Everything else is a stated assumption.
"""

import heapq
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.leaderboards.costs import fit_seconds, image_rate
from harness.records.record import Record
from harness.records.store import Store
from harness.records.tables import count, duration, format_table, wrapped

DEVICES, SPEEDS = (1, 8, 64, 512), (1, 100)  # times as fast as the measured one
SEEDS = 20
START = 17.0  # seconds until a worker has imported, loaded the backbone and planned
OVERHEAD = 0.006  # seconds that a remote task costs its driver, as measured with Ray
IMAGE_BYTES, RECORD_BYTES = 38, 4_000  # of predictions, at most; of a record


@dataclass(frozen=True)
class Job:
    """A fit with its evaluations: seconds, and bytes that come back."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Spread:
    """All jobs on some devices. Seconds; shares of 1; records a second at the driver's best."""

    speed: int
    devices: int
    ideal: float
    shards: float
    driven: float
    longest: float
    driver: float
    records: float
    bytes: float


def jobs(records: Iterable[Record], datasets: Mapping[str, tuple[int, int]]) -> list[Job]:
    """Every method of the records on every dataset (classes, test images), SEEDS times.

    A fit is as much longer as there are more classes, because each has the same number of shots.
    """
    found = []
    for record in records:
        cost = dict(record.cost)
        for classes, images in datasets.values():
            seconds = fit_seconds(cost) * classes / cost["classes"] + images / image_rate(cost)
            size = cost["stored_bytes"] + IMAGE_BYTES * images + RECORD_BYTES
            found += [Job(seconds, size)] * SEEDS
    return found


def spread(every: Sequence[Job], devices: int, writing: float, speed: int = 1) -> Spread:
    """The longest first, to the device that is free first; each is `speed` times as fast as the
    measured one.

    Shards write for themselves; a driver takes the results of all devices one after the other,
    `writing` seconds each.
    """
    seconds = sorted((job.seconds / speed for job in every), reverse=True)
    free = [START] * min(devices, len(every))
    heapq.heapify(free)
    shards = 0.0
    driver = 0.0  # when the driver is free again
    ends = []
    for each in seconds:
        begins = heapq.heappop(free)
        heapq.heappush(free, begins + each)
        shards = max(shards, begins + each + writing)
        ends.append(begins + each)
    busy = writing + OVERHEAD
    for end in sorted(ends):
        driver = max(driver, end) + busy
    return Spread(
        speed=speed, devices=devices, ideal=sum(seconds) / devices, shards=shards, driven=driver,
        longest=seconds[0], driver=busy * len(every) / driver, records=1 / busy,
        bytes=sum(job.bytes for job in every),
    )  # fmt: skip


def writing_seconds(images: int = 5_000, number: int = 20) -> float:
    """What a record with its predictions takes to be written here, in the mean."""
    import torch

    tensors = {
        "test.class": torch.zeros(images, dtype=torch.int32),
        "test.best": torch.zeros(images, 5, dtype=torch.int32),
        "test.probabilities": torch.zeros(images, 5, dtype=torch.float16),
        "test.true": torch.zeros(images),
    }
    run: dict[str, Any] = {
        "method": "m", "task": "few_shot", "dataset": "d", "backbone": "b", "shots": 16,
        "overrides": {}, "settings": {}, "fingerprints": {"weights": "w"},
    }  # fmt: skip
    score = {"test": {"accuracy": 0.0, "correct": 0, "total": images}}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder)).open()
        started = time.perf_counter()
        for seed in range(number):
            store.write(Record(f"k{seed}", "done", run | {"seed": seed}, score), tensors)
        return (time.perf_counter() - started) / number


def measured(records: Sequence[Record], datasets: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """All numbers of DEVICES, and what they were made from."""
    every = jobs(records, datasets)
    writing = writing_seconds()
    return {
        "about": {
            "methods": len(records), "datasets": len(datasets), "seeds": SEEDS,
            "fits": len(every), "device": records[0].run["measured_on"], "start": START,
            "overhead": OVERHEAD, "writing": writing,
            "median_fit": float(np.median([job.seconds for job in every])),
        },
        "spread": [
            asdict(spread(every, devices, writing, speed))
            for speed in SPEEDS for devices in DEVICES
        ],
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """As Markdown."""
    about = found["about"]
    rows = []
    for each in found["spread"]:
        rows.append({
            "devices": f"{count(each['devices'])}, {each['speed']} x",
            "ideal": duration(each["ideal"]),
            "shards": duration(each["shards"]),
            "of ideal": f"{each['shards'] / each['ideal']:.2f}",
            "one driver": duration(each["driven"]),
            "of ideal ": f"{each['driven'] / each['ideal']:.2f}",
            "driver busy": f"{each['driver']:.1%}",
            "results": f"{each['bytes'] / 2**30:.1f} GB",
        })  # fmt: skip
    device, threads = about["device"]
    last = found["spread"][-1]
    limits = [last["records"] * about["median_fit"] / speed for speed in SPEEDS]
    return format_table(rows, "markdown", "\n".join(wrapped([
        f"{about['methods']} methods x {about['datasets']} datasets x {about['seeds']} seeds = "
        f"{count(about['fits'])} fits, as measured on {device}, {threads} threads; simulated.",
        f"Assumed: {about['start']:.0f} s until a device begins, {1000 * about['overhead']:.0f} ms "
        f"a remote task; measured: {1000 * about['writing']:.1f} ms to write a record.",
        f"The longest fit takes {duration(found['spread'][0]['longest'])} as measured: no spread "
        f"is faster. One driver takes {last['records']:.0f} records a second: it keeps up with "
        f"{count(limits[0])} devices as measured, and with {count(limits[1])} that are "
        f"{SPEEDS[1]} times as fast. Before that, the start of each device is what is lost: longer "
        "shares, or workers that stay, are next.",
    ])))  # fmt: skip
