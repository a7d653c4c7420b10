"""What a method costs: parameters, a forecast of the time, peak memory."""

import resource
import sys
import time
from collections.abc import Iterable

import torch

from harness.clip import Clip
from harness.graft import Model
from harness.plan import Run


def trainable(model: Model) -> int:
    """Numbers that the optimiser holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the CUDA device since the last reset, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@torch.no_grad()
def forward_rate(clip: Clip) -> float:
    """Token-blocks a second: tokens times blocks times width^2 that the image tower passes.

    A measurement of a fraction of a second, for the forecast alone.
    """
    images = torch.zeros(32, 3, clip.size, clip.size, device=clip.device)
    clip.image(images)
    started = time.perf_counter()
    float(clip.image(images).sum())
    return (
        32
        * _work(clip.image.length, len(clip.image.blocks), clip.image.width)
        / (time.perf_counter() - started)
    )


def forecast(runs: Iterable[Run], rate: float) -> float:
    """Seconds that `runs` may take: forward passes once, backward passes twice a forward, over the
    blocks after each tower's cut. Frozen parts that runs share are counted once."""
    seconds, shared = 0.0, set[tuple]()
    for run in runs:
        model, clip = run.model(), run.bench.clip
        schedule, batch = run.schedule, run.method.value.batch_size
        texts = len(run.train.classes.names)
        if trainable(model):
            for tower, rows in ((clip.image, min(batch, len(run.train.items))), (clip.text, texts)):
                cut = model.cut(tower)
                live = 0 if cut is None else len(tower.blocks) - max(cut, 0)
                steps = schedule.epochs * schedule.steps
                seconds += 3 * steps * rows * _work(tower.length, live, tower.width) / rate
            key = (run.train.fingerprint, run.seed, model.cut(clip.image))
            views = schedule.epochs * len(run.train.items)
            seconds += _once(shared, key, views * _frozen(model) / rate)
        for split in run.evaluated.values():
            whole = _work(clip.image.length, len(clip.image.blocks), clip.image.width)
            frozen, count = _frozen(model), len(split.items)
            seconds += count * (whole - frozen) / rate
            key = (split.fingerprint, 0, model.cut(clip.image))
            seconds += _once(shared, key, count * frozen / rate)
    return seconds


def _work(tokens: int, blocks: int, width: int) -> float:
    return tokens * blocks * width**2


def _frozen(model: Model) -> float:
    """An image's share of the work before the cut."""
    tower = model.clip.image
    cut = model.cut(tower)
    blocks = len(tower.blocks) if cut is None else max(cut, 0)
    return _work(tower.length, blocks, tower.width)


def _once(shared: set, key: tuple, seconds: float) -> float:
    if key in shared:
        return 0.0
    shared.add(key)
    return seconds
