"""How much of a device's arithmetic a training step and an evaluation reach, and where the rest is.

The rate is measured: a large product of matrices in the precision of the runs. On a CPU the same
code runs at small sizes, and the text says that no card was measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from harness.bench.step import StepBenchmark
from harness.bench.steps import _gigabytes
from harness.fitting.inputs import CHUNK
from harness.fitting.memory import step_memory
from harness.fitting.step import Chunks
from harness.measure import operations, taken, timed, wait
from harness.method import Method
from harness.randomness import generator
from harness.records.tables import plain_table
from harness.towers.openclip import Clip

SIDE = {"cuda": 8192, "cpu": 512}  # of the matrices whose product is timed
GOAL = 0.4  # of the rate, in an evaluation of 100 classes
PRINTED = {"dra": (138.7, 642.9)}  # images a second in training and inference on an RTX 4090


@dataclass(frozen=True)
class Profile:
    """Where the time of one piece of work goes: the fraction in which the device computes, and how
    many kernels (on a CPU: operations) were launched. The rest waits for launches or for data."""

    busy: float
    kernels: int


@dataclass(frozen=True)
class Work:
    """A training step or an evaluation: seconds of a batch (median), images in it, counted
    operations, bytes above what was in use, and the profile."""

    seconds: float
    images: int
    operations: float
    bytes: int | None
    profile: Profile

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def share(self, most: float) -> float:
        """Of the operations a second that the device reaches in a product of matrices."""
        return self.operations / self.seconds / most


@dataclass(frozen=True)
class DeviceRow:
    """A method at a number of classes. train: None where nothing is trained. data, texts: seconds
    to move and normalise a batch's pixels, and to encode all texts for an evaluation, which is done
    once."""

    method: str
    classes: int
    train: Work | None
    chunks: Chunks
    inference: Work
    data: float
    texts: float


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Operations a second in a product of square matrices."""
    side = SIDE.get(device.type, SIDE["cpu"])
    draws = generator("matrix")
    a, b = (torch.randn(side, side, generator=draws).to(device, dtype) for _ in range(2))
    return 2 * side**3 / timed({"product": lambda: a @ b}, max(repeats, 5), device)["product"].least


def rows(
    clip: Clip, methods: Mapping[str, Method], counts: Sequence[int], repeats: int
) -> Iterator[DeviceRow]:
    """A row for each method and number of classes."""
    with tqdm(total=len(methods) * len(counts), desc="device", disable=None) as bar:
        for count in counts:
            for name, method in methods.items():
                bar.set_postfix_str(f"{name}, {count} classes")
                yield _row(clip, name, method, count, repeats)
                bar.update()


def _row(clip: Clip, name: str, method: Method, count: int, repeats: int) -> DeviceRow:
    scored = CHUNK if clip.device.type == "cuda" else 4
    bed = StepBenchmark(clip, method, count, step_memory(clip.device), scored)
    train = None
    if bed.model.parameters():
        parts = "whole" if bed.chunks == Chunks() else "halves"
        parts = "recomputed" if bed.chunks.checkpointing else parts
        counted = bed.flops(bed.prompts, parts)
        train = _work(bed.engine, bed.clip.device, method.batch_size, counted, repeats, bed.ready)
    score = bed.evaluate()
    inference = _work(score, clip.device, bed.scored, operations(score), repeats)
    encode = bed.evaluation_texts
    move = partial(bed.normalised, bed.pixels[: bed.scored])
    seconds = timed({"data": move, "texts": encode}, repeats, clip.device)
    return DeviceRow(
        name, count, train, bed.chunks, inference, seconds["data"].median, seconds["texts"].median
    )


def _work(
    work: Callable[[], object],
    device: torch.device,
    images: int,
    counted: float,
    repeats: int,
    ready: Callable[[], object] = lambda: None,
) -> Work:
    held = taken(work, device)
    ready()
    seconds = timed({"work": work}, repeats, device, warm=True)["work"].median
    return Work(seconds, images, counted, held, profiled(work, device, seconds))


def profiled(work: Callable[[], object], device: torch.device, seconds: float) -> Profile:
    """What the profiler sees of `work`, which takes so many seconds without it."""
    card = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * card
    with profile(activities=activities, acc_events=True) as seen:
        work()
        wait(device)
    on = DeviceType.CUDA if card else DeviceType.CPU
    events = [event for event in seen.events() if event.device_type == on]
    if not card:
        events = [event for event in events if event.name.startswith("aten::")]
    each = "self_device_time_total" if card else "self_cpu_time_total"
    computing = sum(getattr(event, each) for event in events) / 1e6
    return Profile(min(1.0, computing / seconds), len(events))


def table(found: Sequence[DeviceRow], rate: float, device: str) -> str:
    """The rows as a table, with what the columns mean."""
    shown = [_line(row, name, work, rate) for row in found for name, work in _works(row)]
    cuda = device == "cuda"
    notes = [
        f"A product of matrices reaches {rate / 1e12:,.2f} TFLOP/s. C classes; share: of that, by",
        "counted operations; busy: the part of the time in which the device computes, the rest",
        f"waits for launches or data; kernels: {'' if cuda else 'operations, '}launched a batch.",
        "GB: above what was in use. data ms: to move and normalise a batch of pixels; texts ms: to",
        "encode all texts, once an evaluation (where each image has its own: to begin them).",
    ]
    if cuda:
        notes += _goals(found, rate)
    else:
        notes.append("No card was measured: this is a processor, at small sizes.")
    return f"{plain_table(shown, numbers=True)}\n\n" + "\n".join(notes)


def _works(row: DeviceRow) -> list[tuple[str, Work]]:
    train = [] if row.train is None else [("train", row.train)]
    return [*train, ("infer", row.inference)]


def _line(row: DeviceRow, name: str, work: Work, rate: float) -> dict[str, object]:
    return {
        "method": row.method,
        "C": row.classes,
        "work": name,
        "images": work.images,
        "img/s": _short(work.rate),
        "share": f"{work.share(rate):.0%}",
        "busy": f"{work.profile.busy:.0%}",
        "kernels": work.profile.kernels,
        "GB": _gigabytes(work.bytes),
        "data ms": f"{1000 * row.data:.2f}" if name == "infer" else "",
        "texts ms": f"{1000 * row.texts:.1f}" if name == "infer" else "",
    }


def _goals(found: Sequence[DeviceRow], rate: float) -> list[str]:
    """What was hoped for, and what it came to."""
    lines = []
    few = [row for row in found if row.classes == 100]
    for row in few:
        share = row.inference.share(rate)
        lines.append(f"{row.method}: inference at {share:.0%} of the rate (goal {GOAL:.0%}).")
    for row in few:
        if row.method in PRINTED and row.train is not None:
            train, inference = PRINTED[row.method]
            lines.append(
                f"{row.method}: {_short(row.train.rate)} images a second in training and "
                f"{_short(row.inference.rate)} in inference; the paper prints {train} and "
                f"{inference} on an RTX 4090."
            )
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
