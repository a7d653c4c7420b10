"""The memory of a training step at many classes, in the micro-batches that the engine chooses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from harness.bench.step import StepBenchmark
from harness.bench.steps import _gigabytes
from harness.fitting.step import Chunks
from harness.measure import taken
from harness.method import Method
from harness.records.tables import plain_table
from harness.towers.openclip import Clip


@dataclass(frozen=True)
class MemoryRow:
    """What a training step takes when it may take `allowed` bytes; both above what was in use."""

    method: str
    classes: int
    allowed: int
    bytes: int | None
    chunks: Chunks


def memory_rows(
    clip: Clip, methods: Mapping[str, Method], count: int, allowed: int
) -> Iterator[MemoryRow]:
    """A step of each method, in the micro-batches that the engine chooses."""
    for name, method in tqdm(methods.items(), desc="memory", disable=None):
        bed = StepBenchmark(clip, method, count, allowed)
        yield MemoryRow(name, count, allowed, taken(bed.engine, clip.device), bed.chunks)


def memory_table(rows: Sequence[MemoryRow]) -> str:
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
    return "Memory of a training step, above what was in use:\n\n" + plain_table(shown)
