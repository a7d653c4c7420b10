"""What a training step of each method of a plan would take of memory, on this device or another."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from harness.errors import HarnessError
from harness.fitting.footprint import Footprint, footprint, without_numbers
from harness.fitting.memory import SHARE, step_memory
from harness.fitting.step import Chunks
from harness.records.labels import method_label
from harness.runs.executors.cards import on_one_device
from harness.runs.prepared import PreparedRun


@dataclass(frozen=True)
class Device:
    """What a plan of memory is for: cuda or cpu, fp32 or bf16; bytes that a step may take, and
    those of the whole device, if it is another than this machine's, which so many processes
    share."""

    kind: str
    precision: str
    step: int
    whole: int | None = None
    processes: int = 1


@dataclass(frozen=True)
class Need:
    """A step of a method on the dataset of the plan with the most classes: all at once, and in the
    micro-batches that the engine would choose; or why it is not counted."""

    method: str
    dataset: str
    classes: int
    images: int
    at_once: Footprint | None = None
    chosen: Footprint | None = None
    why: str = ""


def device_of(run: PreparedRun, card: float | None) -> Device:
    """This device, or a card of so many GiB; with the settings of a run."""
    settings, here = run.settings, run.context.clip.device
    step = int(settings.memory * 2**30)
    if card is None:
        share = step_memory(here) // on_one_device(settings, here)
        return Device(here.type, settings.precision, step or share)
    whole = int(card * 2**30)
    processes = settings.jobs_per_gpu if settings.jobs is None else 1
    share = int(whole * SHARE["cuda"]) // processes
    return Device("cuda", settings.precision, step or share, whole, processes)


def needs(runs: Sequence[PreparedRun], device: Device) -> Iterator[Need]:
    """Of each method of a plan."""
    largest = dict[str, PreparedRun]()
    for run in runs:
        label = method_label(run.identity)
        if not run.refusal and run.summary.parameters and run.schedule.total:
            there = largest.setdefault(label, run)
            if _size(run) > _size(there):
                largest[label] = run
    steps = tqdm(largest.items(), desc="counting memory", unit="method", leave=False, disable=None,
                 delay=2)  # fmt: skip
    for label, run in steps:
        yield _need(label, run, device)


def _need(label: str, run: PreparedRun, device: Device) -> Need:
    clip, settings = without_numbers(run.context.clip, device.kind), run.settings
    classes, images = run.train.classes, _size(run)[1]
    about = (label, classes.dataset, len(classes.names), images)
    given = Chunks(settings.image_chunk, settings.text_chunk, settings.checkpointing)
    try:
        with _precision(device):
            of = (clip, run.method.value, classes, images)
            chosen = footprint(*of, given if given != Chunks() else device.step)
            at_once = chosen if chosen.chunks == Chunks() else footprint(*of, Chunks())
    except Exception as error:  # a method may read whatever numbers it likes
        said = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, HarnessError):
            return Need(*about, why=said)
        return Need(*about, why=f"its step needs numbers ({said})")
    return Need(*about, at_once, chosen)


@contextlib.contextmanager
def _precision(device: Device) -> Iterator[None]:
    """Fake tensors lie on no card: the processor's autocast stands for the card's."""
    bf16 = device.precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        yield


def _size(run: PreparedRun) -> tuple[int, int]:
    """Classes, and images of a step."""
    method, count = run.method.value, len(run.train.items)
    return len(run.train.classes.names), min(method.batch_size or count, count)
