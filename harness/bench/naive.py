"""`python -m harness.bench.naive run ...`: a run without what the engine spares, for `bench`.

Whole towers over all positions in every step, images decoded and encoded in every epoch; without
the harness's own checks of a fit.
"""

import contextlib
import runpy
import sys
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from harness.fitting import inputs
from harness.fitting import texts as of_texts
from harness.fitting.model import Model
from harness.runs import engine
from harness.towers.text import TextTower
from harness.towers.tower import Tower


@contextlib.contextmanager
def naively() -> Iterator[None]:
    """No cropping, nothing that texts share, no tower that is started after its first block."""
    real = Model.cut

    def whole(model: Model, tower: Tower) -> int | None:
        return None if real(model, tower) is None else -1

    def all_positions(tower: Tower, ids: Tensor) -> Tensor:
        return torch.full((len(ids),), ids.shape[1])

    with (
        mock.patch.object(Model, "cut", whole),
        mock.patch.object(TextTower, "needed", all_positions),
        mock.patch.object(of_texts, "shared_prefix_length", return_value=0),
    ):
        yield


if __name__ == "__main__":
    sys.argv += ["--jobs", "1"]
    with (
        naively(),
        mock.patch.object(inputs.Images, "_fits", return_value=False),
        mock.patch.object(engine, "_checks", return_value=[]),
    ):
        runpy.run_module("harness", run_name="__main__")
