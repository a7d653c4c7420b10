"""What a method costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.task import Evaluation, Fit, Measurement


@dataclass(frozen=True, kw_only=True)
class Efficiency(Measurement):
    """Measure time, memory and FLOPs of training steps and inference, without a complete fit.

    On all classes of a dataset, images already decoded: a training step on a batch of the method's
    size, inference on `images` at once. Each part is done once unmeasured, then `repeats` times;
    shown is the median, the record holds least and most, too. Seconds to result: the fit's steps
    times a step. The texts are encoded once an evaluation and counted apart, but for a method that
    has texts of its own for each image. Measure with nothing beside it.

    Source: DRA (this project's paper), Table 6, which gives images a second of CoOp, CoCoOp,
        KgCoOp, MaPLe and DRA; its parameter counts are shown beside ours.
    """

    printed: ClassVar[Mapping[str, int]] = {  # parameters on ViT-B/16, DRA Table 6
        "coop": 2_000, "cocoop": 354_000, "kgcoop": 2_000, "maple": 3_555_000, "dra": 717_000,
    }  # fmt: skip

    def datasets(self) -> Sequence[str]:
        return ("emoji_food",)

    def fit(self, dataset: str) -> Fit:
        return Fit(dataset, "all")

    def evaluations(self, dataset: str) -> list[Evaluation]:
        return [Evaluation("test", dataset, "all")]
