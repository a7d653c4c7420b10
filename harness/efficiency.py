"""What a run costs: a forecast of its time, and peak memory."""

import time
from collections.abc import Iterable

import torch

from harness.clip import Clip, Tower
from harness.plan import Run, Shape


def reset_peak_memory(device: torch.device) -> None:
    """Starts the measurement that `peak_memory` reads."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes allocated on the CUDA device at most since the reset; None on a CPU, where a process
    knows only the peak of its whole life."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@torch.no_grad()
def forward_rate(clip: Clip) -> float:
    """Token-blocks a second: tokens times blocks times width^2 that the image tower passes.

    A measurement of two small batches, for the forecast alone.
    """
    count = 8
    images = torch.zeros(count, 3, clip.size, clip.size, device=clip.device)
    float(clip.image(images).sum())
    started = time.perf_counter()
    float(clip.image(images).sum())
    whole = _work(clip.image, len(clip.image.blocks))
    return count * whole / (time.perf_counter() - started)


def forecast(runs: Iterable[Run], rate: float) -> float:
    """Seconds that `runs` may take: forward passes once, backward passes twice a forward, over the
    blocks after each tower's cut. Frozen parts and fits that runs share are counted
    once."""
    work, shared, fitted = 0.0, set[tuple](), set[str]()
    for run in runs:
        image, shape = run.bench.clip.image, run.shape
        live = {tower.name: _live(tower, shape) for tower in (image, run.bench.clip.text)}
        whole = _work(image, len(image.blocks))
        passes = [(split, 1, 0) for split in run.evaluated.values()]
        if shape.parameters and run.fit_key not in fitted:
            fitted.add(run.fit_key)
            steps = run.schedule.total
            rows = min(run.method.value.batch_size or len(run.train.items), len(run.train.items))
            texts = len(run.train.classes.names)
            work += 3 * steps * (rows * live["image"] + texts * live["text"])
            passes.append((run.train, run.schedule.epochs, run.seed))
        for split, times, seed in passes:
            count = times * len(split.items)
            work += count * live["image"] if times == 1 else 0
            key = (split.fingerprint, seed, shape.cuts["image"])
            if key not in shared:
                shared.add(key)
                work += count * (whole - live["image"])
    return work / rate


def _live(tower: Tower, shape: Shape) -> float:
    """One row's work in the blocks after the cut."""
    cut = shape.cuts[tower.name]
    return _work(tower, 0 if cut is None else len(tower.blocks) - max(cut, 0))


def _work(tower: Tower, blocks: int) -> float:
    return tower.length * blocks * tower.width**2
