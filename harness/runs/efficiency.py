"""What a run costs: a forecast of its time, and a measurement of its parts."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.dataset import Item
from harness.errors import HarnessError
from harness.fitting.inputs import FewShotSupport, Images, image_features
from harness.fitting.recorded import recorder
from harness.fitting.step import (
    AdaptiveChunks,
    Batch,
    Chunks,
    TrainingStep,
    micro_batches,
    tower_features,
)
from harness.fitting.texts import Texts, text_features, texts
from harness.images.cache import Cache, Tensors
from harness.images.pixels import FiveCrop, epoch_order
from harness.images.source import ImageSource, test_batches, train_batches
from harness.measure import operations, taken, timed
from harness.method import HeadContext, Method
from harness.runs.prepared import ModelSummary, PreparedRun
from harness.splits import Split
from harness.task import Measurement
from harness.towers.openclip import Clip
from harness.towers.tower import Tower


@torch.no_grad()
def forward_rate(clip: Clip) -> float:
    """Token-blocks a second: tokens times blocks times width^2 that the image tower passes.

    A measurement of two small batches, for the forecast alone.
    """
    count = 8
    images = torch.zeros(count, *clip.pixels.shape, device=clip.device)
    float(clip.image(images).sum())
    started = time.perf_counter()
    float(clip.image(images).sum())
    whole = _whole(clip.image)
    return count * whole / (time.perf_counter() - started)


RUN, CLOSED_FORM = 0.3, 1.5  # seconds: records and models, solvers and searches; measured on
# emoji-mini with one thread


def forecast(
    runs: Iterable[PreparedRun], rate: float, opening_and_view: tuple[float, float] | None = None
) -> float:
    """Seconds that `runs` may take: forward passes once, backward passes twice a forward, over the
    blocks after each tower's cut; the pixels of images and training views, by a trial of a few
    unless it is given what each takes; and what each run and each closed form takes beside. Frozen
    parts and fits that runs share are counted once, and nothing is taken to be in the disk cache.
    """
    work, seconds, fitted = 0.0, 0.0, set[str]()
    seen, opened = dict[tuple, int](), set[str]()
    pixels = dict[object, tuple[float, float]]()
    for run in runs:
        image, summary, method = run.context.clip.image, run.summary, run.method.value
        live = {tower.name: _live(tower, summary) for tower in (image, run.context.clip.text)}
        whole = _whole(image)
        seconds += RUN
        if isinstance(run.task.value, Measurement):
            work += _measurement(run, run.task.value, live)
            continue
        passes: list[tuple[Split, int, tuple[object, ...]]]
        passes = [(split, 1, ()) for split in run.evaluated.values()]
        if run.fit_key not in fitted:
            fitted.add(run.fit_key)
            if summary.parameters:
                steps = run.schedule.total
                rows = min(method.batch_size or len(run.train.items), len(run.train.items))
                texts = len(run.train.classes.names) * (rows if method.text_per_image else 1)
                work += 3 * steps * (rows * live["image"] + texts * live["text"])
            views = _views(run)
            passes += [(run.train, views, (run.seed, run.augmentation(method)))] if views else []
            seconds += CLOSED_FORM * _closed_form(method)
        for split, times, drawn in passes:
            count = times * len(split.items)
            if not drawn:
                texts = len(split.classes.names) * (count if method.text_per_image else 1)
                work += count * live["image"] + texts * live["text"]
            key = (split.fingerprint, drawn, summary.cuts["image"])
            fresh = max(0, times - seen.get(key, 0)) * len(split.items)
            seen[key] = max(times, seen.get(key, 0))
            work += fresh * (whole - live["image"])
            source = run.source(split).dataset
            if source not in pixels:
                pixels[source] = opening_and_view or _pixel_seconds(run, split)
            opening, view = pixels[source]
            seconds += fresh * view + (split.fingerprint not in opened) * len(split.items) * opening
            opened.add(split.fingerprint)
    return work / rate + seconds


def _closed_form(method: Method) -> bool:
    """Whether it solves or searches before the first or after the last step."""
    own = type(method)
    return own.prepare is not Method.prepare or own.finish is not Method.finish


def _views(run: PreparedRun) -> int:
    """Passes over the training images with views that were not there before: one an epoch, as many
    as there are kinds of views, and at least those that a closed form takes."""
    method, augmentation = run.method.value, run.augmentation(run.method.value)
    epochs = run.schedule.epochs if run.summary.parameters else 0
    if isinstance(augmentation, FiveCrop):
        return 5 if epochs or _closed_form(method) else 0
    views = min(epochs, augmentation.views or epochs)
    taken = getattr(method, "augmentations", 1) if _closed_form(method) else 0
    return max(views, taken)


def _pixel_seconds(run: PreparedRun, split: Split) -> tuple[float, float]:
    """Seconds to open an image of a split, and to make a view of it; 0 if none can be opened."""
    source, taken = run.source(split), run.context.clip.pixels
    augmentation = run.augmentation(run.method.value)
    items = split.items[:: max(1, len(split.items) // 4)][:4]
    try:
        images = [source.open(item) for item in items]  # what a dataset reads once is there then
        started = time.perf_counter()
        images = [source.open(item) for item in items]
        between = time.perf_counter()
        for position, each in enumerate(images):
            augmentation(each, taken, augmentation.view(0, 0), position)
    except (HarnessError, OSError):
        return 0.0, 0.0
    ended = time.perf_counter()
    return (between - started) / len(items), (ended - between) / len(items)


def _measurement(run: PreparedRun, task: Measurement, live: Mapping[str, float]) -> float:
    """Of a measurement: steps, towers and batches of inference, with those not timed."""
    method, towers = run.method.value, run.context.clip
    rows = min(method.batch_size or len(run.train.items), len(run.train.items))
    texts = len(run.train.classes.names)
    step = rows * live["image"] + texts * (rows if method.text_per_image else 1) * live["text"]
    steps = 6 * (task.repeats + 2) * step if run.summary.parameters and run.schedule.total else 0.0
    whole = _whole(towers.image)
    own = texts * (task.images if method.text_per_image else 1)
    batch = task.images * whole + own * _whole(towers.text)
    return steps + (task.repeats + 2) * batch


def _live(tower: Tower, summary: ModelSummary) -> float:
    """One row's work in the blocks after the cut."""
    cut = summary.cuts[tower.name]
    return _work(tower, 0 if cut is None else len(tower.blocks) - max(cut, 0))


