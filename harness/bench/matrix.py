"""Seconds of whole `run` commands: the engine from empty caches, and naive runs of each method."""

import tempfile
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from harness.bench.process import called

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
        engine = called("-m", "harness", *chosen, *every, *places).seconds
        naive: dict[str, float] = {}
        for name in tqdm(methods, desc="naive runs", disable=None):
            one = ["--methods", name, "--seeds", str(seeds[0]), "--results", f"{folder}/{name}"]
            naive[name] = called(
                "-m", "harness.bench.naive", *chosen, *one, "--cache-limit", "0"
            ).seconds
    return {
        "methods": list(methods), "dataset": dataset, "seeds": list(seeds),
        "engine_seconds": engine, "naive_seconds_a_seed": naive,
        "naive_seconds": len(seeds) * sum(naive.values()),
    }  # fmt: skip
