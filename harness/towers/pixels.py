"""What an image tower takes: one value for its size, its resizing and its statistics."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.errors import HarnessError

RESIZINGS = {
    "shortest": "short side to size, {}, then the centre",
    "longest": "long side to size, {}, the rest filled",
    "squash": "both sides to size, {}",
}
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Pixels:
    """size: height and width; mean, std: of each channel, in [0, 1]; resizing: `shortest`,
    `longest` or `squash`; interpolation: `bicubic` or `bilinear`; fill: beside a `longest` image.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0

    @classmethod
    def of(cls, visual: Any, name: str) -> "Pixels":
        """Those of an open_clip image tower, whose `image_size` is one number or two.

        Raises:
            HarnessError: a resizing or statistics that are not known.
        """
        config: Mapping[str, Any] = visual.preprocess_cfg
        size = visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        mode, interpolation = config["resize_mode"], config["interpolation"]
        if mode not in RESIZINGS or interpolation not in INTERPOLATIONS:
            raise HarnessError(
                f"{name!r} wants images resized by {mode!r} with {interpolation!r}; allowed are "
                f"{', '.join(RESIZINGS)} with {' or '.join(INTERPOLATIONS)}. Choose another tag."
            )
        mean, std = config["mean"], config["std"]
        numbers = [each for each in (*mean, *std) if isinstance(each, int | float)]
        if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(std) <= 0:
            raise HarnessError(
                f"{name!r} normalises pixels by mean {mean!r} and std {std!r}; three numbers each "
                "are expected, std above 0."
            )
        fill = config.get("fill_color") or 0
        if not isinstance(fill, int):
            raise HarnessError(f"{name!r} fills images with {fill!r}; one number is expected.")
        return cls((int(height), int(width)), tuple(mean), tuple(std), mode, interpolation, fill)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return (3, *self.size)

    @property
    def geometry(self) -> tuple[tuple[int, int], str, str, int]:
        """All that pixels depend on before they are normalised."""
        return self.size, self.resizing, self.interpolation, self.fill

    def as_json(self) -> dict[str, Any]:
        """All of it, and the test transform in words."""
        return {**asdict(self), "resize": self.resize}

    def __str__(self) -> str:
        return f"{self.size[0]} x {self.size[1]}, {self.resize}"

    @property
    def resize(self) -> str:
        """The test transform in words."""
        return RESIZINGS[self.resizing].format(self.interpolation)