def _whole(tower: Tower) -> float:
    """One row's work in all blocks; a tower without blocks counts as one."""
    return _work(tower, max(1, len(tower.blocks)))


def _work(tower: Tower, blocks: int) -> float:
    return tower.length * blocks * tower.width**2


class UncachedFeatures(ImageSource):
    """Features are computed, whatever other runs have kept; decoded images come from the cache."""

    def kept(
        self,
        kind: str,
        split: Split,
        items: Sequence[Item],
        compute: Callable[[], Tensors],
        *key: Hashable,
    ) -> Tensors:
        if kind == "features":
            return compute()
        return super().kept(kind, split, items, compute, *key)


def measured(
    run: PreparedRun, images: Images, val: Images | None, choose: Callable[[Texts], Chunks]
) -> dict[str, Any]:
    """Seconds (median, least, most), operations and bytes of a run's parts; see tasks/efficiency.

    prepare_seconds: all that is done once a fit, decoded images and nothing else being there.

    train, of a method that takes steps: data, image tower, text tower, and the whole step.
    inference, of a batch: data, image tower, head; texts of all classes, or of the whole batch and
    all classes where each image has its own.
    """
    model, method, split = images.model, images.model.method, images.split
    cost: dict[str, Any] = {
        "trainable_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored_bytes": model.stored_bytes(),
        "classes": len(split.classes.names),
        "cuda": model.clip.device.type == "cuda",
    }
    task = run.task.value
    assert isinstance(task, Measurement)
    printed = task.printed.get(run.method.name)
    if printed and model.clip.name.startswith("ViT-B-16"):
        cost["printed_parameters"] = printed
    images = _alone(images)
    val = _alone(val) if val else None
    started = time.perf_counter()
    prompts = texts(model, split.classes, training=True, cache=images.cache)
    support = FewShotSupport(images, prompts, val, run.seed)
    support.alone(method.prepare)
    once = time.perf_counter() - started
    if model.parameters() and run.schedule.total:
        cost["train"] = _training(run, images, prompts, choose(prompts), task.repeats)
    started = time.perf_counter()
    support.alone(method.finish)
    cost["prepare_seconds"] = once + time.perf_counter() - started
    (evaluated,) = run.evaluated.values()
    few = slice(task.images)
    split = replace(evaluated, items=evaluated.items[few], positions=evaluated.positions[few])
    return cost | {"inference": _inference(replace(images, split=split), task.repeats)}


