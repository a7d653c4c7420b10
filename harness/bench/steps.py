"""The engine against the arithmetic of the published training loops: seconds, FLOPs and memory.

The naive way encodes 77 tokens of every class in every step, through the whole tower; frozen
texts (teachers) are encoded once, as the published loops do. Both ways take the same steps on the
same random pixels and names, in one process and in turn; the images are encoded in every step.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

from harness.bench.naive import naively
from harness.bench.step import StepBenchmark
from harness.fitting.memory import step_memory
from harness.fitting.step import Chunks
from harness.fitting.texts import text_features, texts
from harness.measure import operations, taken, timed
from harness.method import Method
from harness.records.tables import plain_table
from harness.towers.openclip import Clip

FEW = (50, 100, 200)  # classes from which the naive way is extrapolated


@dataclass(frozen=True)
class Cost:
    """Of one training step: seconds (median), counted FLOPs, bytes above what was in use before.

    extrapolated: measured with fewer classes, and continued along a straight line.
    """

    seconds: float
    flops: float
    bytes: float | None
    extrapolated: bool = False


@dataclass(frozen=True)
class Row:
    """A method at a number of classes, both ways. cached: seconds of the engine's step when another
    run has seen the same views; evaluated, limit: images a second, without the texts that are
    encoded once an evaluation, and of the bare image tower."""

    method: str
    classes: int
    batch: int
    engine: Cost
    naive: Cost
    cached: float | None
    chunks: Chunks
    evaluated: float
    limit: float

    @property
    def saved(self) -> float | None:
        """The seconds saved over those that the FLOPs say are saved; None where they say none."""
        predicted = 1 - self.engine.flops / self.naive.flops
        if predicted < 0.02:
            return None
        return (1 - self.engine.seconds / self.naive.seconds) / predicted


def steps(
    clip: Clip, methods: Mapping[str, Method], counts: Sequence[int], repeats: int
) -> Iterator[Row]:
    """A row for each method and number of classes."""
    memory = step_memory(clip.device)
    with tqdm(total=len(methods) * len(counts), desc="bench", disable=None) as bar:
        for count, (name, method) in itertools.product(counts, methods.items()):
            bar.set_postfix_str(f"{name}, {count} classes")
            yield _row(clip, name, method, count, memory, repeats)
            bar.update()


def _row(clip: Clip, name: str, method: Method, count: int, memory: int, repeats: int) -> Row:
    bed = StepBenchmark(clip, method, count, memory)
    works: dict[str, Callable[[], object]] = {"engine": bed.engine}
    if bed.fits_naively:
        works["naive"] = bed.naive
    memories = {way: taken(work, clip.device) for way, work in works.items()}
    if bed.chunks == Chunks():
        works["cached"] = bed.cached
        bed.cached()
    seconds = timed(works, repeats, clip.device, warm=True)
    parts = "recomputed" if bed.chunks.checkpointing else "halves"
    flops = bed.flops(bed.prompts, parts if bed.chunks != Chunks() else "whole")
    engine = Cost(seconds["engine"].median, flops, memories["engine"])
    with naively():
        flops = bed.flops(bed.whole, "whole")
    if bed.fits_naively:
        naive = Cost(seconds["naive"].median, flops, memories["naive"])
    else:
        naive = _continued(clip, method, count, memory, repeats, flops)
    images = bed.normalised(bed.pixels[: bed.scored])
    scoring = timed(
        {"score": bed.evaluate(), "bare": partial(bed.bare, images)}, repeats, clip.device
    )
    limit = scoring["bare"].median
    if method.text_per_image:  # the texts of each image, at the rate of the bare tower
        rate = operations(partial(bed.bare, images[:1])) * bed.scored / limit
        prompts = texts(bed.model, bed.classes, training=False, cache=bed.cache)
        one = torch.zeros(1, clip.embedding, device=clip.device)
        limit += bed.scored * operations(lambda: text_features(bed.model, prompts, one)) / rate
    cached = seconds["cached"].median if "cached" in seconds else None
    return Row(
        name, count, method.batch_size, engine, naive, cached, bed.chunks,
        bed.scored / scoring["score"].median, bed.scored / limit,
    )  # fmt: skip


def _continued(
    clip: Clip, method: Method, count: int, memory: int, repeats: int, flops: float
) -> Cost:
    """The naive way's cost from what it is at fewer classes."""
    at, seconds, sizes = list[float](), list[float](), list[float]()
    for few in FEW:
        bed = StepBenchmark(clip, method, few, memory)
        if bed.fits_naively:
            size = taken(bed.naive, clip.device)
            at.append(few)
            sizes.append(math.nan if size is None else size)
            seconds.append(timed({"n": bed.naive}, repeats, clip.device, warm=True)["n"].median)
    most = _along(at, sizes, count)
    return Cost(_along(at, seconds, count), flops, None if math.isnan(most) else most, True)


def _along(at: Sequence[float], values: Sequence[float], where: float) -> float:
    """A straight line of least squares through the values, at `where`."""
    line = statistics.linear_regression(at, values)
    return line.intercept + line.slope * where


def table(rows: Sequence[Row]) -> str:
    """The rows as a table, with what the columns mean."""
    shown = [
        {
            "method": row.method,
            "C": row.classes,
            "batch": row.batch,
            "naive": f"{row.naive.seconds:.2f}" + "~" * row.naive.extrapolated,
            "engine": f"{row.engine.seconds:.2f}",
            "cached": "–" if row.cached is None else f"{row.cached:.2f}",
            "faster": f"{row.naive.seconds / row.engine.seconds:.2f}",
            "FLOPs": f"{row.naive.flops / row.engine.flops:.2f}",
            "saved": "–" if row.saved is None else f"{row.saved:.0%}",
            "naive GB": _gigabytes(row.naive.bytes) + "~" * row.naive.extrapolated,
            "GB": _gigabytes(row.engine.bytes),
            "scored": f"{row.evaluated:,.0f}" if row.evaluated >= 100 else f"{row.evaluated:.3g}",
            "limit": f"{row.evaluated / row.limit:.0%}",
        }
        for row in rows
    ]
    notes = (
        "C classes. Seconds of a training step: naively (all positions of a text, whole towers,\n"
        "nothing kept), by the engine, and by the engine when another run has seen the views.\n"
        "faster: naive over engine; FLOPs: the same of counted operations; saved: time saved over\n"
        "what the FLOPs say is saved (– under 2%). GB: above what was in use. scored: images\n"
        "evaluated a second; limit: in percent of the bare image tower's, with texts for each\n"
        "image at the tower's rate of FLOPs. ~: does not fit in memory, continued from fewer\n"
        "classes."
    )
    return f"{plain_table(shown, numbers=True)}\n\n{notes}"


def _gigabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f}"
