"""Several runs at once on one device: the throughput of processes beside each other."""

import tempfile
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from harness.bench.matrix import MATRIX
from harness.bench.process import called
from harness.records.tables import plain_table

JOBS = (1, 2, 4)


def jobs(methods: Sequence[str], options: Sequence[str], counts: Sequence[int] = JOBS) -> Any:
    """Seconds of the same `run` command, from empty caches, shared by so many processes.

    options: of every command, such as `--device`."""
    dataset, seeds = MATRIX
    chosen = ["run", "--tasks", "base2new", "--datasets", dataset, "--methods", ",".join(methods)]
    chosen += ["--seeds", ",".join(map(str, seeds)), *options]
    seconds = dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for count in tqdm(counts, desc="jobs", disable=None):
            places = ["--results", f"{folder}/{count}", "--cache-dir", f"{folder}/cache-{count}"]
            ended = called("-m", "harness", *chosen, *places, "--jobs", str(count))
            seconds[str(count)] = ended.seconds
    return {"methods": list(methods), "dataset": dataset, "seeds": list(seeds), "seconds": seconds}


def table(found: Any) -> str:
    """Runs an hour by the number of processes."""
    runs = len(found["methods"]) * len(found["seeds"])
    first = next(iter(found["seconds"].values()))
    shown = [
        {
            "processes": count,
            "s": f"{seconds:.1f}",
            "runs an hour": f"{3600 * runs / seconds:,.0f}",
            "times": f"{first / seconds:.2f}",
        }
        for count, seconds in found["seconds"].items()
    ]
    what = f"{len(found['methods'])} methods x {len(found['seeds'])} seeds on {found['dataset']}"
    return f"{what}, emoji-mini, shared by processes on one device:\n\n{plain_table(shown)}"
