"""The engine against the arithmetic of the published training loops: seconds, FLOPs and memory.

The naive way encodes 77 tokens of every class in every step, through the whole tower; frozen
texts (teachers) are encoded once, as the published loops do. Both ways take the same steps on the
same random pixels and names, in one process and in turn; the images are encoded in every step.
"""

import contextlib
import datetime
import functools
import itertools
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from harness import backbone as backbones
from harness import data
from harness import texts as of_texts
from harness.backbone import IMAGENET
from harness.cache import Cache
from harness.clip import Clip, Tower, cast_once
from harness.dataset import Classes
from harness.errors import HarnessError
from harness.graft import Model
from harness.inputs import image_features
from harness.measure import device_name, operations, taken, timed
from harness.memory import choose, memory_of
from harness.method import Given, Method
from harness.randomness import generator
from harness.texts import Texts, text_features, texts
from harness.trainer import Batch, Chunks, Room, TrainingStep

PARTS = ("steps", "memory", "matrix")
MATRIX = ("emoji_food", (1, 2, 3))  # dataset and seeds
FEW = (50, 100, 200)  # classes from which the naive way is extrapolated
SCORED = 32  # images of an evaluation


def names(count: int) -> tuple[str, ...]:
    """Class names of ImageNet, evenly spaced among its thousand, which come again above that."""
    whole = len(IMAGENET)
    return tuple(IMAGENET[i * whole // count if count < whole else i % whole] for i in range(count))


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


class Bed:
    """A method on a backbone with some classes, and one step of it, either way."""

    def __init__(self, clip: Clip, method: Method, count: int, memory: int) -> None:
        self.clip, self.method = clip, method
        self.classes = Classes("bench", names(count), "a photo of a {}.")
        self.model = Model(clip, method, self.classes, seed=1)
        self.model.trained.to(clip.logit_scale.dtype)
        size = (max(method.batch_size, SCORED), 3, clip.size, clip.size)
        self.pixels = torch.randint(0, 256, size, generator=generator("pixels"), dtype=torch.uint8)
        self.labels = (torch.arange(method.batch_size) % count).to(clip.device)
        self.optimiser = method.optimiser(self.model.parameters())
        self.cache = Cache()
        self.prompts = self.encode()
        self.chunks = choose(self.model, method.batch_size, self.prompts, memory)
        self.memory, self.number = memory, 0
        self.scored = SCORED if not method.text_per_image else SCORED // 8

    @functools.cached_property
    def fits_naively(self) -> bool:
        """Whether a naive step may be done at once."""
        with naively():
            chosen = choose(self.model, self.method.batch_size, self.whole, self.memory)
        return chosen == Chunks()

    def encode(self) -> Texts:
        """What reaches the changed part of the text tower."""
        return texts(self.model, self.classes, training=True, cache=self.cache)

    def rows(self, prompts: Texts) -> int:
        """Text rows of a step."""
        return len(prompts.ids) * (self.method.batch_size if self.method.text_per_image else 1)

    def start(self, images: int | None = None) -> Tensor:
        """What reaches the changed part of the image tower, of the first images of a batch."""
        pixels = self.pixels[: images or self.method.batch_size]
        return self.model.start(self.clip.image, self.normalised(pixels))

    def normalised(self, pixels: Tensor) -> Tensor:
        clip = self.clip
        images = data.normalise(pixels.to(clip.device), clip.mean, clip.std)
        return images.to(clip.logit_scale.dtype)

    def engine(self, chunks: Chunks | None = None) -> None:
        """A step as the trainer does it, images encoded anew."""
        self._step(self.start(), self.prompts, chunks or self.chunks)

    def cached(self) -> None:
        """A step whose images another run has encoded."""
        self._step(self.kept, self.prompts, self.chunks)

    @functools.cached_property
    def kept(self) -> Tensor:
        """What `start` gives, computed once."""
        return self.start()

    def naive(self) -> None:
        """A step as the published loops do it."""
        with naively():
            prompts = self.whole
            self._step(self.start(), prompts, Chunks(texts=self.rows(prompts)))

    @functools.cached_property
    def whole(self) -> Texts:
        """The token ids, which the published loops too make once."""
        with naively():
            return self.encode()

    def evaluate(self) -> Callable[[], object]:
        """Scores a batch of decoded images, the texts being there unless each image has its own."""
        prompts = texts(self.model, self.classes, training=False, cache=self.cache)
        shared = None if self.method.text_per_image else text_features(self.model, prompts)
        given = Given(self.clip.logit_scale.exp(), prompts.references)

        @torch.no_grad()
        def once() -> None:
            x = self.model.start(self.clip.image, self.normalised(self.pixels[: self.scored]))
            image = image_features(self.model, x)
            own = text_features(self.model, prompts, image) if shared is None else shared
            self.model.output(image, own, given).logits.argmax(-1)

        return once

    @torch.no_grad()
    def bare(self, images: Tensor) -> None:
        """The image tower alone, on images that are in memory as it takes them."""
        self.clip.image(images)

    def flops(self, prompts: Texts, parts: str) -> float:
        """Operations of a step with these texts, which pass `whole`, in `halves`, or in halves
        whose blocks are `recomputed`.

        They are counted with few images and few texts of each length; the rest is proportional.
        """
        own, per_class = self.method.text_per_image, prompts.per_class
        batch = self.method.batch_size
        images = 1 if own else min(batch, 2)

        def counted(texts: Texts, length: int, classes: int, images: int = images) -> int:
            """Of so many classes with the texts of one that has this length."""
            one = int((texts.lengths == length).nonzero()[0]) // per_class
            few = texts.of_classes(torch.full((classes,), one, device=texts.ids.device))
            at_once = classes * per_class
            chunks = Chunks(0, at_once if parts == "whole" else at_once // 2, parts == "recomputed")
            return operations(lambda: self._step(self.start(images), few, chunks, first=True))

        if self.model.cut(self.clip.text) is None:
            return operations(lambda: self._step(self.start(), prompts, Chunks()))
        plain, any_length = replace(prompts, shared=0), int(prompts.lengths[0])
        two, four = (counted(plain, any_length, classes) for classes in (2, 4))
        of_images, total = 2 * two - four, 0.0
        if images > 1:
            total += (two - counted(plain, any_length, 2, 1)) * (batch - images)
        for rows, length, _ in prompts.groups(batch if own else 1):
            two, four = (counted(prompts, length, classes) for classes in (2, 4))
            shared, each = 2 * two - four - of_images, (four - two) / 2 / per_class
            total += shared + len(rows) * each
        return (of_images + total) * (batch if own else 1)

    def _step(self, x: Tensor, prompts: Texts, chunks: Chunks, first: bool = False) -> None:
        """first: whether all images are of the first class."""
        labels = self.labels[: len(x)] * (not first)
        batch = Batch(self.model, x, prompts, labels, (1, self.number), chunks)
        self.method.step(TrainingStep(batch, self.optimiser, 1e-5, 0, 10**6, Room(chunks)))
        self.number += 1


@contextlib.contextmanager
def naively() -> Iterator[None]:
    """No cropping, nothing that texts share, no tower that is started after its first block."""
    real = Model.cut

    def whole(model: Model, tower: Tower) -> int | None:
        return None if real(model, tower) is None else -1

    def all_positions(ids: Tensor) -> Tensor:
        return torch.full((len(ids),), ids.shape[1])

    with (
        mock.patch.object(Model, "cut", whole),
        mock.patch.object(of_texts, "needed", all_positions),
        mock.patch.object(of_texts, "beginning", return_value=0),
    ):
        yield


def steps(
    clip: Clip, methods: Mapping[str, Method], counts: Sequence[int], repeats: int
) -> Iterator[Row]:
    """A row for each method and number of classes."""
    memory = memory_of(clip.device)
    with tqdm(total=len(methods) * len(counts), desc="bench", disable=None) as bar:
        for count, (name, method) in itertools.product(counts, methods.items()):
            bar.set_postfix_str(f"{name}, {count} classes")
            yield _row(clip, name, method, count, memory, repeats)
            bar.update()


def _row(clip: Clip, name: str, method: Method, count: int, memory: int, repeats: int) -> Row:
    bed = Bed(clip, method, count, memory)
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
        bed = Bed(clip, method, few, memory)
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
    align = ["left"] + ["right"] * (len(shown[0]) - 1)
    laid = tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True, colalign=align)
    return f"{laid}\n\n{notes}"


def _gigabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f}"


@dataclass(frozen=True)
class Within:
    """What a training step takes when it may take `allowed` bytes; both above what was in use."""

    method: str
    classes: int
    allowed: int
    bytes: int | None
    chunks: Chunks


def within(clip: Clip, methods: Mapping[str, Method], count: int, allowed: int) -> Iterator[Within]:
    """A step of each method, in the micro-batches that the engine chooses."""
    for name, method in tqdm(methods.items(), desc="memory", disable=None):
        bed = Bed(clip, method, count, allowed)
        yield Within(name, count, allowed, taken(bed.engine, clip.device), bed.chunks)


def tight(rows: Sequence[Within]) -> str:
    """The rows as a table."""
    shown = [
        {
            "method": row.method,
            "C": row.classes,
            "allowed GB": _gigabytes(row.allowed),
            "taken GB": _gigabytes(row.bytes),
            "images at once": row.chunks.images or "all",
            "texts at once": row.chunks.texts or "all",
            "recomputed": "yes" if row.chunks.checkpointing else "no",
        }
        for row in rows
    ]
    return "Memory of a training step, above what was in use:\n\n" + tabulate(
        shown, headers="keys", tablefmt="simple", disable_numparse=True
    )


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
                [sys.executable, "-m", "harness.naive", *chosen, *one, "--cache-limit", "0"]
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


def report(
    rows: Sequence[Row],
    sizes: Sequence[Within],
    whole: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> str:
    """All that was measured as text, with the device."""
    parts = [f"{about['backbone']}, {about['precision']}, {about['device']}, "
             f"{about['threads']} threads, torch {about['torch']}."]  # fmt: skip
    if rows:
        parts.append(table(rows))
    if sizes:
        parts.append(tight(sizes))
    if whole:
        speed = whole["naive_seconds"] / whole["engine_seconds"]
        parts.append(
            f"emoji-mini, {whole['dataset']}, {len(whole['methods'])} methods x "
            f"{len(whole['seeds'])} seeds from empty caches: {whole['engine_seconds']:.0f} s "
            f"against {whole['naive_seconds']:.0f} s of naive runs, {speed:.1f} times faster\n("
            + ", ".join(f"{n} {s:.0f} s" for n, s in whole["naive_seconds_a_seed"].items())
            + " a naive run)."
        )
    return "\n\n".join(parts)


def save(path: Path, content: Mapping[str, Any], text: str) -> None:
    """A JSON file, and the printed text beside it as .md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(f"```\n{text}\n```\n", encoding="utf-8")


def _check(clip: Clip, methods: Mapping[str, Method]) -> None:
    few = Classes("bench", names(2), "a photo of a {}.")
    for name, method in methods.items():
        trained = method.batch_size and Model(clip, method, few, seed=1).parameters()
        if method.frozen_images or not trained:
            raise HarnessError(
                f"bench times training steps on batches of images; {name} takes none, or needs "
                "their frozen features too. Measure it with `run --tasks efficiency`."
            )


def run(
    methods: Mapping[str, Method],
    counts: Sequence[int],
    backbone: str,
    device: str,
    repeats: int,
    parts: Sequence[str],
    memory: float,
    out: Path | None,
    plugins: Sequence[str] = (),
) -> str:
    """Measures what is asked for; returns the text, and keeps it in `out` as it goes.

    Raises:
        HarnessError: a method whose step on random images means nothing.
    """
    rows: list[Row] = []
    sizes: list[Within] = []
    whole: dict[str, Any] | None = None
    about = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "backbone": backbone, "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "precision": "bf16" if device.startswith("cuda") else "fp32", "repeats": repeats,
    }  # fmt: skip

    def so_far() -> str:
        text = report(rows, sizes, whole, about)
        if out:
            lists = {"steps": [asdict(r) for r in rows], "memory": [asdict(r) for r in sizes]}
            save(out, {"about": about, **lists, "matrix": whole}, text)
        return text

    if {"steps", "memory"} & set(parts):
        clip = backbones.load(backbone, device)
        _check(clip, methods)
        bf16 = about["precision"] == "bf16"
        with (
            torch.autocast(clip.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False),
            cast_once(clip, torch.bfloat16) if bf16 else contextlib.nullcontext(),
        ):
            if "memory" in parts:
                for size in within(clip, methods, max(counts), int(memory * 2**30)):
                    sizes.append(size)
                    so_far()
            if "steps" in parts:
                for row in steps(clip, methods, counts, repeats):
                    rows.append(row)
                    so_far()
        del clip
    if "matrix" in parts:
        options = ["--device", device, *(f"--plugin={each}" for each in plugins)]
        whole = matrix(list(methods), *MATRIX, options)
    return so_far()