def _alone(images: Images) -> Images:
    """The images as the first run that uses them finds them: decoded, and known by no cache."""
    source = UncachedFeatures(images.source.dataset, images.source.root, images.source.disk)
    if not source.opened(images.split).groups:
        raise HarnessError(
            "efficiency measures with decoded images, and the cache has no room for them. Give it "
            "some with --cache-limit."
        )
    if images.source.disk:
        for _ in source.test(images.split, images.model.clip.pixels):
            pass
    return replace(images, source=source, cache=Cache(budget=images.cache.budget))


def _training(
    run: PreparedRun, images: Images, prompts: Texts, chunks: Chunks, repeats: int
) -> dict[str, Any]:
    model, split, device = images.model, images.split, images.model.clip.device
    (batch,) = epoch_order(len(split.items), model.method.batch_size, run.seed, 0)[:1]
    view = images.augmentation.view(run.seed, 0)
    labels, optimiser = images.labels[batch], model.optimiser()

    def read() -> Tensor:
        """The views; a method with frozen features beside its own reads them for each."""
        arguments = (images.source, split, model.clip.pixels, images.augmentation)
        for _ in range(2 if model.method.frozen_images else 1):
            (pixels,) = train_batches(*arguments, view, [batch])
        return pixels

    pixels = read()

    def given() -> Batch:
        x = images.normalised(pixels)
        frozen = None
        if model.method.frozen_images:
            with torch.no_grad():
                frozen = model.clip.image(x)
        x = model.prefix(model.clip.image, x)
        return Batch(model, x, prompts, labels, (run.seed, 0), chunks, frozen)

    recorded = recorder(device, run.settings.graphs)

    def step() -> None:
        room = AdaptiveChunks(chunks)
        total = run.schedule.total  # a method may do other things in its last steps
        TrainingStep(given(), optimiser, 0.0, 0, total, room, recorded).taken()

    def tower(kind: str) -> None:
        """Forward and backward of one tower."""
        whole = (given() if kind == "image" else known).drawn()
        for micro_batch in micro_batches(whole, kind):
            features, _ = tower_features(whole, kind, micro_batch)
            if features.requires_grad:
                features.sum().backward()

    known = given()
    taken_bytes = taken(step, device)
    if recorded:
        recorded.ready(step)
    works: dict[str, Callable[[], object]] = {
        "data": read, "step": step,
        "image": partial(tower, "image"), "text": partial(tower, "text"),
    }  # fmt: skip
    seconds = {name: asdict(each) for name, each in timed(works, repeats, device).items()}
    optimiser.zero_grad(set_to_none=True)
    return {
        **seconds, "batch": len(labels), "steps": run.schedule.total, "repeats": repeats,
        "bytes": taken_bytes, "chunks": asdict(chunks),
    }  # fmt: skip


@torch.no_grad()
def _inference(images: Images, repeats: int) -> dict[str, Any]:
    model, clip, method = images.model, images.model.clip, images.model.method
    split = images.split
    most = len(split.items)

    def read() -> Tensor:
        return torch.cat(list(test_batches(images.source, split, clip.pixels, most)))

    pixels = read()
    prompts = texts(model, split.classes, training=False)

    def seen(count: int = most) -> Tensor:
        x = images.normalised(pixels[:count])
        if method.frozen_when_scored:
            clip.image(x)
        return image_features(model, model.prefix(clip.image, x))

    def read_texts(count: int = most) -> Tensor:
        """Of each image, or of all classes from their names on."""
        if method.text_per_image:
            return text_features(model, prompts, image[:count])
        return text_features(model, texts(model, split.classes, training=False))

    image = seen()
    text = read_texts()
    frozen = clip.image(images.normalised(pixels)) if method.frozen_when_scored else None
    fitted = HeadContext(clip.logit_scale.exp(), prompts.references, frozen, fitted=True)

    def head() -> Tensor:
        return model.output(image, text, fitted).logits.argmax(-1)

    def whole() -> Tensor:
        seen()
        read_texts()
        return head()

    works: dict[str, Callable[[], object]] = {
        "data": read, "image": seen, "texts": read_texts, "head": head,
    }  # fmt: skip
    seconds = {n: asdict(each) for n, each in timed(works, repeats, clip.device).items()}
    return {
        **seconds, "batch": len(pixels), "repeats": repeats, "bytes": taken(whole, clip.device),
        "text_per_image": method.text_per_image,
        "operations_an_image": operations(partial(seen, 1)),
        "operations_a_class": operations(partial(read_texts, 1)) / len(split.classes.names),
    }  # fmt: skip
