"""Seconds of whole `run` commands: the engine from empty caches, and naive runs of each method."""

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from harness.errors import HarnessError

MATRIX = ("emoji_food", (1, 2, 3))  # dataset and seeds


def matrix(
    methods: Sequence[str], dataset: str, seeds: Sequence[int], options: Sequence[str]
) -> dict[str, Any]:
    """Seconds of the whole `run` command for methods x seeds on a dataset of the embedded default,
    from empty caches, and of naive runs of each method (one seed, times the number of seeds).

    options: of every command, such as `--device`."""
    chosen = ["run", "--tasks", "base2new", "--datasets", dataset, *options]
    with tempfile.TemporaryDirectory() as folder:
        every = ["--methods", ",".join(methods), "--seeds", ",".join(map(str, seeds))]
        places = ["--results", f"{folder}/runs", "--cache-dir", f"{folder}/cache"]
        engine = _seconds([sys.executable, "-m", "harness", *chosen, *every, *places])
        naive: dict[str, float] = {}
        for name in tqdm(methods, desc="naive runs", disable=None):
            one = ["--methods", name, "--seeds", str(seeds[0]), "--results", f"{folder}/{name}"]
            naive[name] = _seconds(
                [sys.executable, "-m", "harness.bench.naive", *chosen, *one, "--cache-limit", "0"]
            )
    return {
        "methods": list(methods), "dataset": dataset, "seeds": list(seeds),
        "engine_seconds": engine, "naive_seconds_a_seed": naive,
        "naive_seconds": len(seeds) * sum(naive.values()),
    }  # fmt: skip


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HarnessError(f"{shlex.join(command)} failed:\n{done.stderr.strip()[-1000:]}")
    return time.perf_counter() - started
