"""Whether a small training step gains where its kernels are launched otherwise: blocks compiled, or
the whole step recorded once as a CUDA graph."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from tqdm import tqdm

from harness.bench.step import StepBenchmark
from harness.fitting.memory import step_memory
from harness.measure import timed
from harness.method import Method
from harness.records.tables import plain_table
from harness.towers.openclip import Clip, compiled

BATCHES, CLASSES = (4, 16), 100
WORTH = 1.3  # times as fast, to be kept


@dataclass(frozen=True)
class LaunchRow:
    """Seconds of a step on images whose features before the cut are there: kernel by kernel, with
    compiled blocks, and replayed as the engine does it. Where one is None, `why` says why."""

    method: str
    batch: int
    eager: float
    compiled: float | None
    graph: float | None
    why: str = ""


def rows(
    clip: Clip, methods: Mapping[str, Method], repeats: int, classes: int = CLASSES
) -> Iterator[LaunchRow]:
    """A row for each trained method and size of batch."""
    for name, method in tqdm(methods.items(), desc="launches", disable=None):
        for batch in BATCHES:
            few = replace(method, batch_size=batch)
            bed = StepBenchmark(clip, few, classes, step_memory(clip.device))
            if bed.model.parameters():
                yield _row(bed, name, repeats)


def _row(bed: StepBenchmark, name: str, repeats: int) -> LaunchRow:
    device, why = bed.clip.device, list[str]()
    eager = timed({"step": partial(bed.cached, False)}, repeats, device)["step"].median
    found: dict[str, float | None] = {}
    for way, make in (("compiled", _compiled), ("graph", _graph)):
        try:
            work = make(bed)
            found[way] = timed({"step": work}, repeats, device)["step"].median
        except Exception as error:  # whatever a compiler or a capture raises is the answer
            found[way] = None
            why.append(f"{way}: {str(error).strip().partition(chr(10))[0][:120]}")
    batch = bed.method.batch_size
    return LaunchRow(name, batch, eager, found["compiled"], found["graph"], "; ".join(why))


def _compiled(bed: StepBenchmark) -> Callable[[], object]:
    def step() -> None:
        with compiled(bed.clip):
            bed.cached(False)

    step()
    return step


def _graph(bed: StepBenchmark) -> Callable[[], object]:
    if bed.recorder is None:
        raise RuntimeError("needs a card")
    bed.recorder.ready(bed.cached)
    if bed.recorder.graph is None:
        raise RuntimeError(bed.recorder.why or "the engine does not record such a step")
    return bed.cached


def table(found: list[LaunchRow]) -> str:
    """The rows as a table, and what they say."""
    shown = [
        {
            "method": row.method,
            "batch": row.batch,
            "ms": f"{1000 * row.eager:.2f}",
            "compiled": _gain(row.eager, row.compiled),
            "graph": _gain(row.eager, row.graph),
        }
        for row in found
    ]
    notes = [
        "ms: of a step, the image features before the first changed block being there. compiled,",
        f"graph: how many times as fast; worth keeping at {WORTH} or more.",
        *(f"{row.method}, {row.batch} images, {row.why}." for row in found if row.why),
    ]
    return f"{plain_table(shown, numbers=True)}\n\n" + "\n".join(notes)


def _gain(eager: float, other: float | None) -> str:
    if other is None:
        return "–"
    gain = eager / other
    return f"{gain:.2f}" + " *" * (gain >= WORTH)
