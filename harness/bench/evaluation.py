"""A whole evaluation, as the engine does it: whether reading decoded images keeps the device
waiting."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from harness.bench.step import StepBenchmark, names
from harness.dataset import Classes, Dataset, Item
from harness.fitting.evaluate import evaluate
from harness.fitting.inputs import CHUNK, Images
from harness.fitting.model import Model
from harness.images.cache import Cache, Disk
from harness.images.pixels import Augmentation
from harness.images.source import ImageSource
from harness.measure import timed, wait
from harness.method import Method
from harness.randomness import generator
from harness.records.tables import plain_table
from harness.splits import Split
from harness.towers.openclip import Clip, compiled

COUNT = {"cuda": 20_000, "cpu": 16}  # images of an evaluation


@dataclass(frozen=True)
class EvaluationRow:
    """Images a second: of a whole evaluation from decoded images on disk, texts included; of the
    same images when they are in memory, as the method encodes them, also with compiled blocks; and
    of the bare image tower."""

    method: str
    classes: int
    images: int
    whole: float
    encoded: float
    compiled: float
    bare: float


@dataclass(frozen=True)
class Noise(Dataset):
    """Random pixels of one size.

    Source: drawn on the fly.
    """

    size: int = 224

    def read(self, root: Path | None) -> dict[str, list[Item]]:
        return {}

    def open(self, item: Item, root: Path | None) -> Image.Image:
        shape = (self.size, self.size, 3)
        drawn = torch.randint(0, 256, shape, generator=generator(item.path), dtype=torch.uint8)
        return Image.fromarray(drawn.numpy())


def rows(
    clip: Clip, methods: Mapping[str, Method], count: int, repeats: int
) -> Iterator[EvaluationRow]:
    """A row for each method, on `count` classes. The images are decoded once before."""
    number = COUNT.get(clip.device.type, COUNT["cpu"])
    classes = Classes("noise", names(count), "a photo of a {}.")
    items = tuple(Item(f"{i}", i % count, classes.names[i % count]) for i in range(number))
    split = Split(items, classes, tuple(range(number)), "noise")
    with tempfile.TemporaryDirectory() as folder:
        source = ImageSource(
            Noise(size=max(clip.pixels.size)), None, Disk(Path(folder), 100 * 2**30)
        )
        for _ in tqdm(source.test(split, clip.pixels), desc="decoding", disable=None):
            pass
        for name, method in tqdm(methods.items(), desc="evaluation", disable=None):
            model = Model(clip, method, classes, seed=1)
            images = Images(model, source, split, Cache(budget=0), Augmentation())
            evaluate(model, images)
            started = time.perf_counter()
            evaluate(model, images)
            wait(clip.device)
            whole = time.perf_counter() - started
            bed = StepBenchmark(clip, method, count, 0, min(CHUNK, number))
            pixels = bed.normalised(bed.pixels[: bed.scored])
            works: dict[str, Callable[[], object]] = {
                "encoded": bed.evaluate(),
                "bare": partial(bed.bare, pixels),
            }
            seconds = timed(works, max(repeats, 5), clip.device)
            with compiled(clip):
                seconds |= timed({"compiled": works["encoded"]}, max(repeats, 5), clip.device)
            rates = {each: bed.scored / spent.median for each, spent in seconds.items()}
            yield EvaluationRow(name, count, number, number / whole, **rates)


def table(found: list[EvaluationRow]) -> str:
    """The rows as a table, with what the columns mean."""
    shown = [
        {
            "method": row.method,
            "C": row.classes,
            "images": row.images,
            "img/s": f"{row.whole:,.0f}",
            "in memory": f"{row.encoded:,.0f}",
            "compiled": f"{row.compiled:,.0f}",
            "bare tower": f"{row.bare:,.0f}",
        }
        for row in found
    ]
    notes = (
        "A whole evaluation from decoded images on disk, its texts included; images of a batch\n"
        "that is in memory already, moved, encoded and scored; the same with compiled blocks; the\n"
        "image tower alone."
    )
    return f"{plain_table(shown, numbers=True)}\n\n{notes}"
